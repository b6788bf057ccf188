"""Whole preparations in memory: order, ties, counts, and what must not change a data set."""

import hashlib
import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lexrec.data.prepare import Columns, Filters, GivenSplit, ItemTable, Options, TimeSplit
from lexrec.errors import DataError
from tests.unit.data._tables import EVENTS, built, histories, marks, table

ROWS = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.integers(0, 5), st.integers(0, 40), st.sampled_from([1.0, 3.0, 5.0])
    ),
    min_size=1,
    max_size=25,
)
"""user, item, time, rating"""
NAMES = ("u", "i", "t", "r")
COLUMNS = Columns("u", "i", "t", "r")


def untied(rows):
    """Only the first event of a user at each time."""
    return list({(user, time): (user, item, time, rating) for user, item, time, rating in rows}.values())


def by_loop(rows, keep):
    """Filters and order one event at a time: rating >= 3, first of each pair, at least `keep` events."""
    found = {}
    for user, item, _, rating in sorted(rows, key=lambda row: row[2]):
        if rating >= 3 and item not in found.setdefault(user, []):
            found[user].append(item)
    return {user: items for user, items in sorted(found.items()) if len(items) >= max(keep, 1)}


@settings(max_examples=15)
@given(ROWS, st.integers(0, 3))
def test_a_preparation_is_what_a_loop_does(rows, keep):
    rows = untied(rows)
    filters = Filters("r", 3.0, "first", min_length=keep)
    expected = by_loop(rows, keep)
    if not expected:
        with pytest.raises(DataError, match="nothing is left"):
            built(table(rows, NAMES), COLUMNS, options=Options(filters=filters))
        return
    dataset = built(table(rows, NAMES), COLUMNS, options=Options(filters=filters))
    assert histories(dataset) == expected
    assert dataset.items.ids == sorted({item for items in expected.values() for item in items})
    assert marks(dataset) == [
        [0] * (n - 2) + [1, 2] if n > 2 else [0] * n for n in map(len, expected.values())
    ]
    took = sum(drop["rows"] for drop in dataset.manifest["dropped"])
    assert took == len(rows) - len(dataset.item_N)


@settings(max_examples=12)
@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter_where_times_do_not_tie(rows, chance):
    rows = untied(rows)
    options = Options(filters=Filters(duplicates="last"), split=TimeSplit(0.2, 0.2))
    first = built(table(rows, NAMES), COLUMNS, options=options)
    chance.shuffle(rows)
    assert built(table(rows, NAMES), COLUMNS, options=options).fingerprint == first.fingerprint


@settings(max_examples=12)
@given(ROWS, st.randoms(use_true_random=False))
def test_hashed_ties_never_depend_on_the_order_of_rows(rows, chance):
    options = Options(ties="hash", filters=Filters(duplicates="consecutive"))
    columns = Columns("u", "i", "t")
    first = built(table(rows, NAMES), columns, options=options)
    chance.shuffle(rows)
    assert built(table(rows, NAMES), columns, options=options).fingerprint == first.fingerprint


def test_hashed_ties_are_in_the_documented_order():
    rows = [(user, item, 7) for user in ("ann", "bob") for item in range(20)]
    dataset = built(table(rows), options=Options(ties="hash"))
    for user, items in histories(dataset).items():
        # MD5 of "USER ITEM", its first 12 digits: an order of its own for each user.
        assert items == sorted(range(20), key=lambda i: hashlib.md5(f"{user} {i}".encode()).hexdigest()[:12])
    ann, bob = histories(dataset).values()
    assert ann != bob != sorted(bob)
    assert dataset.manifest["ties"] == {"rule": "hash", "adjacent": 38}


def test_tied_rows_stay_in_their_order_and_are_counted():
    items = random.Random(0).sample(range(50), 50)
    dataset = built(table([("ann", item, 7 + (item == 3)) for item in items]))
    assert histories(dataset)["ann"] == [item for item in items if item != 3] + [3]
    assert dataset.manifest["ties"] == {"rule": "row", "adjacent": 48}


def test_hashed_ties_of_a_given_split_are_in_the_order_of_the_split():
    rows = [("ann", "pen", 1, split) for split in ("test", "train", "valid")]
    options = Options(ties="hash", split=GivenSplit("s"))
    dataset = built(table(rows, ("u", "i", "t", "s")), Columns("u", "i", "t", split="s"), options=options)
    assert marks(dataset) == [[0, 1, 2]]


def test_the_manifest_says_what_was_done():
    rows = [*EVENTS, ("dan", "cap", 1), ("dan", "jar", 2)]
    options = Options(filters=Filters(k_core=2))
    manifest = built(table(rows), options=options).manifest
    assert {name: manifest[name] for name in ("n_users", "n_items", "n_events", "has_time", "time_unit")} == {
        "n_users": 2,
        "n_items": 2,
        "n_events": 4,
        "has_time": True,
        "time_unit": "integer",
    }
    assert manifest["source"] == {"events": "the event table", "items": None}
    assert manifest["columns"] == {"events": {"user": "u", "item": "i", "time": "t"}, "items": None}
    assert manifest["ids"] == {"user": "string", "item": "string"}
    assert manifest["filters"]["k_core"] == 2
    (drop,) = manifest["dropped"]
    assert (drop["step"], drop["rows"], drop["users"], drop["items"]) == ("k-core", 4, 2, 2)
    assert manifest["split"] == "leave-one-out"
    assert manifest["split_events"] == {"train": 4, "validation": 0, "test": 0}
    assert manifest["split_facts"] == {"users_all_train": 2}
    assert manifest["item_table"] is None


def test_a_fingerprint_does_not_depend_on_how_columns_are_called():
    other = table(names=("kunde", "ware", "zeit"))
    assert built(other, Columns("kunde", "ware", "zeit")).fingerprint == built(table()).fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"split": TimeSplit(0.2, 0.2)},
        {"filters": Filters(min_length=2)},
    ],
)
def test_a_fingerprint_does_depend_on_what_is_in_it(change):
    assert built(table(), options=Options(**change)).fingerprint != built(table()).fingerprint


def test_an_item_or_a_time_changed_is_another_data_set():
    expected = built(table()).fingerprint
    assert built(table([*EVENTS[:-1], ("cyd", "pen", 5)])).fingerprint != expected
    assert built(table([*EVENTS[:-1], ("cyd", "cap", 6)])).fingerprint != expected
    assert built(table([*EVENTS[:-1], ("eve", "cap", 5)])).fingerprint != expected


def test_nothing_left_names_the_filter_that_took_most():
    filters = Filters(duplicates="first", k_core=3)
    rows = [*EVENTS, ("cyd", "cap", 6)]
    with pytest.raises(DataError) as caught:
        built(table(rows), options=Options(filters=filters))
    assert str(caught.value) == (
        "nothing is left after filtering: k-core (users with fewer than 3 or items with fewer than 3 events, "
        "until none is left) took 6 of 7 events; ask for less"
    )


def test_a_given_split_that_goes_back_in_time_names_a_user():
    rows = [("ann", "pen", 1, "train"), ("bob", "pen", 1, "test"), ("bob", "ink", 2, "train")]
    with pytest.raises(DataError) as caught:
        built(
            table(rows, ("u", "i", "t", "s")),
            Columns("u", "i", "t", split="s"),
            options=Options(split=GivenSplit("s")),
        )
    assert str(caught.value) == (
        "split column 's' goes back in time: user 'bob' has an event marked for an earlier split after one "
        "marked for a later; check --time, or split again"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(ties="hash"), "ties 'hash' needs a time column"),
        (Options(split=TimeSplit()), "a time split needs a time column"),
    ],
)
def test_what_needs_times_says_so(options, message):
    with pytest.raises(DataError, match=message):
        built(table(), Columns("u", "i"), options=options)


def test_unknown_options_are_refused():
    with pytest.raises(DataError, match="ties 'id'; allowed: row, hash"):
        Options(ties="id")
    with pytest.raises(DataError, match="items is an ItemTable"):
        built(table(), items="items.csv")


def test_an_engine_that_gives_up_is_one_line():
    import ibis

    backend = ibis.duckdb.connect(memory_limit="3MB", temp_directory="")
    n = 200_000
    events = pa.table({"u": pa.array(range(n)), "i": pa.array(range(n)), "t": pa.array(range(n))})
    with pytest.raises(DataError, match="memory") as caught:
        built(events, options=Options(engine=backend))
    assert "\n" not in str(caught.value)


def test_the_summary_tells_a_person():
    rows = [*EVENTS, ("dan", "cap", 1), ("dan", "jar", 1)]
    items = ItemTable(pa.table({"i": ["pen", "cap", "box"], "name": ["Pen", "Cap", "Box"]}), title="name")
    dataset = built(table(rows), items=items, options=Options(filters=Filters(min_length=2)))
    assert dataset.summary().splitlines() == [
        "3 users, 4 items, 7 events, 2.3 a user",
        "dropped: 1 events, 1 users, 0 items by min length (users with fewer than 2 events)",
        "split: leave-one-out; train 5, validation 1, test 1",
        "users with fewer than 3 events, all train: 2",
        "neighbouring events at the same time: 1, in the order of the rows",
        "item table: 3 rows; 1 items without an event left out, 2 items without a row left empty",
        f"fingerprint {dataset.fingerprint[:12]}",
    ]
