"""Pieces cover everything once, and counts in pieces are counts."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexrec.data import _chunks

MARKS = st.lists(st.lists(st.integers(0, 2), max_size=7).map(sorted), min_size=1, max_size=8)
"""Marks of each user; some have no event."""


@given(st.integers(0, 30), st.integers(1, 9))
def test_pieces_cover_everything_once(n, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_chunks, "CHUNK", chunk)
        found = [list(range(n))[here] for here in _chunks.pieces(n)]
    assert [place for piece in found for place in piece] == list(range(n))
    assert all(0 < len(piece) <= chunk for piece in found)


@given(MARKS, st.integers(1, 9), st.integers(0, 2))
def test_users_are_counted_piece_by_piece(marks, chunk, most):
    offset_U = np.cumsum([0, *map(len, marks)])
    mark_N = np.array([mark for row in marks for mark in row], dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_chunks, "CHUNK", chunk)
        users = list(_chunks.user_pieces(offset_U))
        counted = _chunks.count_at_most(mark_N, most, offset_U)
    assert counted.tolist() == [sum(mark <= most for mark in row) for row in marks]
    assert users[0].start == 0
    assert users[-1].stop == len(marks)
    assert all(one.stop == other.start for one, other in pairwise(users))
    # More than a piece only where one user has more.
    sizes = [offset_U[piece.stop] - offset_U[piece.start] for piece in users]
    assert all(n <= chunk or piece.stop - piece.start == 1 for n, piece in zip(sizes, users, strict=True))
