"""A small hub on this machine: byte ranges, commits, redirects, and faults on request."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What it serves, how it misbehaves, and what was asked of it."""

    files: dict[str, bytes]
    repo: str = "owner/model"
    commit: str = COMMIT
    card: dict[str, str] = field(default_factory=lambda: {"license": "mit"})
    etag: str = '"one"'
    url: str = ""
    token: str = ""
    """Required of every request where set."""
    serves_ranges: bool = True
    redirect_to: str = ""
    """Another hub's address, for the files."""
    cuts: list[int] = field(default_factory=list)
    """Bytes after which each next large answer breaks off."""
    failures: list[int] = field(default_factory=list)
    """Status codes of the next answers."""
    served: int = 0
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """(path, Range, Authorization) of every request."""

    def ranges(self, file: str) -> list[str]:
        return [asked for path, asked, _ in self.requests if path.endswith(f"/{file}")]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(hub, self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(hub: Hub, request: BaseHTTPRequestHandler) -> None:
    path = unquote(request.path)
    asked, token = request.headers.get("Range", ""), request.headers.get("Authorization", "")
    hub.requests.append((path, asked, token))
    if hub.failures:
        return _send(request, hub.failures.pop(0), b"", {})
    if hub.token and token != f"Bearer {hub.token}":
        return _send(request, 401, b"", {})
    if path.startswith(f"/api/models/{hub.repo}/revision/"):
        listing = {"sha": hub.commit, "cardData": hub.card, "siblings": [{"rfilename": f} for f in hub.files]}
        return _send(request, 200, json.dumps(listing).encode(), {})
    name = path.removeprefix(f"/{hub.repo}/resolve/{hub.commit}/")
    if name not in hub.files:
        return _send(request, 404, b"", {})
    if hub.redirect_to:
        return _send(request, 302, b"", {"Location": hub.redirect_to + request.path})
    return _send_file(hub, request, hub.files[name], asked)


def _send_file(hub: Hub, request: BaseHTTPRequestHandler, data: bytes, asked: str) -> None:
    if not asked or not hub.serves_ranges:
        return _send(request, 200, data, {"ETag": hub.etag})
    first, last = (int(n) for n in asked.removeprefix("bytes=").split("-"))
    last = min(last, len(data) - 1)
    part = data[first : last + 1]
    headers = {"ETag": hub.etag, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
    cut = hub.cuts.pop(0) if hub.cuts and len(part) > 100_000 else None
    hub.served += len(part[:cut])
    return _send(request, 206, part, headers, cut)


def _send(
    request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str], cut: int | None = None
) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.send_header("Connection", "close")
    # A client may refuse an answer by its headers and be gone before the body.
    with suppress(ConnectionError):
        request.end_headers()
        request.wfile.write(body[:cut])
    request.close_connection = True
