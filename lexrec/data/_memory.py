"""How much memory preparation may take, and how that is divided."""

import re

from lexrec.errors import DataError

_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)(B|BYTES)?\s*", flags=re.IGNORECASE)
_LEAST = 2**29
_OURS = 2**28
"""What Python, Arrow and NumPy take besides the engine, before any row: 256 MiB."""
_A_THREAD = 2**27
"""With less than that for each thread, an engine spills all the time or gives up: 128 MiB."""


def parse_memory(said: str | int) -> int:
    """Bytes of `4GiB`, `1500MB` or a plain number of bytes.

    Raises:
        DataError: it is no amount of memory, or less than preparation can work with.
    """
    n_bytes = read_size(str(said))
    if n_bytes is None:
        raise DataError(f"memory {said!r}; write a number and a unit, such as 4GiB or 1500MB")
    if n_bytes < _LEAST:
        raise DataError(f"memory {said!r} is too little; preparation needs at least 512MiB")
    return n_bytes


def read_size(text: str) -> int | None:
    """Bytes of a number with a unit; None where it is not one."""
    found = _SIZE.fullmatch(text)
    if found is None or (found[2].upper() == "I"):
        return None
    return int(float(found[1]) * _UNITS[found[2].upper()])


def default(engine_limit: str) -> int:
    """Half of what there is, of which an engine by itself would take four fifths; else 4 GiB."""
    found = read_size(engine_limit)
    return 2**32 if found is None else max(_LEAST, int(found / 0.8 / 2))


def engine_share(n_bytes: int) -> int:
    """Of so many bytes in all, those for the engine's buffers: it allocates beside them, and so do we."""
    return int(0.65 * (n_bytes - _OURS))


def engine_threads(n_bytes: int, n_cores: int) -> int:
    """Threads for which the engine's share is enough."""
    return max(1, min(n_cores, n_bytes // _A_THREAD))
