"""safetensors: an 8-byte little-endian header length, a JSON header, then the tensors' bytes."""

import json
from typing import Any

from lexrec.errors import TokensError
from lexrec.tokens._bytes import ByteFile
from lexrec.tokens.formats.base import ITEM_BYTES, Contents, TensorEntry, plain_bytes

_MAX_HEADER = 64 << 20
"""The largest header seen in the wild (a mixture of experts with 10^5 tensors) is a tenth of this."""


def scan(file: ByteFile) -> Contents:
    """List the tensors of a safetensors file.

    Raises:
        TokensError: the header is too long for the file, is no JSON object, or contradicts itself.
    """
    n_header = int.from_bytes(file.read(0, 8), "little")
    if n_header > min(_MAX_HEADER, file.size - 8):
        raise TokensError(
            f"{file.name}: not safetensors: it declares a header of {n_header} bytes in a file of {file.size}"
        )
    try:
        header: Any = json.loads(file.read(8, n_header))
    except (ValueError, RecursionError) as error:
        raise TokensError(f"{file.name}: not safetensors: the header is no JSON") from error
    if not isinstance(header, dict):
        raise TokensError(
            f"{file.name}: not safetensors: the header is a {type(header).__name__}, not an object"
        )
    header.pop("__metadata__", None)
    return Contents(tuple(_entry(file, name, record, 8 + n_header) for name, record in header.items()))


def _entry(file: ByteFile, name: str, record: Any, data_start: int) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = record["dtype"], tuple(record["shape"]), record["data_offsets"]
        numbers = (*shape, begin, end)
        sound = isinstance(dtype, str) and all(type(n) is int and n >= 0 for n in numbers) and begin <= end
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise TokensError(
            f"{file.name}: the header's record of tensor {name!r} is malformed: {record!r:.200}"
        )
    if data_start + end > file.size:
        raise TokensError(
            f"{file.name}: truncated: tensor {name!r} ends at byte {data_start + end} of {file.size}"
        )
    if dtype in ITEM_BYTES and plain_bytes(name, shape, dtype) != end - begin:
        raise TokensError(
            f"{file.name}: tensor {name!r} of shape {list(shape)} {dtype} cannot lie in {end - begin} bytes"
        )
    return TensorEntry(name, shape, dtype, data_start + begin, end - begin)
