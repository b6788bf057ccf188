from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexrec.data import splits
from lexrec.data.splits import INTEGER, MICROSECOND, MILLIONTH, GivenSplit, LeaveOneOut, TimeSplit
from lexrec.errors import DataError

HISTORIES = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6).map(sorted), min_size=1, max_size=6)
"""Times of each user, in order."""


def flat(rows):
    offset_U = np.cumsum([0, *(len(row) for row in rows)])
    return np.array([value for row in rows for value in row], dtype=np.int64), offset_U


def rows(flat_N, offset_U):
    return [flat_N[start:end].tolist() for start, end in pairwise(offset_U)]


@given(HISTORIES)
def test_leave_one_out_is_what_a_loop_does(histories):
    _, offset_U = flat(histories)
    marked = splits.leave_one_out(offset_U)
    expected = [[0] * (len(h) - 2) + [1, 2] if len(h) >= 3 else [0] * len(h) for h in histories]
    assert rows(marked.mark_N, offset_U) == expected
    assert marked.facts == {"users_all_train": sum(len(h) < 3 for h in histories)}


@given(HISTORIES, st.integers(0, 10), st.integers(0, 10))
def test_a_time_split_at_given_moments_is_what_a_loop_does(histories, one, other):
    validation_from, test_from = sorted((one, other))
    time_N, offset_U = flat(histories)
    split = TimeSplit(validation_from=str(validation_from), test_from=test_from)
    marked = splits.by_time(time_N, offset_U, INTEGER, split)
    expected = [[2 if t >= test_from else 1 if t >= validation_from else 0 for t in h] for h in histories]
    assert rows(marked.mark_N, offset_U) == expected
    only = sum(2 in user and 0 not in user for user in expected)
    assert marked.facts["users_test_only"] == only


@given(HISTORIES, st.integers(0, 4), st.integers(0, 4))
def test_shares_of_a_time_split_are_the_least_that_reach_them(histories, validation, test):
    time_N, offset_U = flat(histories)
    split = TimeSplit(validation / 10, test / 10)
    mark_N = splits.by_time(time_N, offset_U, INTEGER, split).mark_N
    ordered = sorted(time_N.tolist())
    for mark, share in ((2, test), (1, validation)):
        before = [t for t, m in zip(time_N, mark_N, strict=True) if m < mark]
        here = sorted(t for t, m in zip(time_N, mark_N, strict=True) if m == mark)
        enough = len(here) >= share * len(ordered) / 10
        # Short of its share only where earlier splits have nothing left to give.
        assert enough or not before
        without_first = [t for t in here if t > here[0]] if here else []
        assert not here or len(without_first) < share * len(ordered) / 10
        assert not before or not here or max(before) < here[0]


@given(HISTORIES, st.integers(0, 9))
def test_marks_never_fall_within_a_user(histories, test_from):
    time_N, offset_U = flat(histories)
    for marked in (
        splits.leave_one_out(offset_U),
        splits.by_time(time_N, offset_U, INTEGER, TimeSplit(0.3, 0.2)),
        splits.by_time(time_N, offset_U, INTEGER, TimeSplit(0.3, test_from=test_from)),
    ):
        assert all(row == sorted(row) for row in rows(marked.mark_N, offset_U))


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5))
def test_a_given_split_is_taken_or_its_fault_found(marks):
    mark_N, offset_U = flat(marks)
    marked, fault = splits.given(mark_N.astype(np.uint8), offset_U, GivenSplit(validation="none"))
    falling = [place for place, row in enumerate(marks) if row != sorted(row)]
    assert fault == (falling[0] if falling else None)
    assert rows(marked.mark_N, offset_U) == marks


def test_a_given_split_without_validation_takes_the_last_training_event():
    marks = [[0, 0, 0, 2, 2], [0, 0, 2], [0, 0, 0, 0], [2], [0]]
    mark_N, offset_U = flat(marks)
    marked, fault = splits.given(mark_N.astype(np.uint8), offset_U, GivenSplit())
    assert fault is None
    assert rows(marked.mark_N, offset_U) == [[0, 0, 1, 2, 2], [0, 0, 2], [0, 0, 0, 1], [2], [0]]
    assert marked.facts == {"users_with_validation_from_train": 2}


def test_a_given_split_with_validation_anywhere_is_left_alone():
    mark_N, offset_U = flat([[0, 0, 0, 2], [0, 1]])
    marked, _ = splits.given(mark_N.astype(np.uint8), offset_U, GivenSplit())
    assert rows(marked.mark_N, offset_U) == [[0, 0, 0, 2], [0, 1]]


def test_moments_are_read_in_the_unit_of_the_times():
    day = 86_400_000_000
    time_N, offset_U = np.array([0, day, 2 * day]), np.array([0, 3])
    split = TimeSplit(validation_from="1970-01-02", test_from="1970-01-03T02:00:00+02:00")
    marked = splits.by_time(time_N, offset_U, MICROSECOND, split)
    assert marked.mark_N.tolist() == [0, 1, 2]
    assert splits.rule(split, marked) == (
        "time (validation from 1970-01-02T00:00:00.000000, test from 1970-01-03T00:00:00.000000)"
    )
    marked = splits.by_time(time_N // 100_000, offset_U, MILLIONTH, TimeSplit(0, test_from="1.5"))
    assert marked.facts["test_from"] == "1.500000"
    assert marked.mark_N.tolist() == [0, 0, 2]


def test_the_rule_of_each_split_is_one_line():
    marked = splits.leave_one_out(np.array([0, 3]))
    assert splits.rule(LeaveOneOut(), marked) == "leave-one-out"
    assert splits.rule(GivenSplit("part", "none"), marked) == "given (column part, validation none)"


@pytest.mark.parametrize(
    ("unit", "moment", "form"),
    [
        (MICROSECOND, "May", "a moment such as 2024-05-01"),
        (INTEGER, "2024-05-01", "an integer"),
        (MILLIONTH, "noon", "a number"),
    ],
)
def test_a_moment_of_another_unit_is_refused(unit, moment, form):
    with pytest.raises(DataError, match=f"time split: '{moment}' is not {form}"):
        splits.by_time(np.array([1]), np.array([0, 1]), unit, TimeSplit(test_from=moment))


def test_moments_in_the_wrong_order_are_refused():
    with pytest.raises(DataError, match="validation begins at 5, after test at 3; swap them"):
        splits.by_time(np.arange(9), np.array([0, 9]), INTEGER, TimeSplit(validation_from=5, test_from=3))


@pytest.mark.parametrize("shares", [(-0.1, 0.1), (0.5, 0.5), (0.1, 1.0)])
def test_shares_that_leave_no_training_are_refused(shares):
    with pytest.raises(DataError, match="each is at least 0 and their sum is below 1"):
        TimeSplit(*shares)


def test_an_unknown_validation_rule_is_refused():
    with pytest.raises(DataError, match="validation 'some'; allowed: last-train, none"):
        GivenSplit(validation="some")
