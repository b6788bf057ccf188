"""Byte ranges of files on a web server, with retries and resumed downloads. Standard library only."""

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lexrec.errors import TokensError
from lexrec.tokens import cache
from lexrec.tokens._bytes import ByteFile

PAUSE_S = 1.0
"""Wait before the second attempt; it doubles with every further one."""

_ATTEMPTS = 5
_TIMEOUT_S = 30
_HEAD_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 20
_RESUMED_FROM = 1 << 20
"""Ranges at least this long go through a file, so that an interrupted download goes on where it stopped."""
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_PASSING = {429, 500, 502, 503, 504}


class _PassingError(Exception):
    """The connection or the server failed in a way that may pass."""


class _SameHostRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects without carrying the access token to another server."""

    def redirect_request(self, req: urllib.request.Request, *args: Any) -> urllib.request.Request | None:
        following = super().redirect_request(req, *args)
        if following is not None and _server(following.full_url) != _server(req.full_url):
            following.remove_header("Authorization")
        return following


@dataclass(frozen=True)
class Client:
    """Reads from one server, with an access token where there is one."""

    token: str = ""

    def read(self, url: str, max_bytes: int) -> bytes:
        """A whole small document.

        Raises:
            TokensError: not found, not allowed, larger than `max_bytes`, or no answer.
        """
        for pause_s in _pauses():
            try:
                with self._open(url, {}) as response:
                    data: bytes = response.read(max_bytes + 1)
                    declared = response.headers.get("Content-Length")
            except (_PassingError, http.client.HTTPException, OSError) as error:
                _wait(url, error, pause_s)
                continue
            if len(data) > max_bytes:
                raise TokensError(f"{url}: larger than the {max_bytes} bytes that are read of it")
            if declared is None or len(data) == int(declared):
                return data
            _wait(url, f"{len(data)} of {declared} bytes came", pause_s)
        raise AssertionError("the last pause raises")

    def range(self, url: str, begin: int, end: int) -> "RangeResponse":
        """Open bytes `begin` to `end` (exclusive) of a file; they are read from the response.

        Raises:
            TokensError: the server refuses, or does not serve byte ranges.
            _PassingError: worth another attempt.
        """
        response = self._open(url, {"Range": f"bytes={begin}-{end - 1}"})
        match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status != 206 or match is None:
            response.close()
            raise TokensError(f"{url}: the server does not serve byte ranges (status {response.status})")
        first, last, total = (int(number) for number in match.groups())
        if first != begin or last != min(end, total) - 1:
            response.close()
            raise TokensError(f"{url}: asked for bytes {begin}-{end - 1}, the server sends {first}-{last}")
        return RangeResponse(response, last + 1 - first, total, response.headers.get("ETag", ""))

    def _open(self, url: str, headers: dict[str, str]) -> Any:
        # A compressed answer would shift every offset.
        sent = {"User-Agent": "lexrec", "Accept-Encoding": "identity", **headers}
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        opener = urllib.request.build_opener(_SameHostRedirects)
        try:
            return opener.open(urllib.request.Request(url, headers=sent), timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in _PASSING:
                raise _PassingError(f"status {error.code}") from error
            raise TokensError(_refusal(url, error.code, bool(self.token))) from error


@dataclass(frozen=True)
class RangeResponse:
    """An open answer to a range request."""

    body: Any
    n_bytes: int
    total: int
    """Size of the whole file."""
    etag: str

    def chunks(self) -> Iterator[bytes]:
        """The body piece by piece; it may end early, which the caller counts."""
        left = self.n_bytes
        with self.body:
            while left:
                chunk: bytes = self.body.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    return
                left -= len(chunk)
                yield chunk


class HttpFile(ByteFile):
    """A file on a server, of which only the asked bytes are fetched.

    The first request brings the size and the first 64 KiB: often the whole header of a weights file.
    """

    def __init__(self, client: Client, url: str, name: str) -> None:
        self.name = name
        self._client = client
        self._url = url
        for pause_s in _pauses():
            try:
                response = client.range(url, 0, _HEAD_BYTES)
                self._head = b"".join(response.chunks())
            except (_PassingError, http.client.HTTPException, OSError) as error:
                _wait(url, error, pause_s)
                continue
            if len(self._head) == response.n_bytes:
                break
            _wait(url, f"{len(self._head)} of {response.n_bytes} bytes came", pause_s)
        self.size = response.total
        self._etag = response.etag

    def _fill(self, offset: int, view: memoryview) -> None:
        if offset + view.nbytes <= len(self._head):
            view[:] = self._head[offset : offset + view.nbytes]
        elif view.nbytes < _RESUMED_FROM:
            view[:] = b"".join(self._chunks(offset, view.nbytes))
        else:
            self._fill_through_file(offset, view)

    def _fill_through_file(self, offset: int, view: memoryview) -> None:
        partial = self._partial_path(offset, view.nbytes)
        partial.parent.mkdir(parents=True, exist_ok=True)
        done = partial.stat().st_size if partial.exists() else 0
        try:
            with partial.open("ab") as file:
                for chunk in self._chunks(offset + done, view.nbytes - done):
                    file.write(chunk)
            with partial.open("rb") as file:
                n_bytes = file.readinto(view)
        except OSError as error:
            raise TokensError(
                f"cannot write the download of {self.name} to {partial}: {error.strerror}"
            ) from error
        if n_bytes != view.nbytes:
            raise TokensError(f"{partial}: changed while it was being read; pull again")
        partial.unlink()

    def _partial_path(self, offset: int, n_bytes: int) -> Path:
        # With the ETag in it, what was fetched of another version is never continued.
        key = f"{self._url} {self._etag} {self.size} {offset} {n_bytes}"
        return cache.folder() / "partial" / hashlib.sha256(key.encode()).hexdigest()

    def _chunks(self, offset: int, n_bytes: int) -> Iterator[bytes]:
        """Exactly these bytes, over as many requests as it takes while each brings some."""
        done = 0
        pauses = _pauses()
        while done < n_bytes:
            error: Any = "the connection closed early"
            before = done
            try:
                response = self._client.range(self._url, offset + done, offset + n_bytes)
                if response.etag != self._etag or response.total != self.size:
                    response.body.close()
                    raise TokensError(
                        f"{self.name}: changed on the server while it was being read; pull again"
                    )
                for chunk in response.chunks():
                    done += len(chunk)
                    yield chunk
            except (_PassingError, http.client.HTTPException, OSError) as failure:
                error = failure
            if done > before:
                pauses = _pauses()
            if done < n_bytes:
                _wait(self._url, error, next(pauses))


def _pauses() -> Iterator[float | None]:
    """Seconds to wait after each failed attempt; None after the last."""
    yield from (PAUSE_S * 2**i for i in range(_ATTEMPTS - 1))
    yield None


def _wait(url: str, error: object, pause_s: float | None) -> None:
    if pause_s is None:
        reason = getattr(error, "reason", None) or error
        raise TokensError(
            f"{url}: no answer after {_ATTEMPTS} attempts ({reason}); is there a network? "
            "LEXREC_OFFLINE=1 uses the cache alone"
        )
    time.sleep(pause_s)


def _refusal(url: str, status: int, has_token: bool) -> str:
    if status in (401, 403):
        fix = "the token in HF_TOKEN has no access to it" if has_token else "set HF_TOKEN to an access token"
        return (
            f"{url}: not allowed (status {status}): private, gated or misspelt; accept its licence and {fix}"
        )
    if status == 404:
        return f"{url}: does not exist (status 404); check the name and the revision"
    return f"{url}: the server refuses with status {status}"


def _server(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc
