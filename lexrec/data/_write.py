"""Writing a data set folder so that it is either whole or not there."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lexrec.data.dataset import MANIFEST, Dataset
from lexrec.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


def refuse_target(folder: Path, *, force: bool) -> None:
    """Check that a data set may be written there, before any work is done.

    Raises:
        DataError: something else is there, or a data set that was not to be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder} exists and is not a data set; choose another place (--out)")
    if not force:
        raise DataError(f"{folder} holds a data set already; replace it with --force (force=True)")


@contextmanager
def new_folder(folder: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder beside the target, which takes its place once it has been filled without error.

    Raises:
        DataError: the target is taken, or the disk is full.
    """
    refuse_target(folder, force=force)
    partial: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
        yield partial
        # mkdtemp lets only the owner in; a data set is as readable as any new folder.
        partial.chmod(0o777 & ~_umask())
        _put_in_place(partial, folder)
    except OSError as error:
        raise DataError(
            f"cannot write {folder}: {error.strerror or error}; nothing was left behind, free some room "
            "or choose another place (--out)"
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def new_array(folder: Path, name: str, n: int, dtype: type[Any]) -> NDArray[Any]:
    """An array in the file that `write_files` would write it to, mapped: what is put in is written.

    Its room is taken at once. A disk that fills up later would end the process instead of raising an error.
    """
    path = folder / f"{name}.npy"
    with path.open("wb") as file:
        _write_header(file, np.dtype(dtype), n)
        _take_room(file, file.tell() + n * np.dtype(dtype).itemsize)
    array: NDArray[Any] = np.load(path, mmap_mode="r+", allow_pickle=False)
    return array


def write_files(dataset: Dataset, folder: Path) -> None:
    """Everything that a data set's folder holds, the manifest last; arrays made by `new_array` are there."""
    arrays: dict[str, NDArray[Any]] = {
        "item": dataset.item_N,
        "offset": dataset.offset_U,
        "split": dataset.split_N,
    }
    if dataset.time_N is not None:
        arrays["time"] = dataset.time_N
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        if path.exists():
            assert isinstance(array, np.memmap)
            array.flush()
        else:
            _write_array(array, path)
    _write_table(dataset.user_table, folder / "users.parquet")
    _write_table(dataset.item_table, folder / "items.parquet")
    manifest = json.dumps(dataset.manifest, indent=1, ensure_ascii=False)
    _write_bytes(manifest.encode(), folder / MANIFEST)
    _sync(folder)


def write_dataset(dataset: Dataset, folder: Path, *, force: bool = False) -> None:
    """Write a data set that is in memory.

    Raises:
        DataError: the target is taken, or the disk is full.
    """
    with new_folder(folder, force=force) as partial:
        write_files(dataset, partial)


def _write_array(array: NDArray[Any], path: Path) -> None:
    # Not np.save: it reports a full disk without saying that it is one.
    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        _write_header(file, array.dtype, len(array))
        file.write(array.data)
        file.flush()
        os.fsync(file.fileno())


def _write_header(file: BinaryIO, dtype: np.dtype[Any], n: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n,)}
    np.lib.format.write_array_header_1_0(file, header)


def _take_room(file: BinaryIO, n_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        file.flush()
        os.posix_fallocate(file.fileno(), 0, n_bytes)
        return
    while file.tell() < n_bytes:
        file.write(bytes(min(2**20, n_bytes - file.tell())))


def _write_table(table: "pa.Table", path: Path) -> None:
    import pyarrow.parquet as pq

    with path.open("wb") as file:
        pq.write_table(table, file)
        file.flush()
        os.fsync(file.fileno())


def _write_bytes(data: bytes, path: Path) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _put_in_place(partial: Path, folder: Path) -> None:
    """Rename; a data set that is replaced is moved aside first and removed when the new one stands."""
    old = partial.with_suffix(".old")
    if folder.exists() and any(folder.iterdir()):
        folder.rename(old)
    try:
        partial.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
