"""Sorted rows become flat arrays, a batch at a time.

Dimension key: N events, U users that are left, C codes, of all users or items there ever were.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from ibis.expr import types as ir
from numpy.typing import NDArray

from lexrec.data._coding import Coded
from lexrec.data._engine import Engine
from lexrec.data.columns import stored_times


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


def read_arrays(events: ir.Table, n_events: int, coded: Coded, engine: Engine) -> Arrays:
    """Sort what the filters left and take it over; codes close ranks to indexes."""
    item_N = np.empty(n_events, dtype=np.int32)
    time_N = np.empty(n_events, dtype=np.int64) if "time" in coded.kinds else None
    mark_N = np.empty(n_events, dtype=np.uint8) if "split" in coded.kinds else None
    count_C = np.zeros(coded.size.users, dtype=np.int64)
    columns = [name for name in ("user", "item", "time", "split") if name in events.columns]
    start = 0
    for batch in engine.batches(events.order_by("user", *coded.order).select(*columns)):
        here = slice(start, start + batch.num_rows)
        count_C += np.bincount(batch["user"].to_numpy(), minlength=len(count_C))
        item_N[here] = batch["item"].to_numpy()
        if time_N is not None:
            time_N[here] = stored_times(batch["time"], coded.kinds["time"])
        if mark_N is not None:
            mark_N[here] = batch["split"].to_numpy()
        start += batch.num_rows
    is_item_C = np.bincount(item_N, minlength=coded.size.items) > 0
    index_C = np.cumsum(is_item_C, dtype=np.int32)
    is_user_C = count_C > 0
    offset_U = np.concatenate([[0], np.cumsum(count_C[is_user_C])]).astype(np.int64)
    return Arrays(index_C[item_N], offset_U, time_N, mark_N, is_user_C, is_item_C)


def count_ties(time_N: NDArray[np.int64], offset_U: NDArray[np.int64]) -> int:
    """Pairs of neighbouring events of one user at the same time."""
    is_tied_N = np.zeros(len(time_N), dtype=bool)
    is_tied_N[1:] = time_N[1:] == time_N[:-1]
    is_tied_N[offset_U[:-1]] = False
    return int(is_tied_N.sum())


def only(table: pa.Table, is_kept_C: NDArray[np.bool_]) -> pa.Table:
    """The rows of codes that still occur, of a table in the order of codes."""
    return table.filter(pa.array(is_kept_C))
