"""Small data sets made from lists, for tests of evaluation and of baselines."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lexrec.data._fingerprint import fingerprint
from lexrec.data.dataset import FORMAT_VERSION, TEST, TRAIN, VALIDATION, Dataset


def world(
    histories: Sequence[Sequence[int]],
    n_items: int,
    splits: Sequence[Sequence[int]] | None = None,
    times: Sequence[Sequence[int]] | None = None,
) -> Dataset:
    """A data set of item indexes 1..n_items; without `splits`, the last two of each user are held out."""
    if splits is None:
        splits = [[TRAIN] * (len(h) - 2) + [VALIDATION, TEST] for h in histories]
    lengths = [len(history) for history in histories]
    offset_U = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    item_N, split_N = np.concatenate(histories).astype(np.int32), np.concatenate(splits).astype(np.uint8)
    time_N = None if times is None else np.concatenate(times).astype(np.int64)
    return of_arrays(item_N, offset_U, split_N, n_items, time_N)


def of_arrays(
    item_N: np.ndarray,
    offset_U: np.ndarray,
    split_N: np.ndarray,
    n_items: int,
    time_N: np.ndarray | None = None,
) -> Dataset:
    tables = {
        "users": pa.table({"user_id": [f"u{i}" for i in range(len(offset_U) - 1)]}),
        "items": pa.table({"item_id": [f"i{i}" for i in range(1, n_items + 1)]}),
    }
    arrays = {"item": item_N, "offset": offset_U, "split": split_N}
    print_ = fingerprint(arrays, tables["users"], tables["items"])
    manifest = {
        "format_version": FORMAT_VERSION,
        "fingerprint": print_,
        "n_users": len(offset_U) - 1,
        "n_items": n_items,
        "n_events": len(item_N),
        "has_time": time_N is not None,
        "split": "leave-one-out",
    }
    return Dataset(item_N, offset_U, split_N, time_N, manifest, tables=tables)


def leave_one_out(path: Path) -> Dataset:
    """A folder of the development data: users and items by id, events by position, repeats dropped."""
    table = pq.read_table(path / "interactions.parquet", columns=["user_id", "item_id", "position"])
    frame = table.to_pandas().sort_values(["user_id", "position"], kind="stable")
    frame = frame.drop_duplicates(["user_id", "item_id"])
    ids, item_N = np.unique(frame["item_id"].to_numpy(), return_inverse=True)
    length_U = frame.groupby("user_id").size().to_numpy()
    offset_U = np.concatenate([[0], np.cumsum(length_U)]).astype(np.int64)
    split_N = np.full(len(item_N), TRAIN, dtype=np.uint8)
    split_N[offset_U[1:] - 1] = TEST
    split_N[(offset_U[1:] - 2)[length_U > 2]] = VALIDATION
    return of_arrays((item_N + 1).astype(np.int32), offset_U, split_N, len(ids))
