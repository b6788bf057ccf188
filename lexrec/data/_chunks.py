"""Arrays as long as a data set has events, a piece at a time, so that nothing as long is made on the way.

Dimension key: N events, U users.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

CHUNK = 2**22
"""Events of a piece."""


def pieces(n: int) -> Iterator[slice]:
    """Slices that cover 0 .. n."""
    for start in range(0, n, CHUNK):
        yield slice(start, min(start + CHUNK, n))


def user_pieces(offset_U: NDArray[np.int64]) -> Iterator[slice]:
    """Slices of users, in order, each with about a piece of events (or one user, who may have more)."""
    n_users, first = len(offset_U) - 1, 0
    while first < n_users:
        fits = int(np.searchsorted(offset_U, offset_U[first] + CHUNK, side="right")) - 1
        end = min(max(fits, first + 1), n_users)
        yield slice(first, end)
        first = end


def count_at_most(mark_N: NDArray[np.uint8], most: int, offset_U: NDArray[np.int64]) -> NDArray[np.int64]:
    """Events of each user whose mark is at most so large, [U]."""
    n_U = np.zeros(len(offset_U) - 1, dtype=np.int64)
    for users in user_pieces(offset_U):
        here_U = offset_U[users.start : users.stop + 1]
        is_counted_N = mark_N[here_U[0] : here_U[-1]] <= most
        before_N = np.concatenate([[0], np.cumsum(is_counted_N, dtype=np.int64)])
        n_U[users] = np.diff(before_N[here_U - here_U[0]])
    return n_U
