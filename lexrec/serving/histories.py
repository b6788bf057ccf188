"""A file of histories in, a file of lists out, some rows at a time.

Dimension key: R rows of one batch, S items of their histories, T items of their lists.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lexrec.errors import DataError

_ROWS = 4096
"""Rows read, ranked and written at a time."""


class Lists(NamedTuple):
    """Lists of some rows, one after another."""

    length_R: NDArray[np.int64]
    item_T: NDArray[np.int64]
    score_T: NDArray[np.float32]


class FileReport(NamedTuple):
    """What became of a file of histories."""

    users: int
    rows: int
    """Rows written: items of all lists."""
    unknown: int
    """Items of histories that the run does not know."""
    by_popularity: int
    """Users without a known item, who got the most popular items."""


class HistoryFile:
    """Parquet with `user_id` and `history`, a list of external item ids, oldest first.

    Args:
        path: the file.
        item_ids: external ids of items 1..n in index order.

    Raises:
        DataError: the file cannot be read, lacks a column, or holds another type of id.
    """

    def __init__(self, path: str | Path, item_ids: pa.ChunkedArray) -> None:
        self.path = Path(path)
        self.item_ids = item_ids.combine_chunks()
        if not self.path.is_file():
            raise DataError(f"histories file {str(self.path)!r} does not exist")
        try:
            self._file = pq.ParquetFile(self.path)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {self.path} as Parquet: {_first_line(error)}") from error
        schema = self._file.schema_arrow
        for column in ("user_id", "history"):
            if column not in schema.names:
                raise DataError(
                    f"{self.path} has no column {column!r} (it has {', '.join(schema.names)}); "
                    "a histories file has user_id and history"
                )
        self._check_type(schema.field("history").type)
        self._user_type = schema.field("user_id").type

    def write_lists(self, lists: Callable[[list[NDArray[np.int64]]], Lists], out: Path) -> FileReport:
        """Ask `lists` for the lists of each batch of rows and write them to `out`.

        Raises:
            DataError: a row cannot be read, or `out` cannot be written.
        """
        if out.is_dir():
            raise DataError(f"{out} is a folder; name a file to write (--out)")
        if out.exists() and out.samefile(self.path):
            raise DataError(f"{out} holds the histories; choose another --out")
        partial = out.with_name(f".{out.name}.part")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as file:
                    report = self._write(lists, file)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(out)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"cannot write {out}: {error.strerror or error}") from error
        return report

    def _write(self, lists: Callable[[list[NDArray[np.int64]]], Lists], file: object) -> FileReport:
        schema = pa.schema(
            {
                "user_id": self._user_type,
                "item_id": self.item_ids.type,
                "rank": pa.int32(),
                "score": pa.float32(),
            }
        )
        total = np.zeros(4, dtype=np.int64)
        with pq.ParquetWriter(file, schema) as writer:
            for user_R, histories, n_unknown in self._batches():
                found = lists(histories)
                writer.write_batch(self._table(user_R, found, schema))
                n_empty = sum(len(history) == 0 for history in histories)
                total += (len(user_R), len(found.item_T), n_unknown, n_empty)
        return FileReport(*total.tolist())

    def _batches(self) -> Iterator[tuple[pa.Array, list[NDArray[np.int64]], int]]:
        """User ids, histories of known item indexes, and how many ids were unknown."""
        try:
            for batch in self._file.iter_batches(_ROWS, columns=["user_id", "history"]):
                n_nameless = batch["user_id"].null_count
                if n_nameless:
                    raise DataError(f"{self.path}: {n_nameless} rows have no user_id; drop them")
                yield batch["user_id"], *self._indexes(batch["history"])
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path} is damaged: {_first_line(error)}") from error

    def _indexes(self, history_R: pa.Array) -> tuple[list[NDArray[np.int64]], int]:
        # Through Python the ids of a million users would take minutes.
        id_S = pc.list_flatten(history_R).cast(self.item_ids.type)
        place_S = pc.index_in(id_S, value_set=self.item_ids)
        row_S = pc.list_parent_indices(history_R).filter(pc.is_valid(place_S))
        # Not to_numpy, which brings in pandas.
        n_known_R = np.bincount(np.from_dlpack(row_S), minlength=len(history_R))
        item_S = np.from_dlpack(place_S.drop_null()).astype(np.int64) + 1
        return np.split(item_S, np.cumsum(n_known_R)[:-1]), place_S.null_count

    def _table(self, user_R: pa.Array, found: Lists, schema: pa.Schema) -> pa.RecordBatch:
        row_T = np.repeat(np.arange(len(user_R)), found.length_R)
        first_R = np.cumsum(found.length_R) - found.length_R
        rank_T = np.arange(1, len(row_T) + 1) - first_R[row_T]
        columns = [
            user_R.take(_arrow(row_T, pa.int64())),
            self.item_ids.take(_arrow(found.item_T - 1, pa.int64())),
            _arrow(rank_T.astype(np.int32), pa.int32()),
            _arrow(found.score_T, pa.float32()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _check_type(self, history: pa.DataType) -> None:
        is_list = pa.types.is_list(history) or pa.types.is_large_list(history)
        if not is_list:
            raise DataError(f"{self.path}: history is {history}, expected lists of item ids, oldest first")
        found = history.value_type
        if pa.types.is_dictionary(found):
            found = found.value_type
        if _kind(found) not in (_kind(self.item_ids.type), "null"):
            raise DataError(
                f"{self.path}: history holds {found} ids, the items of this run are {self.item_ids.type}"
            )


def _kind(of: pa.DataType) -> str:
    """Ids of one kind compare whatever their width."""
    if pa.types.is_integer(of):
        return "integer"
    return "string" if pa.types.is_string(of) or pa.types.is_large_string(of) else str(of)


def _arrow(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    # Not pa.array, which brings in pandas too.
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
