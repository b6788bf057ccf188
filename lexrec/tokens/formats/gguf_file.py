"""GGUF: a typed key-value header with the vocabulary, tensor records, then aligned tensor data.

The header is scanned here and only the wanted tensor's bytes are read; `gguf.GGUFReader` builds an
object for every token and takes 2 to 10 s where this takes a fraction of one.
"""

import struct
from math import prod
from typing import Any

from lexrec.errors import TokensError
from lexrec.tokens._bytes import ByteFile
from lexrec.tokens.formats.base import Contents, TensorEntry

MAGIC = b"GGUF"

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_RECORDS = 1 << 20
_MAX_DIMS = 4
_WANTED_ARRAYS = {"tokenizer.ggml.tokens"}


def scan(file: ByteFile) -> Contents:
    """List the tensors of a GGUF file (version 2 or 3) with its token strings and licence.

    Raises:
        TokensError: not a GGUF, an unknown version, or counts and lengths the file cannot hold.
    """
    cursor = _Cursor(file)
    if cursor.take(4) != MAGIC:
        raise TokensError(f"{file.name}: not a GGUF file: it does not start with {MAGIC!r}")
    version = cursor.number("I")
    if version not in (2, 3):
        raise TokensError(f"{file.name}: GGUF version {version} is not read; known: 2, 3 (little-endian)")
    n_tensors, n_fields = cursor.count("tensors"), cursor.count("header fields")
    fields = dict(_field(cursor) for _ in range(n_fields))
    records = [_tensor(cursor) for _ in range(n_tensors)]
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16:
        raise TokensError(f"{file.name}: alignment {alignment!r} is not between 1 and 65536")
    data_start = -(-cursor.at // alignment) * alignment
    tokens = fields.get("tokenizer.ggml.tokens", ())
    entries = tuple(_entry(file, record, data_start) for record in records)
    return Contents(entries, tuple(tokens), str(fields.get("general.license", "")))


class _Cursor:
    """Reads a header forward, taking from the file in growing steps and never past its end."""

    def __init__(self, file: ByteFile) -> None:
        self.file = file
        self.at = 0
        self._data = b""

    def take(self, n_bytes: int) -> bytes:
        self._need(n_bytes)
        self.at += n_bytes
        return self._data[self.at - n_bytes : self.at]

    def number(self, code: str) -> Any:
        n_bytes = struct.calcsize(f"<{code}")
        self._need(n_bytes)
        self.at += n_bytes
        return struct.unpack_from(f"<{code}", self._data, self.at - n_bytes)[0]

    def count(self, what: str) -> int:
        number = int(self.number("Q"))
        if number > _MAX_RECORDS:
            raise TokensError(f"{self.file.name}: declares {number} {what}; at most {_MAX_RECORDS} are read")
        return number

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def skip(self, n_bytes: int) -> None:
        self._need(n_bytes)
        self.at += n_bytes

    def _need(self, n_bytes: int) -> None:
        end = self.at + n_bytes
        if end <= len(self._data):
            return
        if end > self.file.size:
            raise TokensError(
                f"{self.file.name}: truncated or corrupt: the header needs byte {end} of {self.file.size}"
            )
        # Doubling keeps a header of many megabytes at a handful of reads (each may be a request).
        target = min(max(end, 2 * len(self._data), 1 << 20), self.file.size)
        self._data += self.file.read(len(self._data), target - len(self._data))


def _field(cursor: _Cursor) -> tuple[str, Any]:
    key = cursor.string()
    kind = cursor.number("I")
    if kind == _ARRAY:
        return key, _array(cursor, key)
    return key, _scalar(cursor, key, kind)


def _scalar(cursor: _Cursor, key: str, kind: int) -> Any:
    if kind == _STRING:
        return cursor.string()
    if kind not in _SCALARS:
        raise TokensError(f"{cursor.file.name}: header field {key!r:.100} has unknown type {kind}")
    return cursor.number(_SCALARS[kind])


def _array(cursor: _Cursor, key: str) -> list[str] | None:
    """The strings of a wanted array; every other array is stepped over."""
    kind, length = cursor.number("I"), int(cursor.number("Q"))
    if kind in _SCALARS:
        cursor.skip(length * struct.calcsize(f"<{_SCALARS[kind]}"))
        return None
    if kind != _STRING:
        raise TokensError(f"{cursor.file.name}: header array {key!r:.100} has unknown element type {kind}")
    if length * 8 > cursor.file.size - cursor.at:
        raise TokensError(
            f"{cursor.file.name}: array {key!r:.100} declares {length} strings, more than the file holds"
        )
    if key in _WANTED_ARRAYS:
        return [cursor.string() for _ in range(length)]
    for _ in range(length):
        cursor.skip(cursor.number("Q"))
    return None


def _tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string()
    n_dims = cursor.number("I")
    if n_dims > _MAX_DIMS:
        raise TokensError(f"{cursor.file.name}: tensor {name!r:.100} declares {n_dims} dimensions; at most 4")
    # GGUF writes the fastest dimension first.
    shape = tuple(reversed([int(cursor.number("Q")) for _ in range(n_dims)]))
    return name, shape, cursor.number("I"), int(cursor.number("Q"))


def _entry(file: ByteFile, record: tuple[str, tuple[int, ...], int, int], data_start: int) -> TensorEntry:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    name, shape, kind, offset = record
    try:
        quant = GGMLQuantizationType(kind)
    except ValueError:
        # Another tensor of a newer type need not stop the one that is wanted.
        return TensorEntry(name, shape, f"GGML type {kind}", data_start + offset, 0)
    block_items, block_bytes = GGML_QUANT_SIZES[quant]
    if shape and shape[-1] % block_items:
        raise TokensError(
            f"{file.name}: tensor {name!r:.100} of shape {list(shape)} does not fill {quant.name} blocks"
        )
    n_bytes = prod(shape) // block_items * block_bytes
    return TensorEntry(name, shape, quant.name, data_start + offset, n_bytes)
