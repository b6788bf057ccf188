"""A prepared data set: flat arrays on disk, memory-mapped, written once and never changed.

A folder holds
    item.npy      int32 [N]    item index of each event; users one after another, each oldest first
    offset.npy    int64 [U+1]  events of user u are item[offset[u]:offset[u+1]]
    split.npy     uint8 [N]    0 train, 1 validation, 2 test; never falls within a user
    time.npy      int64 [N]    event times, where there are any (unit in the manifest)
    users.parquet              user_id, in index order from 0
    items.parquet              item_id, in index order from 1, and title, category, ... where known
    manifest.json              format_version, fingerprint, how it was made; written last

Dimension key: N events, U users.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lexrec.data._chunks import count_at_most, pieces
from lexrec.data._fingerprint import fingerprint as fingerprint
from lexrec.data.vocabulary import Vocabulary
from lexrec.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 1
TRAIN, VALIDATION, TEST = 0, 1, 2
MANIFEST = "manifest.json"
_DTYPES = {"item": np.int32, "offset": np.int64, "split": np.uint8}
_NEEDED = ("format_version", "fingerprint", "n_items", "has_time")


@dataclass(frozen=True)
class Dataset:
    """Interactions in model form. Make one with `lexrec.prepare`, open one with `Dataset.load`."""

    item_N: NDArray[np.int32]
    offset_U: NDArray[np.int64]
    """U + 1 offsets into `item_N`."""
    split_N: NDArray[np.uint8]
    time_N: NDArray[np.int64] | None
    manifest: dict[str, Any]
    """What `prepare` did: columns, filters, split, ties, counts, what was dropped and why."""
    folder: Path | None = None
    tables: "dict[str, pa.Table]" = field(default_factory=dict, repr=False)
    """`users` and `items` while they are not on disk yet; read from the folder otherwise."""

    @property
    def n_users(self) -> int:
        return len(self.offset_U) - 1

    @property
    def n_items(self) -> int:
        return int(self.manifest["n_items"])

    @property
    def fingerprint(self) -> str:
        """Hash of events, splits, times, ids and item table; equal for equal data, however prepared."""
        return str(self.manifest["fingerprint"])

    @cached_property
    def start_U(self) -> NDArray[np.int64]:
        """Place of each user's oldest event."""
        return np.asarray(self.offset_U[:-1])

    @cached_property
    def train_end_U(self) -> NDArray[np.int64]:
        """Place after each user's last training event."""
        return self._end(TRAIN)

    @cached_property
    def validation_end_U(self) -> NDArray[np.int64]:
        """Place after each user's last training or validation event."""
        return self._end(VALIDATION)

    @cached_property
    def train_count_I(self) -> NDArray[np.int64]:
        """Training events of each item index, 0..n_items + 1 (padding and MASK have none)."""
        count_I = np.zeros(self.n_items + 2, dtype=np.int64)
        for here in pieces(len(self.item_N)):
            items = self.item_N[here][self.split_N[here] == TRAIN]
            count_I += np.bincount(items, minlength=len(count_I))
        return count_I

    @cached_property
    def user_table(self) -> "pa.Table":
        return self._table("users")

    @cached_property
    def item_table(self) -> "pa.Table":
        """item_id and whatever else is known of each item, row i is item index i + 1."""
        return self._table("items")

    @cached_property
    def users(self) -> Vocabulary:
        return Vocabulary(self.user_table["user_id"].to_pylist(), first=0, what="user")

    @cached_property
    def items(self) -> Vocabulary:
        return Vocabulary(self.item_table["item_id"].to_pylist(), first=1, what="item")

    @staticmethod
    def load(folder: str | Path) -> "Dataset":
        """Open a prepared folder, memory-mapped.

        Raises:
            DataError: no manifest (not a data set, or preparation did not finish), another format
                version, or arrays that contradict each other.
        """
        path = Path(folder)
        manifest = _read_manifest(path)
        arrays = {name: _open(path / f"{name}.npy", dtype) for name, dtype in _DTYPES.items()}
        time_N = _open(path / "time.npy", np.int64) if manifest["has_time"] else None
        dataset = Dataset(arrays["item"], arrays["offset"], arrays["split"], time_N, manifest, path)
        _check(dataset, path)
        return dataset

    def save(self, folder: str | Path, *, force: bool = False) -> "Dataset":
        """Write into a new folder: first beside it, then renamed, so a half-written one never shows.

        Args:
            folder: where to; must not exist, or be empty.
            force: replace a data set that is there already.

        Raises:
            DataError: the folder exists and is not a data set, or the disk is full.
        """
        from lexrec.data._write import write_dataset

        write_dataset(self, Path(folder), force=force)
        return Dataset.load(folder)

    def summary(self) -> str:
        """What is in it and what was dropped on the way, in a few lines for a person."""
        from lexrec.data._summary import summary

        return summary(self)

    def _end(self, last_split: int) -> NDArray[np.int64]:
        # Marks never fall within a user, so those up to one of them are its first.
        return self.start_U + count_at_most(self.split_N, last_split, self.offset_U)

    def _table(self, name: str) -> "pa.Table":
        if name in self.tables:
            return self.tables[name]
        import pyarrow.parquet as pq

        if self.folder is None:
            raise DataError(f"this data set has no {name} table and no folder to read one from")
        # pq.read_table would do, but brings in pandas: half a second.
        return pq.ParquetFile(self.folder / f"{name}.parquet").read()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder} is not a prepared data set (no {MANIFEST}); "
            f"make one with: lexrec prepare ... --out {folder}"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if version != FORMAT_VERSION:
        raise DataError(
            f"{folder} has format version {version}, this lexrec reads {FORMAT_VERSION}; prepare it again"
        )
    absent = [name for name in _NEEDED if name not in manifest]
    if absent:
        raise DataError(f"{path} is damaged: it does not say {', '.join(absent)}; prepare it again")
    return manifest


def _open(path: Path, dtype: type[Any]) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is missing or damaged: {error}") from error
    if array.dtype != dtype or array.ndim != 1:
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}, expected a row of {dtype.__name__}; "
            "prepare it again"
        )
    return array


def _check(dataset: Dataset, folder: Path) -> None:
    N, n_items, offset_U = len(dataset.item_N), dataset.n_items, dataset.offset_U
    offsets_fit = (
        len(offset_U) > 0 and offset_U[0] == 0 and offset_U[-1] == N and (np.diff(offset_U) >= 0).all()
    )
    items_fit = N == 0 or (dataset.item_N.min() >= 1 and dataset.item_N.max() <= n_items)
    times_fit = dataset.time_N is None or len(dataset.time_N) == N
    if not (offsets_fit and items_fit and times_fit and len(dataset.split_N) == N):
        raise DataError(f"{folder}: arrays contradict each other or the manifest; prepare it again")
