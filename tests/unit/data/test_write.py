import json
import stat
import subprocess

import numpy as np
import pyarrow as pa
import pytest

from lexrec.data._write import new_array
from lexrec.data.dataset import Dataset, fingerprint
from lexrec.data.prepare import Columns, Filters, GivenSplit, LeaveOneOut, Options, TimeSplit, prepare
from lexrec.errors import DataError
from tests.unit.data._tables import EVENTS, built, histories, table

FILES = ["item.npy", "items.parquet", "manifest.json", "offset.npy", "split.npy", "time.npy", "users.parquet"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def prepared(out, **options):
    return prepare(table(), user="u", item="i", time="t", out=out, options=Options(**options))


def test_a_folder_holds_what_it_should_and_reads_back(tmp_path):
    dataset = prepared(tmp_path / "a" / "shop")
    assert names(tmp_path / "a") == ["shop"]
    assert names(tmp_path / "a" / "shop") == FILES
    expected = built(table())
    loaded = Dataset.load(tmp_path / "a" / "shop")
    assert loaded.manifest == dataset.manifest == expected.manifest
    assert histories(loaded) == histories(expected)
    assert loaded.user_table.equals(expected.user_table)
    for name in ("item_N", "offset_U", "split_N", "time_N"):
        one, other = getattr(loaded, name), getattr(expected, name)
        assert one.dtype == other.dtype
        assert one.tolist() == other.tolist()


def test_a_folder_is_as_readable_as_any_other(tmp_path):
    prepared(tmp_path / "shop")
    (tmp_path / "plain").mkdir()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("shop", "plain")]
    assert modes[0] == modes[1]


def test_without_times_there_is_no_time_file(tmp_path):
    prepare(table(), user="u", item="i", out=tmp_path / "shop")
    assert "time.npy" not in names(tmp_path / "shop")
    assert Dataset.load(tmp_path / "shop").time_N is None


def test_arrays_are_memory_mapped(tmp_path):
    dataset = prepared(tmp_path / "shop")
    assert isinstance(dataset.item_N, np.memmap)


def test_loading_imports_no_table_library(tmp_path, python):
    folder = tmp_path / "shop"
    prepared(folder)
    code = (
        f"import sys; from lexrec.data.dataset import Dataset; d = Dataset.load({str(folder)!r})\n"
        "print(d.n_users, d.train_count_I.sum(), d.summary()[:7])\n"
        "print(sorted({'pyarrow', 'ibis', 'duckdb', 'pandas'} & sys.modules.keys()))"
    )
    done = python("-c", code)
    assert done.stdout.splitlines() == ["3 4 3 users", "[]"], done.stderr


def test_a_data_set_is_replaced_only_when_asked(tmp_path):
    prepared(tmp_path / "shop")
    with pytest.raises(
        DataError, match=r"shop holds a data set already; replace it with --force \(force=True\)"
    ):
        prepared(tmp_path / "shop", filters=Filters(min_length=2))
    assert Dataset.load(tmp_path / "shop").n_users == 3
    assert prepared(tmp_path / "shop", filters=Filters(min_length=2), force=True).n_users == 2
    assert names(tmp_path) == ["shop"]


def test_what_is_no_data_set_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "file").touch()
    for name in ("photos", "file"):
        with pytest.raises(DataError, match=f"{name} exists and is not a data set; choose another place"):
            prepared(tmp_path / name, force=True)
    assert names(tmp_path) == ["file", "photos"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "shop").mkdir()
    prepared(tmp_path / "shop")
    assert names(tmp_path / "shop") == FILES


def test_a_bad_target_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file exists and is not a data set"):
        prepare(tmp_path / "no such events", out=tmp_path / "file")


def test_a_failed_preparation_leaves_the_old_data_set(tmp_path):
    prepared(tmp_path / "shop")
    with pytest.raises(DataError, match="nothing is left"):
        prepared(tmp_path / "shop", filters=Filters(k_core=9), force=True)
    with pytest.raises(DataError, match="no column 'v'"):
        prepare(table(), user="v", out=tmp_path / "other")
    assert names(tmp_path) == ["shop"]
    assert Dataset.load(tmp_path / "shop").n_users == 3


def test_a_data_set_in_memory_can_be_saved(tmp_path):
    saved = built(table()).save(tmp_path / "x")
    assert saved.fingerprint == built(table()).fingerprint
    with pytest.raises(DataError, match="replace it with --force"):
        built(table()).save(tmp_path / "x")
    built(table(EVENTS[:1])).save(tmp_path / "x", force=True)
    assert Dataset.load(tmp_path / "x").n_users == 1


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
import pyarrow as pa
from lexrec.data._write import new_array, new_folder
from lexrec.data.prepare import Columns, Options, build
from lexrec.errors import DataError
n = 60_000
events = pa.table({"u": np.arange(n) % 50, "i": np.arange(n) % 997})
dataset = build(events, Columns("u", "i"), options=Options())
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
def fill():
    with new_folder(Path("data/shop"), force=False) as folder:
        new_array(folder, "item", n, np.int32)
for write in (lambda: dataset.save("data/shop"), fill):
    try:
        write()
    except DataError as error:
        print(error)
"""


def test_a_file_too_large_to_write_is_one_line_and_leaves_nothing(tmp_path, python):
    done = python("-c", LIMITED)
    message = (
        "cannot write data/shop: File too large; nothing was left behind, "
        "free some room or choose another place (--out)"
    )
    assert done.stdout.splitlines() == [message, message], done.stderr
    assert names(tmp_path / "data") == []


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("160k", "no room is left in {disk}, where preparation keeps tables until it is done"),
        ("2m", "cannot write {disk}/shop: No space left on device"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(size, message, tmp_path, lexrec):
    # Few different values: the engine's tables take less room than the arrays.
    rows = "".join(f"{n % 5},{n % 7}\n" for n in range(700_000))
    (tmp_path / "events.csv").write_text("user_id,item_id\n" + rows)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs rights this process does not have")
    try:
        done = lexrec("prepare", "events.csv", "--out", disk / "shop")
        assert done.returncode == 2
        assert done.stderr == (
            f"lexrec: error: {message.format(disk=disk)}; nothing was left behind, "
            "free some room or choose another place (--out)\n"
        )
        assert names(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_arrays_are_filled_in_their_files(tmp_path):
    array = new_array(tmp_path, "item", 3, np.int32)
    assert array.tolist() == [0, 0, 0]
    array[1] = 7
    array.flush()
    np.save(tmp_path / "plain.npy", np.array([0, 7, 0], dtype=np.int32))
    assert (tmp_path / "item.npy").read_bytes() == (tmp_path / "plain.npy").read_bytes()


@pytest.mark.parametrize("split", [TimeSplit(0.2, 0.2), LeaveOneOut(), GivenSplit("s")])
def test_data_in_many_pieces_is_the_same_data(split, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    events = pa.table(
        {"u": rng.integers(0, 9, 120), "i": rng.integers(0, 30, 120), "t": rng.integers(0, 50, 120)}
    ).append_column("s", pa.array(["train"] * 120))
    columns = Columns("u", "i", "t", split="s" if isinstance(split, GivenSplit) else None)
    options = Options(Filters(item_core=2), split=split)
    expected = built(events, columns, options=options)
    monkeypatch.setattr("lexrec.data._engine.BATCH_ROWS", 7)
    monkeypatch.setattr("lexrec.data._chunks.CHUNK", 5)
    dataset = prepare(events, user="u", item="i", time="t", out=tmp_path / "shop", options=options)
    assert dataset.manifest == expected.manifest
    arrays = {
        name: np.load(tmp_path / "shop" / f"{name}.npy") for name in ("item", "offset", "split", "time")
    }
    assert fingerprint(arrays, dataset.user_table, dataset.item_table) == expected.fingerprint
    for name in ("train_end_U", "validation_end_U", "train_count_I"):
        assert getattr(dataset, name).tolist() == getattr(expected, name).tolist()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write .*file/shop: (Not a directory|File exists)"):
        prepared(tmp_path / "file" / "shop")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (
            "manifest.json",
            None,
            "is not a prepared data set (no manifest.json); make one with: lexrec prepare",
        ),
        ("manifest.json", b"{", "manifest.json is damaged"),
        (
            "manifest.json",
            b'{"format_version": 99}',
            "has format version 99, this lexrec reads 1; prepare it again",
        ),
        ("item.npy", None, "item.npy is missing or damaged"),
        ("item.npy", b"", "item.npy is missing or damaged"),
        ("offset.npy", b"junk", "offset.npy is missing or damaged"),
        (
            "manifest.json",
            b'{"format_version": 1, "n_items": 3}',
            "does not say fingerprint, has_time; prepare",
        ),
        (
            "split.npy",
            np.zeros(99, np.uint8),
            "arrays contradict each other or the manifest; prepare it again",
        ),
        ("item.npy", np.full(6, 9, np.int32), "arrays contradict each other or the manifest"),
        ("offset.npy", np.array([0, 7, 3, 6]), "arrays contradict each other or the manifest"),
        ("time.npy", np.zeros(5, np.int64), "arrays contradict each other or the manifest"),
        ("item.npy", np.ones(6), "holds float64 of shape (6,), expected a row of int32; prepare it again"),
        ("time.npy", np.ones((6, 1), int), "holds int64 of shape (6, 1), expected a row of int64"),
    ],
)
def test_a_damaged_folder_is_refused(name, damage, message, tmp_path):
    folder = tmp_path / "shop"
    prepared(folder)
    if damage is None:
        (folder / name).unlink()
    elif isinstance(damage, np.ndarray):
        np.save(folder / name, damage)
    else:
        (folder / name).write_bytes(damage)
    with pytest.raises(DataError) as caught:
        Dataset.load(folder)
    assert message in str(caught.value)


def test_an_array_of_objects_is_never_unpickled(tmp_path):
    prepared(tmp_path / "shop")
    np.save(tmp_path / "shop" / "item.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"item\.npy is missing or damaged"):
        Dataset.load(tmp_path / "shop")


def test_a_manifest_is_readable_text(tmp_path):
    prepared(tmp_path / "shop")
    manifest = json.loads((tmp_path / "shop" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["source"] == {"events": "the event table", "items": None}
    assert str(tmp_path) not in json.dumps(manifest)
