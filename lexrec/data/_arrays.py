"""Sorted rows become flat arrays, a batch at a time.

Dimension key: N events, U users that are left, C codes, of all users or items there ever were.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from ibis.expr import types as ir
from numpy.typing import NDArray

from lexrec.data._chunks import pieces
from lexrec.data._coding import Coded
from lexrec.data._engine import Engine
from lexrec.data.columns import stored_times

NewArray = Callable[[str, int, type[Any]], NDArray[Any]]
"""Makes room for an array: what it is called, its length, the type of its numbers."""


def in_memory(_: str, n: int, dtype: type[Any]) -> NDArray[Any]:
    """Room in memory, whatever it is called."""
    return np.empty(n, dtype=dtype)


class Arrays(NamedTuple):
    """Events of one user after another, and which codes still occur."""

    item_N: NDArray[np.int32]
    """Item indexes from 1."""
    offset_U: NDArray[np.int64]
    time_N: NDArray[np.int64] | None
    mark_N: NDArray[np.uint8] | None
    """Split marks, where they were given."""
    is_user_C: NDArray[np.bool_]
    is_item_C: NDArray[np.bool_]


def read_arrays(
    events: ir.Table, n_events: int, coded: Coded, engine: Engine, new: NewArray = in_memory
) -> Arrays:
    """Sort what the filters left and take it over into new arrays; codes close ranks to indexes."""
    item_N = new("item", n_events, np.int32)
    time_N = new("time", n_events, np.int64) if "time" in coded.kinds else None
    mark_N = np.empty(n_events, dtype=np.uint8) if "split" in coded.kinds else None
    count_C = np.zeros(coded.size.users, dtype=np.int64)
    is_item_C = np.zeros(coded.size.items, dtype=bool)
    columns = [name for name in ("user", "item", "time", "split") if name in events.columns]
    start = 0
    engine.tell("sorting")
    for batch in engine.batches(events.order_by("user", *coded.order).select(*columns)):
        here = slice(start, start + batch.num_rows)
        _count(batch["user"].to_numpy(), count_C)
        item_N[here] = batch["item"].to_numpy()
        is_item_C[item_N[here]] = True
        if time_N is not None:
            time_N[here] = stored_times(batch["time"], coded.kinds["time"])
        if mark_N is not None:
            mark_N[here] = batch["split"].to_numpy()
        start += batch.num_rows
        engine.tell("writing events", start, n_events)
    index_C = np.cumsum(is_item_C, dtype=np.int32)
    for here in pieces(n_events):
        item_N[here] = index_C[item_N[here]]
    is_user_C = count_C > 0
    offset_U = np.concatenate([[0], np.cumsum(count_C[is_user_C])]).astype(np.int64)
    return Arrays(item_N, offset_U, time_N, mark_N, is_user_C, is_item_C)


def _count(user_N: NDArray[np.int32], count_C: NDArray[np.int64]) -> None:
    """Add the events of users who come in order."""
    if len(user_N):
        first, last = int(user_N[0]), int(user_N[-1])
        count_C[first : last + 1] += np.bincount(user_N - first)


def count_ties(time_N: NDArray[np.int64], offset_U: NDArray[np.int64]) -> int:
    """Pairs of neighbouring events of one user at the same time."""
    n_ties = 0
    for here in pieces(len(time_N) - 1):
        after = slice(here.start + 1, here.stop + 1)
        n_ties += int(np.count_nonzero(time_N[after] == time_N[here]))
    first_U = offset_U[1:-1]
    return n_ties - int(np.count_nonzero(time_N[first_U] == time_N[first_U - 1]))


def only(table: pa.Table, is_kept_C: NDArray[np.bool_]) -> pa.Table:
    """The rows of codes that still occur, of a table in the order of codes."""
    return table.filter(pa.array(is_kept_C))
