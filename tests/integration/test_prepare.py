"""`lexrec prepare` from the command line, on files and on the development data."""

import json
import re
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lexrec.commands.__main__ import main
from lexrec.data.dataset import Dataset
from lexrec.data.prepare import Options, TimeSplit, prepare

EVENTS = {
    "user_id": ["u2", "u1", "u1", "u1", "u2", "u1", "u3", "u3", "u3"],
    "item_id": ["b", "a", "b", "c", "a", "a", "c", "a", "b"],
    "timestamp": [20, 10, 30, 40, 10, 50, 1, 2, 3],
    "stars": [5, 4, 1, 4, 5, 5, 4, 4, 4],
    "part": ["test", "train", "train", "valid", "train", "test", "train", "train", "test"],
}
ITEMS = {"item_id": ["a", "b", "d"], "title": ["Ant", "Bee", "Doe"], "category": [["x", "y"], ["x"], []]}


@pytest.fixture
def events(tmp_path):
    pq.write_table(pa.table(EVENTS), tmp_path / "events.parquet")
    pq.write_table(pa.table(ITEMS), tmp_path / "items.parquet")
    return "events.parquet"


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Runs a command line in this process, in the test's folder: code, output, complaint."""
    monkeypatch.chdir(tmp_path)
    # The dispatcher adds the folder to the path, for components that lie there.
    monkeypatch.setattr("sys.path", sys.path[:])

    def run(*words):
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


def test_the_documented_command_prepares_and_says_what_it_did(lexrec, events, tmp_path):
    words = (
        "--user user_id --item item_id --time timestamp --items items.parquet --title title "
        "--category category --k-core 2 --out data/shop"
    )
    done = lexrec("prepare", events, *words.split())
    assert done.returncode == 0, done.stderr
    dataset = Dataset.load(tmp_path / "data" / "shop")
    assert done.stdout.splitlines() == [
        "3 users, 3 items, 9 events, 3.0 a user",
        "dropped: 0 events, 0 users, 0 items by k-core "
        "(users with fewer than 2 or items with fewer than 2 events, until none is left)",
        "split: leave-one-out; train 5, validation 2, test 2",
        "users with fewer than 3 events, all train: 1",
        "item table: 3 rows; 1 items without an event left out, 1 items without a row left empty",
        f"fingerprint {dataset.fingerprint[:12]}",
        "written to data/shop",
    ]
    assert done.stderr == ""
    assert dataset.item_table.to_pylist()[0] == {"item_id": "a", "title": "Ant", "category": "x, y"}


def test_every_option_reaches_its_place(here, events, tmp_path):
    words = (
        "--time timestamp --ties hash --rating stars --min-rating 4 --duplicates first --user-core 2 "
        "--item-core 1 --min-length 2 --split time --validation 0.2 --test-from 41 "
        "--items items.parquet --keep category --out shop"
    )
    assert here("prepare", events, *words.split())[0] == 0
    manifest = Dataset.load(tmp_path / "shop").manifest
    assert manifest["filters"] == {
        "rating": "stars",
        "min_rating": 4.0,
        "duplicates": "first",
        "k_core": 0,
        "user_core": 2,
        "item_core": 1,
        "min_length": 2,
    }
    assert [drop["step"] for drop in manifest["dropped"]] == ["rating", "duplicates", "k-core", "min length"]
    assert manifest["split"] == "time (validation from 20, test from 41)"
    assert manifest["ties"]["rule"] == "hash"
    assert manifest["columns"]["items"] == {"item_id": "item_id", "category": "category"}


def test_a_split_column_is_a_given_split(here, events, tmp_path):
    assert here("prepare", events, "--time", "timestamp", "--split-column", "part", "--out", "shop")[0] == 0
    assert Dataset.load(tmp_path / "shop").split_N.tolist() == [0, 0, 1, 2, 0, 2, 0, 0, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--time time",
            "events.parquet has no column 'time' (did you mean 'timestamp'?); it has: user_id, item_id",
        ),
        ("--k-core 9", "nothing is left after filtering: k-core"),
        ("--min-rating 3", "a rating column and a least rating go together (--rating, --min-rating)"),
        ("--split random", "--split 'random'; allowed: leave-one-out, time, given"),
        ("--split time --split-column part", "--split-column belongs to --split given, not to time"),
        ("--given-validation none", "--given-validation belongs to --split given, not to leave-one-out"),
        ("--test-from 4", "--test-from belongs to --split time, not to leave-one-out"),
        ("--split time", "a time split needs a time column (--time)"),
        ("--ties hash", "ties 'hash' needs a time column (--time)"),
        ("--ties id", "ties 'id'; allowed: row, hash"),
        ("--memory lots", "memory 'lots'; write a number and a unit, such as 4GiB or 1500MB"),
        ("--memory 1MB", "memory '1MB' is too little; preparation needs at least 512MiB"),
        ("--title name", "--title is a column of the item table: name that with --items"),
        ("--items none.csv", "there is no file 'none.csv'"),
        ("--format xml", "no format 'xml'; formats: csv, inter, jsonl, parquet, sequences, tsv"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(words, message, here, events, tmp_path):
    code, output, complaint = here("prepare", events, *words.split(), "--out", "shop")
    assert (code, output) == (2, "")
    assert complaint.startswith("lexrec: error: ")
    assert message in complaint
    assert complaint.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.parquet", "items.parquet"]


def test_replacing_needs_force(here, events):
    assert here("prepare", events, "--out", "shop")[0] == 0
    complaint = here("prepare", events, "--out", "shop")[2]
    assert complaint == "lexrec: error: shop holds a data set already; replace it with --force (force=True)\n"
    assert here("prepare", events, "--out", "shop", "--force")[0] == 0


def test_the_front_door_of_the_package_prepares(python, events, tmp_path):
    code = (
        "import lexrec, pandas as pd\n"
        "events = pd.read_parquet('events.parquet')\n"
        "d = lexrec.prepare(events, user='user_id', item='item_id', time='timestamp', out='data/shop')\n"
        "print(d.n_users, d.n_items, len(d.item_N))"
    )
    done = python("-c", code)
    assert done.stdout == "3 3 9\n", done.stderr


BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def test_your_own_data_in_ten_lines_runs_as_it_stands(python, here, root, tmp_path):
    """Every block of the guide, in order, in one folder; the output shown is that of the first."""
    page = (root / "docs" / "guide" / "your-own-data.md").read_text(encoding="utf-8")
    blocks = BLOCK.findall(page)
    printed = []
    for mark, text in blocks:
        if mark == "python":
            done = python("-c", text)
            assert done.returncode == 0, f"{text}\n{done.stderr}"
            printed.append(done.stdout)
        elif mark == "sh":
            for line in text.splitlines():
                command, *words = line.split()
                assert command == "lexrec"
                code, _, complaint = here(*words)
                assert code == 0, f"{line}\n{complaint}"
    shown = [text for mark, text in blocks if mark == "text"]
    assert shown == printed[:1]
    assert len(blocks[0][1].splitlines()) <= 10
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        "shop",
        "titled",
        "core",
        "by-time",
        "all",
        "small",
    }


# Users, items and events as the data's own page gives them.
COUNTS = {
    "amazon14_beauty": (22_363, 12_101, 198_502),
    "amazon14_sports": (35_598, 18_357, 296_337),
    "amazon14_toys": (19_412, 11_924, 167_597),
    "amazon18_games_mql4grec": (42_259, 13_839, 373_514),
    "ml1m": (6_040, 3_706, 1_000_209),
    "ml100k": (943, 1_682, 100_000),
    "prime_pantry_mltfr": (7_123, 4_884, 37_566),
}


@pytest.mark.shared
@pytest.mark.parametrize("name", COUNTS)
def test_the_development_data_keeps_its_counts_and_order(name, shared, here, tmp_path):
    path = shared / "data" / name / "interactions.parquet"
    assert here("prepare", path, "--time", "position", "--out", "set")[0] == 0
    dataset = Dataset.load(tmp_path / "set")
    assert (dataset.n_users, dataset.n_items, len(dataset.item_N)) == COUNTS[name]
    frame = pq.read_table(path).to_pandas().sort_values(["user_id", "position"], kind="stable")
    ids = np.array(dataset.items.ids)
    assert (ids[dataset.item_N - 1] == frame["item_id"].to_numpy()).all()
    assert (dataset.time_N == frame["position"].to_numpy()).all()
    lengths = frame.groupby("user_id").size().to_numpy()
    assert (np.diff(dataset.offset_U) == lengths).all()
    assert (dataset.split_N == 2).sum() == (lengths >= 3).sum()


@pytest.mark.shared
def test_the_split_of_pantry_is_its_own(shared, here, tmp_path):
    folder = shared / "data" / "prime_pantry_mltfr"
    words = [
        "--time",
        "position",
        "--split-column",
        "split",
        "--items",
        folder / "items.parquet",
        "--keep",
        "asin",
    ]
    assert here("prepare", folder / "interactions.parquet", *words, "--out", "set")[0] == 0
    dataset = Dataset.load(tmp_path / "set")
    assert dataset.manifest["split_events"]["test"] == 7_123
    assert json.loads((tmp_path / "set" / "manifest.json").read_text())["item_table"]["missing"] == 0


@pytest.mark.shared
def test_a_time_split_of_movielens_cuts_everybody_at_the_same_moment(shared, tmp_path):
    path = shared / "data" / "ml100k" / "interactions.parquet"
    options = Options(split=TimeSplit(0.1, 0.1), ties="hash")
    dataset = prepare(path, time="timestamp", out=tmp_path / "set", options=options)
    last, first = (dataset.time_N[dataset.split_N == mark] for mark in (1, 2))
    assert dataset.time_N[dataset.split_N == 0].max() < last.min() <= last.max() < first.min()
    assert 10_000 <= len(first) < 10_100
    # Rows of the file in any other order give the same data set.
    table = pq.read_table(path)
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    again = prepare(shuffled, time="timestamp", out=tmp_path / "again", options=options)
    assert again.fingerprint == dataset.fingerprint
