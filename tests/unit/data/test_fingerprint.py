import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lexrec.data._fingerprint import fingerprint

USERS = pa.table({"user_id": ["a", "b"]})
TEXTS = st.lists(st.one_of(st.none(), st.text(max_size=4)), max_size=6)


def of(column, arrays=None):
    return fingerprint(arrays or {}, USERS, pa.table({"x": column}))


@pytest.mark.parametrize(
    "kinds",
    [
        [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
        [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint32()],
        [pa.float32(), pa.float64()],
        [pa.list_(pa.int8()), pa.large_list(pa.int64())],
        [pa.list_(pa.large_string()), pa.large_list(pa.string())],
    ],
    ids=["text", "integers", "floats", "lists", "lists of text"],
)
def test_the_width_of_a_type_does_not_count(kinds):
    values = {"t": ["é", None, ""], "i": [1, None, 3], "f": [0.5, None, -2.0], "l": [[1, 2], None, [], [3]]}
    kind = kinds[0]
    inner = pa.types.is_list(kind) and pa.types.is_large_string(kind.value_type)
    sample = (
        [["a", None], None, []] if inner
        else values["l"] if pa.types.is_list(kind)
        else values["f"] if pa.types.is_floating(kind)
        else values["i"] if pa.types.is_integer(kind)
        else values["t"]
    )  # fmt: skip
    first = pa.array(sample, kind)
    prints = {of(pa.array(sample, kinds[-1]) if pa.types.is_dictionary(k) else first.cast(k)) for k in kinds}
    assert len(prints) == 1


@settings(max_examples=50)
@given(TEXTS, TEXTS, st.integers(0, 6))
def test_equal_columns_have_equal_prints_and_others_have_not(one, other, cut):
    chunked = pa.chunked_array([pa.array(one[:cut], pa.string()), pa.array(one[cut:], pa.string())])
    sliced = pa.array(["before", *one, "after"], pa.large_string()).slice(1, len(one))
    expected = of(pa.array(one, pa.string()))
    assert of(chunked) == of(sliced) == expected
    assert (of(pa.array(other, pa.string())) == expected) == (one == other)


def test_values_that_only_look_alike_differ():
    columns = [
        pa.array(["1"]),
        pa.array([1]),
        pa.array([1.0]),
        pa.array([True]),
        pa.array([[1]]),
        pa.array([None], pa.int64()),
        pa.array([0]),
        pa.array([""]),
        pa.array([None], pa.string()),
        pa.array([[]], pa.list_(pa.int64())),
        pa.array([None], pa.list_(pa.int64())),
        pa.array([dt.date(2024, 1, 1)]),
        pa.array([2**64 - 1], pa.uint64()),
    ]
    assert len({of(column) for column in columns}) == len(columns)


def test_texts_are_kept_apart():
    assert of(pa.array(["ab", "c"])) != of(pa.array(["a", "bc"]))
    assert of(pa.array([["a"], ["b"]])) != of(pa.array([["a", "b"], []]))


def test_the_order_of_columns_does_not_count_but_their_names_do():
    one, two = pa.array([1]), pa.array([2])
    ab = fingerprint({}, USERS, pa.table({"a": one, "b": two}))
    assert fingerprint({}, USERS, pa.table({"b": two, "a": one})) == ab
    assert fingerprint({}, USERS, pa.table({"b": one, "a": two})) != ab
    assert fingerprint({}, pa.table({"a": one, "b": two}), USERS) != ab


def test_arrays_count_with_their_names_types_and_shapes():
    flat = np.arange(4, dtype=np.int32)
    variants = [
        {"item": flat},
        {"time": flat},
        {"item": flat.astype(np.int64)},
        {"item": flat.reshape(2, 2)},
        {"item": flat[::-1]},
        {"item": flat[:0]},
    ]
    prints = {fingerprint(arrays, USERS, USERS) for arrays in variants}
    assert len(prints) == len(variants)
    assert fingerprint({"item": np.arange(8, dtype=np.int32)[::2] // 2}, USERS, USERS) in prints
