"""What every format's `scan` returns: the tensors of a file and where their bytes lie."""

from dataclasses import dataclass
from math import prod

from lexrec.errors import TokensError

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Plain floating types; a GGUF's block-quantised types are sized by their blocks instead."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in a file: what it is and which bytes hold it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """`F64`, `F32`, `F16`, `BF16`, or a GGUF block type such as `Q8_0`."""
    offset: int
    n_bytes: int
    zip_header: int | None = None
    """Where the header of the zip member that holds the bytes lies; `offset` then counts from the member's
    data. Resolved for the chosen tensor only: on a server each look costs a request."""


@dataclass(frozen=True)
class Contents:
    """What a scan of a file's header found."""

    entries: tuple[TensorEntry, ...]
    tokens: tuple[str, ...] = ()
    """Token strings, where the format carries them (GGUF)."""
    licence: str = ""


def plain_bytes(name: str, shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a row-major tensor of a plain floating type."""
    if dtype not in ITEM_BYTES:
        allowed = ", ".join(ITEM_BYTES)
        raise TokensError(f"tensor {name!r} has dtype {dtype}; a token table is one of {allowed}")
    return prod(shape) * ITEM_BYTES[dtype]
