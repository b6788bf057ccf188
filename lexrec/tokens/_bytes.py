"""Random access to bytes of a known size, wherever they lie: a local file, a wheel's member, several pieces.

Formats are written against `ByteFile` alone, so each reads the same from a disk, a wheel or a server.
"""

import io
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from lexrec.errors import TokensError

_MAX_RATIO = 100
"""Weights deflate by a factor of 1 to 4; a member that claims more than this is a bomb."""
_CHUNK = 1 << 22


class ByteFile(ABC):
    """Bytes that can be read at any offset. Nothing outside the declared size is ever asked for."""

    name: str
    size: int

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Exactly `n_bytes` bytes from `offset`.

        Raises:
            TokensError: the file ends before them. Checked before anything is allocated.
        """
        self._check(offset, n_bytes)
        data = bytearray(n_bytes)
        self._fill(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `offset`; fails like `read`."""
        self._check(offset, view.nbytes)
        self._fill(offset, view)

    def stream(self, buffer_size: int = 1 << 16) -> io.BufferedReader:
        """The file as a seekable stream, for readers that want one (zip archives)."""
        return io.BufferedReader(_Stream(self), buffer_size)

    def _check(self, offset: int, n_bytes: int) -> None:
        if offset < 0 or n_bytes < 0 or offset + n_bytes > self.size:
            raise TokensError(
                f"{self.name}: truncated or corrupt: bytes {offset} to {offset + n_bytes} are declared, "
                f"the file has {self.size}"
            )

    @abstractmethod
    def _fill(self, offset: int, view: memoryview) -> None:
        """Fill the whole view or raise TokensError."""


class LocalFile(ByteFile):
    """A file on this machine."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise TokensError(f"token table file {str(path)!r} does not exist")
        self.name = str(path)
        self.size = path.stat().st_size
        self._path = path

    def _fill(self, offset: int, view: memoryview) -> None:
        with self._path.open("rb") as file:
            file.seek(offset)
            _fill_from(file, view, self.name)


class ZipMember(ByteFile):
    """One member of a zip archive, decompressed as far as it is read and never written anywhere."""

    def __init__(self, archive: Path, member: str) -> None:
        self.name = f"{archive.name}/{member}"
        self._archive = archive
        with open_zip(archive) as opened:
            self._info = member_info(opened, member, archive.name)
        self.size = self._info.file_size

    def _fill(self, offset: int, view: memoryview) -> None:
        try:
            with open_zip(self._archive) as opened, opened.open(self._info) as file:
                file.seek(offset)
                _fill_from(file, view, self.name)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise TokensError(f"{self.name}: the archive is corrupt: {error}") from error


class Joined(ByteFile):
    """Pieces of one file, read as their concatenation."""

    def __init__(self, pieces: Sequence[ByteFile]) -> None:
        self.name = " + ".join(piece.name for piece in pieces)
        self.size = sum(piece.size for piece in pieces)
        self._pieces = tuple(pieces)

    def _fill(self, offset: int, view: memoryview) -> None:
        done = 0
        start = 0
        for piece in self._pieces:
            begin = max(offset + done - start, 0)
            n_bytes = min(piece.size - begin, view.nbytes - done)
            if n_bytes > 0 and begin < piece.size:
                piece.read_into(begin, view[done : done + n_bytes])
                done += n_bytes
            start += piece.size


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip archive for reading; a path that is no sound zip is a TokensError."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise TokensError(f"{path.name}: not a readable zip archive: {error}") from error


def member_info(archive: zipfile.ZipFile, member: str, where: str) -> zipfile.ZipInfo:
    """The member's record, after refusing unsafe names, bombs and encryption."""
    try:
        info = archive.getinfo(member)
    except KeyError:
        raise TokensError(f"{where}: has no member {member!r}") from None
    if member.startswith("/") or "\\" in member or ".." in member.split("/"):
        raise TokensError(f"{where}: member name {member!r} leaves the archive; refused")
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise TokensError(f"{where}: member {member!r} is encrypted or not deflated; refused")
    if info.file_size > _MAX_RATIO * max(info.compress_size, 1 << 10):
        raise TokensError(
            f"{where}: member {member!r} claims to unpack {info.compress_size} bytes into "
            f"{info.file_size}; refused as a zip bomb (at most {_MAX_RATIO} to 1)"
        )
    return info


def _fill_from(file: IO[bytes], view: memoryview, name: str) -> None:
    done = 0
    while done < view.nbytes:
        chunk = file.read(min(view.nbytes - done, _CHUNK))
        if not chunk:
            raise TokensError(f"{name}: ended {view.nbytes - done} bytes early; it is truncated")
        view[done : done + len(chunk)] = chunk
        done += len(chunk)


class _Stream(io.RawIOBase):
    def __init__(self, file: ByteFile) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        if base + offset < 0:
            raise OSError(f"seek before the start of {self._file.name}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        n_bytes = max(min(view.nbytes, self._file.size - self._at), 0)
        self._file.read_into(self._at, view[:n_bytes])
        self._at += n_bytes
        return n_bytes
