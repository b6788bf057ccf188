import datetime as dt
import decimal
import uuid

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from lexrec.data.prepare import Columns, Filters, GivenSplit, Options
from lexrec.errors import DataError
from tests.unit.data._tables import EVENTS, built, histories, marks, table

N = len(EVENTS)


def with_column(name, values):
    """The small table with one column replaced."""
    base = table()
    return base.set_column(base.column_names.index(name), name, pa.chunked_array([values]))


def stored_times(values):
    """What one user's times are stored as."""
    values = values if isinstance(values, pa.Array) else pa.array(values)
    dataset = built(pa.table({"u": ["a"] * len(values), "i": ["x"] * len(values), "t": values}))
    return dataset.time_N.tolist(), dataset.manifest["time_unit"]


@pytest.mark.parametrize(
    ("ids", "stored"),
    [
        (pa.array(["b", "a", "é"]), ["a", "b", "é"]),
        (pa.array(["10", "9", "007"]), ["007", "10", "9"]),
        (pa.array([10, -9, 2], pa.int16()), [-9, 2, 10]),
        (pa.array([10, 9, 2], pa.uint64()), [2, 9, 10]),
        (pa.array([10.0, 9.0, 2.0]), [2, 9, 10]),
        (pa.array([decimal.Decimal("10.00"), decimal.Decimal(9), decimal.Decimal(2)]), [2, 9, 10]),
        (pa.array([dt.date(2024, 1, d) for d in (3, 1, 2)]), ["2024-01-01", "2024-01-02", "2024-01-03"]),
        (pa.array(["z", "a", "z\U0001f600"]).dictionary_encode(), ["a", "z", "z\U0001f600"]),
    ],
    ids=["text", "digits", "integers", "unsigned", "whole floats", "decimals", "dates", "categories"],
)
def test_ids_keep_their_type_and_are_sorted_by_it(ids, stored):
    dataset = built(pa.table({"u": ids, "i": ids, "t": [1, 2, 3]}))
    assert dataset.users.ids == dataset.items.ids == stored
    assert [dataset.items.id(1), dataset.items.index(stored[2])] == [stored[0], 3]


def test_strings_are_sorted_by_code_point():
    ids = ["\U0001f600", "￿", "é", "z", "Z", "ａ"]
    dataset = built(pa.table({"u": ids, "i": ids, "t": range(len(ids))}))
    assert dataset.items.ids == sorted(ids)


def test_uuids_become_strings():
    ids = [uuid.UUID(int=n) for n in (3, 1, 2)]
    dataset = built(pd.DataFrame({"u": ids, "i": ids, "t": [1, 2, 3]}))
    assert dataset.items.ids == [str(uuid.UUID(int=n)) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("values", "stored", "unit"),
    [
        ([3, 10, 7], [3, 7, 10], "integer"),
        ([3.0, 1e10, 7.0], [3, 7, 10**10], "integer"),
        ([0.5, 0.25, -0.5], [-500_000, 250_000, 500_000], "millionth"),
        (["10", "9"], [9, 10], "integer"),
        (["1.5", "1e1"], [1_500_000, 10_000_000], "millionth"),
        ([dt.date(1970, 1, 2), dt.date(1969, 12, 31)], [-86_400_000_000, 86_400_000_000], "microsecond"),
        (["1970-01-02", "1970-01-01T00:00:01Z"], [1_000_000, 86_400_000_000], "microsecond"),
        (["1970-01-01T02:00:00+02:00", "1970-01-01 00:00:00.5"], [0, 500_000], "microsecond"),
        (pa.array([1_999, 3_000], pa.timestamp("ns")), [1, 3], "microsecond"),
        (pa.array([5, 2], pa.timestamp("s", tz="America/New_York")), [2_000_000, 5_000_000], "microsecond"),
        (pa.array([5, 2], pa.timestamp("ms")), [2_000, 5_000], "microsecond"),
        ([decimal.Decimal("0.50"), decimal.Decimal("0.25")], [250_000, 500_000], "millionth"),
    ],
)
def test_times_of_any_type_are_stored_as_integers_in_order(values, stored, unit):
    assert stored_times(values) == (stored, unit)


def test_times_closer_than_they_are_stored_are_still_ordered_as_they_were():
    events = pa.table({"u": ["a"] * 3, "i": ["x", "y", "z"], "t": [3e-8 + 0.5, 1e-8 + 0.5, 2e-8 + 0.5]})
    dataset = built(events)
    assert histories(dataset) == {"a": ["y", "z", "x"]}
    assert dataset.manifest["ties"] == {"rule": "row", "adjacent": 2}


def test_without_a_time_the_rows_are_the_order():
    dataset = built(table(), Columns("u", "i"))
    assert histories(dataset)["ann"] == ["pen", "ink", "cap"]
    assert (dataset.time_N, dataset.manifest["has_time"], dataset.manifest["time_unit"]) == (
        None,
        False,
        None,
    )


def test_a_given_split_may_be_text_or_numbers():
    split = Options(split=GivenSplit("s"))
    text = with_column("t", [3, 1, 1, 2, 2, 1]).append_column(
        "s", [["TEST", "train", "train", "Val", "test", "2"]]
    )
    number = text.set_column(3, "s", [[2, 0, 0, 1, 2, 2]])
    columns = Columns("u", "i", "t", split="s")
    assert marks(built(text, columns, options=split)) == [[0, 1, 2], [0, 2], [2]]
    assert (
        built(number, columns, options=split).fingerprint == built(text, columns, options=split).fingerprint
    )


def test_a_rating_that_is_not_a_number_counts_as_missing():
    rated = table().append_column("r", [[5.0, float("nan"), None, 1.0, 4.0, 4.0]])
    columns, filters = Columns("u", "i", "t", "r"), Filters("r", 4.0)
    dataset = built(rated, columns, options=Options(filters=filters))
    assert histories(dataset) == {"ann": ["pen"], "bob": ["pen"], "cyd": ["cap"]}


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("u", pa.array([None, "b", None, "a", "b", "c"]), "user ids (column 'u'): 2 of 6 are missing"),
        ("i", pa.nulls(N), "item ids (column 'i'): 6 of 6 are missing"),
        ("i", [1.0, 2.5, 3.0, 0.5, 1.0, 1.0], "item ids (column 'i'): 2 are not whole numbers, such as 0.5"),
        ("u", [1.0, float("inf")] * 3, "user ids (column 'u'): 3 are not whole numbers, such as inf"),
        ("u", [1e17] * N, "user ids (column 'u'): 6 are not whole numbers, such as 1e+17"),
        ("i", [[1]] * N, "item ids (column 'i') are of type array<int64>; an id is a string"),
        ("i", [b"1"] * N, "item ids (column 'i') are of type binary; an id is a string"),
        ("i", pa.array([2**64 - 1] * N, pa.uint64()), "out of range for the destination type INT64"),
        ("t", pa.array([1, None] * 3), "3 of 6 times (column 't') are missing"),
        ("t", [1.0, float("inf")] * 3, "3 of 6 times (column 't') cannot be read, such as inf"),
        ("t", [1.5, 1e13] * 3, "times (column 't') have fractions and go up to 1e+13"),
        (
            "t",
            ["2024-01-01", "yesterday", "2024-13-01"] * 2,
            "4 of 6 times (column 't') cannot be read, such as '2024-13-01'",
        ),
        ("t", ["1", "2", "soon"] * 2, "2 of 6 times (column 't') cannot be read, such as 'soon'"),
        ("t", [True] * N, "times (column 't') are of type boolean; allowed: timestamp, date, integer"),
        ("t", [dt.time(1)] * N, "times (column 't') are of type time; allowed: timestamp, date, integer"),
    ],
)
def test_columns_that_cannot_be_read_are_refused_with_a_count_or_an_example(name, values, message):
    with pytest.raises(DataError) as caught:
        built(with_column(name, values))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["4", "good", "3"] * 2, "ratings (column 'r'): 2 of 6 are not numbers, such as 'good'"),
        ([dt.date(2024, 1, 1)] * N, "ratings (column 'r') are of type date; a rating is a number"),
    ],
)
def test_ratings_that_cannot_be_read_are_refused(values, message):
    options = Options(filters=Filters("r", 4.0))
    with pytest.raises(DataError) as caught:
        built(table().append_column("r", [values]), Columns("u", "i", "t", "r"), options=options)
    assert message in str(caught.value)


def test_yes_and_no_are_no_split_marks():
    marked = table().append_column("s", [[True, False] * 3])
    with pytest.raises(DataError, match="holds False, True; allowed: train"):
        built(marked, Columns("u", "i", "t", split="s"), options=Options(split=GivenSplit("s")))


def test_unknown_split_marks_are_refused():
    marked = table().append_column("s", [["train", "dev", None, "train", "test", "test"]])
    with pytest.raises(DataError, match="holds 'dev', None; allowed: train, valid, validation, val, test"):
        built(marked, Columns("u", "i", "t", split="s"), options=Options(split=GivenSplit("s")))


def test_a_missing_column_is_named_with_the_closest_and_all_there_are():
    frame = pd.DataFrame(EVENTS, columns=["user", "item_id", "time"])
    with pytest.raises(DataError) as caught:
        built(frame, Columns("user_id", "item_id", "time"))
    assert str(caught.value) == (
        "the event table has no column 'user_id' (did you mean 'user'?); it has: user, item_id, time"
    )


def test_mixed_ids_are_refused_with_their_counts():
    frame = pd.DataFrame({"u": ["a", 1, 2], "i": [1, 2, 3], "t": [1, 2, 3]})
    with pytest.raises(DataError, match=r"column 'u' holds values of mixed types \(2 int, 1 str\)"):
        built(frame)


def test_a_table_without_rows_is_refused():
    with pytest.raises(DataError, match="the event table has no rows"):
        built(table().slice(0, 0))


@pytest.mark.parametrize(
    "make", [lambda t: t, lambda t: t.to_pandas(), pl.from_arrow, lambda t: pl.from_arrow(t).lazy()]
)
def test_every_kind_of_table_gives_the_same_data_set(make):
    expected = built(table())
    dataset = built(make(table()))
    assert histories(dataset) == {"ann": ["ink", "cap", "pen"], "bob": ["ink", "pen"], "cyd": ["cap"]}
    assert dataset.fingerprint == expected.fingerprint


def test_what_is_no_table_is_refused():
    with pytest.raises(
        DataError, match="cannot read the event table from a dict; allowed: a path, a database address"
    ):
        built({"u": [1]})
