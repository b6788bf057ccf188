"""Keeps the C library from handing memory back to the system after each tensor.

A training step on a CPU makes and drops the same tensors again and again. By default glibc gives back what
was freed and maps it anew, and the kernel clears every page: thousands of page faults, a tenth of a step.
"""

import ctypes
import os

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Numbers of the parameters in glibc's malloc.h."""
_KEPT = 2**30
"""Free memory at the end of the heap up to which none is given back, in bytes."""
_GROWTH = 2**24
"""The heap grows by so much at once, in bytes."""
_LARGEST_ON_HEAP = 2**25
"""Blocks from here on are mapped on their own; the largest value that glibc takes."""


def keep_memory() -> bool:
    """Let this process keep what it frees for its next tensors; a peak is no higher for it.

    Settings in the environment (MALLOC_*, GLIBC_TUNABLES) are left alone.

    Returns:
        True if it was done; False with a C library that has no such setting, or one that the user made.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError, OSError):
        return False
    settings = ((_MMAP_THRESHOLD, _LARGEST_ON_HEAP), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _GROWTH))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
