"""NumPy's .npy: one array behind a short header. Object arrays (pickles) are refused.

A magic string, two version bytes, the header's length, then a Python dictionary literal.
"""

import ast
from math import prod
from typing import Any

from lexrec.errors import TokensError
from lexrec.tokens._bytes import ByteFile
from lexrec.tokens.formats.base import ITEM_BYTES, Contents, TensorEntry

MAGIC = b"\x93NUMPY"

_DTYPES = {"<f8": "F64", "<f4": "F32", "<f2": "F16"}
_MAX_HEADER = 10_000
_FIELDS = {"descr", "fortran_order", "shape"}


def scan(file: ByteFile) -> Contents:
    """The one array of an .npy file, called `array`.

    Raises:
        TokensError: a broken header, an object array, Fortran order, another dtype, or truncated data.
    """
    header, data_start = _header(file)
    dtype, is_fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    if isinstance(dtype, str) and dtype.endswith("O"):
        raise TokensError(f"{file.name}: holds Python objects (a pickle), which are never loaded")
    if not isinstance(dtype, str) or dtype not in _DTYPES or is_fortran is not False:
        order = "C" if is_fortran is False else "Fortran"
        raise TokensError(
            f"{file.name}: an array of {dtype!r:.80} in {order} order; "
            "save it as C-ordered float16, float32 or float64"
        )
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise TokensError(f"{file.name}: the .npy header has shape {shape!r:.80}")
    n_bytes = prod(shape) * ITEM_BYTES[_DTYPES[dtype]]
    if data_start + n_bytes != file.size:
        raise TokensError(
            f"{file.name}: an array of shape {list(shape)} {dtype} needs {data_start + n_bytes} bytes, "
            f"the file has {file.size}"
        )
    return Contents((TensorEntry("array", shape, _DTYPES[dtype], data_start, n_bytes),))


def _header(file: ByteFile) -> tuple[dict[str, Any], int]:
    """The header's dictionary and where the data begins."""
    # Version 1 writes the length in two bytes, later ones in four.
    length_bytes = 2 if file.read(6, 1) == b"\x01" else 4
    length = int.from_bytes(file.read(8, length_bytes), "little")
    data_start = 8 + length_bytes + length
    try:
        text = file.read(8 + length_bytes, length).decode() if length <= _MAX_HEADER else ""
        header: Any = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise TokensError(f"{file.name}: the .npy header is not readable") from error
    if not isinstance(header, dict) or header.keys() != _FIELDS:
        raise TokensError(f"{file.name}: the .npy header is not a dictionary of {', '.join(sorted(_FIELDS))}")
    return header, data_start
