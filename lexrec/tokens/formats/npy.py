"""NumPy's .npy: one array behind a short header. Object arrays (pickles) are refused."""

import io

import numpy as np

from lexrec.errors import TokensError
from lexrec.tokens._bytes import ByteFile
from lexrec.tokens.formats.base import Contents, TensorEntry

MAGIC = b"\x93NUMPY"

_DTYPES = {"<f8": "F64", "<f4": "F32", "<f2": "F16"}
_MAX_HEADER = 1 << 16


def scan(file: ByteFile) -> Contents:
    """The one array of an .npy file, called `array`.

    Raises:
        TokensError: a broken header, an object array, Fortran order, another dtype, or truncated data.
    """
    stream = io.BytesIO(file.read(0, min(file.size, _MAX_HEADER)))
    try:
        version = np.lib.format.read_magic(stream)
        reader = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, is_fortran, dtype = reader(stream)
    except (ValueError, OSError, SyntaxError) as error:
        raise TokensError(
            f"{file.name}: the .npy header is not readable: {error}".replace("\n", " ")
        ) from error
    if dtype.hasobject:
        raise TokensError(f"{file.name}: holds Python objects (a pickle), which are never loaded")
    if is_fortran or dtype.str not in _DTYPES:
        order = "Fortran" if is_fortran else "C"
        raise TokensError(
            f"{file.name}: an array of {dtype.str} in {order} order; "
            "save it as C-ordered float16, float32 or float64"
        )
    n_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if min(shape, default=1) < 0 or stream.tell() + n_bytes != file.size:
        raise TokensError(
            f"{file.name}: an array of shape {list(shape)} {dtype.str} needs "
            f"{stream.tell() + n_bytes} bytes, the file has {file.size}"
        )
    return Contents((TensorEntry("array", shape, _DTYPES[dtype.str], stream.tell(), n_bytes),))
