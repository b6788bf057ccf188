from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lexrec.data._engine import working
from lexrec.data.filters import Filters, k_core, size, steps
from lexrec.errors import DataError

PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30)
"""(user, item) of each event, in order."""


@pytest.fixture(scope="module")
def engine():
    with working(None) as engine:
        yield engine


def load(engine, events, ratings=None):
    columns = {
        "user": pa.array([user for user, _ in events], pa.int32()),
        "item": pa.array([item for _, item in events], pa.int32()),
        "row": pa.array(range(len(events)), pa.int64()),
    }
    if ratings is not None:
        columns["rating"] = pa.array(ratings, pa.float64())
    return engine.load(pa.table(columns))


def left(engine, events):
    rows = engine.rows(events.order_by("row")).to_pylist()
    return [(row["user"], row["item"]) for row in rows]


def after(engine, events, filters, ratings=None):
    table = load(engine, events, ratings)
    for step in steps(filters, engine, ["row"]):
        table = step.apply(table)
    return left(engine, table)


def core_by_loop(events, user_k, item_k):
    while True:
        users, items = Counter(u for u, _ in events), Counter(i for _, i in events)
        kept = [(u, i) for u, i in events if users[u] >= user_k and items[i] >= item_k]
        if kept == events:
            return kept
        events = kept


@settings(max_examples=30)
@given(PAIRS, st.integers(0, 4), st.integers(0, 4))
def test_the_k_core_is_the_fixed_point_of_a_loop(engine, events, user_k, item_k):
    table = k_core(load(engine, events), engine, user_k, item_k)
    assert left(engine, table) == core_by_loop(events, user_k, item_k)


def test_a_k_core_that_unravels_one_by_one_is_followed_to_its_end(engine):
    # Each removal makes the next: user n has items n and n + 1, and the last item has one event.
    chain = [(n, n + step) for n in range(40) for step in (0, 1)]
    assert after(engine, chain, Filters(k_core=2)) == []
    ring = [*chain, (40, 40), (40, 0)]
    assert after(engine, ring, Filters(k_core=2)) == ring


@settings(max_examples=30)
@given(PAIRS)
def test_first_and_last_keep_one_event_of_each_pair(engine, events):
    first = list(dict.fromkeys(events))
    assert after(engine, events, Filters(duplicates="first")) == first
    last = list(dict.fromkeys(reversed(events)))[::-1]
    assert after(engine, events, Filters(duplicates="last")) == last


@settings(max_examples=30)
@given(PAIRS)
def test_consecutive_keeps_one_event_of_each_run(engine, events):
    newest, kept = {}, []
    for user, item in events:
        if newest.get(user) != item:
            kept.append((user, item))
        newest[user] = item
    assert after(engine, events, Filters(duplicates="consecutive")) == kept


@settings(max_examples=15)
@given(PAIRS, st.integers(2, 5))
def test_short_users_are_dropped_whole(engine, events, least):
    length = Counter(user for user, _ in events)
    expected = [event for event in events if length[event[0]] >= least]
    assert after(engine, events, Filters(min_length=least)) == expected


def test_ratings_below_or_missing_are_dropped(engine):
    events = [(0, n) for n in range(4)]
    ratings = [3.5, 4.0, None, 5.0]
    assert after(engine, events, Filters(rating="stars", min_rating=4), ratings) == [(0, 1), (0, 3)]


def test_filters_come_in_their_documented_order(engine):
    asked = Filters("stars", 3.0, "first", k_core=2, min_length=2)
    assert [step.name for step in steps(asked, engine, ["row"])] == [
        "rating",
        "duplicates",
        "k-core",
        "min length",
    ]
    assert list(steps(Filters(), engine, ["row"])) == []


def test_a_later_filter_sees_what_the_earlier_left(engine):
    # Without its repeats user 0 has one event, too few to stay.
    events = [(0, 1), (0, 1), (1, 1), (1, 2)]
    assert after(engine, events, Filters(duplicates="first", min_length=2)) == [(1, 1), (1, 2)]


def test_users_and_items_may_have_a_k_of_their_own(engine):
    assert (Filters(k_core=5, user_core=2).user_k, Filters(k_core=5, user_core=2).item_k) == (2, 5)
    assert (Filters(item_core=3).user_k, Filters(item_core=3).item_k) == (0, 3)
    events = [(0, 1), (1, 1), (2, 2)]
    assert after(engine, events, Filters(item_core=2)) == [(0, 1), (1, 1)]


def test_size_counts_distinct_ids(engine):
    assert size(load(engine, [(0, 1), (0, 1), (3, 2)]), engine) == (3, 2, 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rating": "stars"}, "a rating column and a least rating go together"),
        ({"min_rating": 3.0}, "a rating column and a least rating go together"),
        ({"duplicates": "none"}, "duplicates 'none'; allowed: keep, first, last, consecutive"),
        ({"k_core": -1}, "at least 0, got -1"),
        ({"min_length": -2}, "at least 0, got -2"),
    ],
)
def test_filters_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(DataError, match=message):
        Filters(**wrong)
