import numpy as np
import pytest
import torch
from worlds import world

from lexrec.data.dataset import TEST, TRAIN, VALIDATION
from lexrec.errors import DataError
from lexrec.evaluation.events import Pairs, evaluation_events, histories, seen_items

T, V, X = TRAIN, VALIDATION, TEST


def rolling():
    """Two users under a time split; the second has only test events."""
    return world(
        [[1, 2, 3, 4, 2], [5, 6]],
        n_items=6,
        splits=[[T, T, V, X, X], [X, X]],
        times=[[10, 20, 30, 40, 50], [15, 25]],
    )


def test_each_test_event_is_one_event_with_all_earlier_ones_as_history():
    dataset = rolling()
    events = evaluation_events(dataset, "test")
    assert events.user_E.tolist() == [0, 0, 1, 1]
    assert events.target_E.tolist() == [4, 2, 5, 6]
    spans = zip(events.start_E, events.end_E, strict=True)
    assert [dataset.item_N[a:b].tolist() for a, b in spans] == [[1, 2, 3], [1, 2, 3, 4], [], [5]]
    assert events.length_E.tolist() == [3, 4, 0, 1]


def test_the_history_of_a_validation_event_ends_before_it():
    events = evaluation_events(rolling(), "validation")
    assert (events.target_E.tolist(), events.start_E.tolist(), events.end_E.tolist()) == ([3], [0], [2])


def test_users_without_events_do_not_shift_the_others():
    dataset = world([[1, 2, 3], [], [3, 2, 1]], n_items=3, splits=[[T, T, X], [], [T, T, X]])
    assert evaluation_events(dataset, "test").user_E.tolist() == [0, 2]


def test_a_split_without_events_is_an_error_that_says_what_to_do():
    with pytest.raises(DataError, match="no validation events; prepare it with a split that makes some"):
        evaluation_events(world([[1, 2]], n_items=2, splits=[[T, X]]), "validation")


def test_histories_are_the_newest_items_left_padded_with_their_times():
    dataset = rolling()
    batch = histories(dataset, evaluation_events(dataset, "test"), np.array([1, 2, 3]), length=3)
    assert batch.item_BL.tolist() == [[2, 3, 4], [0, 0, 0], [0, 0, 5]]
    assert batch.length_B.tolist() == [3, 0, 1]
    assert batch.user_B.tolist() == [0, 1, 1]
    assert batch.time_BL is not None
    assert batch.time_BL.tolist() == [[20, 30, 40], [0, 0, 0], [0, 0, 15]]


def test_histories_without_times_have_none():
    dataset = world([[1, 2, 3]], n_items=3)
    assert histories(dataset, evaluation_events(dataset, "test"), np.array([0]), 2).time_BL is None


def test_seen_items_are_those_of_the_whole_history_not_of_a_window():
    dataset = rolling()
    seen = seen_items(dataset, evaluation_events(dataset, "test"), np.array([3, 1]))
    assert list(zip(seen.row_S.tolist(), seen.item_S.tolist(), strict=True)) == [
        *[(0, 5)],
        *[(1, 1), (1, 2), (1, 3), (1, 4)],
    ]


def test_pairs_within_a_block_count_items_from_its_start():
    pairs = Pairs.of([[1, 5], [], [4]]).within(4, 6)
    assert (pairs.row_S.tolist(), pairs.item_S.tolist()) == ([0, 2], [1, 0])


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1]])
def test_pairs_are_split_by_rows_in_whatever_order_they_come(order):
    pairs = Pairs(torch.tensor([0, 0, 1, 3, 3])[order], torch.tensor([5, 6, 7, 8, 9])[order])
    parts = [
        sorted(zip(*map(torch.Tensor.tolist, part), strict=True)) for part in pairs.split([0, 1, 1, 3, 4])
    ]
    assert parts == [[(0, 5), (0, 6)], [], [(0, 7)], [(0, 8), (0, 9)]]
    assert [len(part.row_S) for part in Pairs.of([[], []]).split([0, 1, 2])] == [0, 0]
