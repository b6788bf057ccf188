"""Samples, windows and slots against plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lexrec.data.batch import Places, collate, with_slots
from lexrec.data.dataset import TEST, TRAIN, VALIDATION, Dataset
from lexrec.data.windows import Epoch, Samples, Windows
from lexrec.models.base import append
from tests.worlds import world

CPU = torch.device("cpu")
histories = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=9), min_size=1, max_size=8)


def made(rows: list[list[int]]) -> Dataset:
    splits = [[TRAIN] * (len(r) - 2) + [VALIDATION, TEST] if len(r) > 2 else [TRAIN] * len(r) for r in rows]
    times = [[100 * u + t for t in range(len(row))] for u, row in enumerate(rows)]
    return world(rows, 9, splits, times)


def trained(row: list[int]) -> list[int]:
    return row[:-2] if len(row) > 2 else row


@given(histories, st.integers(1, 6))
def test_history_samples_are_each_users_newest_training_events(rows: list[list[int]], max_len: int) -> None:
    dataset = made(rows)
    samples = Samples.of(dataset, "history", max_len, 1)
    windows = Windows(dataset, max_len + 1, CPU)
    expected = [trained(row)[-(max_len + 1) :] for row in rows if len(trained(row)) > 1]
    spans = samples.spans(torch.arange(len(samples)))
    batch = windows.cut(*spans[:3])
    found = [row[row > 0].tolist() for row in batch.item_BL]
    assert found == expected
    assert batch.length_B.tolist() == [len(row) for row in expected]
    assert spans.n_inputs.tolist() == [len(row) - 1 for row in expected]


@given(histories, st.integers(1, 6))
def test_prefix_samples_are_every_training_event_with_a_past(rows: list[list[int]], max_len: int) -> None:
    dataset = made(rows)
    samples = Samples.of(dataset, "prefix", max_len, 1)
    spans = samples.spans(torch.arange(len(samples)))
    batch = Windows(dataset, max_len + 1, CPU).cut(*spans[:3])
    expected = [trained(row)[: t + 1][-(max_len + 1) :] for row in rows for t in range(1, len(trained(row)))]
    assert [row[row > 0].tolist() for row in batch.item_BL] == expected
    assert spans.n_inputs.tolist() == [len(row) - 1 for row in expected]


def test_times_travel_with_their_items() -> None:
    dataset = made([[1, 2, 3, 4, 5], [6, 7, 8, 9]])
    samples = Samples.of(dataset, "history", 4, 1)
    batch = Windows(dataset, 5, CPU).cut(*samples.spans(torch.arange(len(samples)))[:3])
    assert batch.time_BL is not None
    assert batch.time_BL.tolist() == [[0, 0, 0, 1, 2], [0, 0, 0, 100, 101]]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_an_epoch_visits_every_sample_once_and_fills_up_with_empty_rows(batch_size: int) -> None:
    rng = np.random.default_rng(0)
    dataset = made([list(rng.integers(1, 10, n)) for n in rng.integers(4, 12, 20)])
    samples = Samples.of(dataset, "history", 5, 1)
    epoch = Epoch(Windows(dataset, 6, CPU), samples.n_batches(batch_size), batch_size)
    samples.fill(epoch, seed=1, number=0)
    batches = [epoch.batch(i) for i in range(len(epoch))]
    assert all(len(batch.item_BL) == batch_size for batch in batches)
    users = torch.cat([batch.user_B for batch in batches])
    assert sorted(users[users >= 0].tolist()) == samples.user_V.tolist()
    last = batches[-1]
    assert (last.length_B[last.user_B < 0] == 0).all()
    for batch in batches:
        assert batch.capacity is not None
        assert batch.capacity >= int((batch.length_B - 1).clamp(min=0).sum())


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    dataset = made([[1 + i % 9] * 5 for i in range(30)])
    samples = Samples.of(dataset, "history", 5, 1)
    epoch = Epoch(Windows(dataset, 6, CPU), samples.n_batches(4), 4)

    def users(seed: int, number: int) -> list[list[int]]:
        samples.fill(epoch, seed=seed, number=number)
        return [epoch.batch(i).user_B.tolist() for i in range(len(epoch))]

    assert users(1, 0) == users(1, 0)
    assert users(1, 0) != users(1, 1)
    assert users(1, 0) != users(2, 0)


def test_a_batch_is_the_same_by_its_number_on_the_host_and_on_the_device() -> None:
    dataset = made([[1 + i % 9] * (3 + i % 5) for i in range(11)])
    samples = Samples.of(dataset, "history", 5, 1)
    epoch = Epoch(Windows(dataset, 6, CPU), samples.n_batches(4), 4)
    samples.fill(epoch, seed=1, number=0)
    for i in range(len(epoch)):
        one, two = epoch.batch(i), epoch.batch_at(torch.tensor([i]), epoch.capacity_T[i])
        assert one.capacity == two.capacity
        assert all(torch.equal(a, b) for a, b in zip(one[:4], two[:4], strict=True))


@given(st.lists(st.lists(st.integers(1, 9), max_size=5), min_size=1, max_size=6), st.integers(0, 4))
def test_slots_list_the_items_and_move_them_both_ways(rows: list[list[int]], spare: int) -> None:
    batch = collate(rows, 5)
    n_items = sum(len(row) for row in rows)
    slotted = with_slots(batch, n_items + spare)
    assert slotted.slot_N is not None
    flat_M = batch.item_BL.flatten()
    assert flat_M[slotted.slot_N[:n_items]].tolist() == [item for row in rows for item in row]
    assert (slotted.slot_N[n_items:] == batch.item_BL.numel()).all()
    if n_items + spare:
        places, x_BLD = Places.of(slotted), batch.item_BL[..., None].float()
        assert torch.equal(places.unpack(places.pack(x_BLD)), x_BLD)


def test_collate_keeps_the_newest_and_pads_on_the_left() -> None:
    batch = collate([[1, 2, 3, 4], [5], []], 3, times=[[10, 20, 30, 40], [50], []])
    assert batch.item_BL.tolist() == [[2, 3, 4], [0, 0, 5], [0, 0, 0]]
    assert batch.length_B.tolist() == [3, 1, 0]
    assert batch.time_BL is not None
    assert batch.time_BL.tolist() == [[20, 30, 40], [0, 0, 50], [0, 0, 0]]


def test_append_keeps_times_beside_their_items_and_the_newest_of_a_full_row() -> None:
    batch = collate([[1, 2, 3], [4]], 3, times=[[10, 20, 30], [40]])
    longer = append(batch, torch.tensor([5, 6]), torch.tensor([50, 60]), 4)
    assert longer.item_BL.tolist() == [[1, 2, 3, 5], [0, 0, 4, 6]]
    assert longer.time_BL is not None
    assert longer.time_BL.tolist() == [[10, 20, 30, 50], [0, 0, 40, 60]]
    full = append(longer, torch.tensor([7, 8]), torch.tensor([70, 80]), 4)
    assert full.item_BL.tolist() == [[2, 3, 5, 7], [0, 4, 6, 8]]
    assert full.length_B.tolist() == [4, 3]
    with pytest.raises(ValueError, match="an event needs a time exactly where the history has times"):
        append(batch, torch.tensor([5, 6]), None, 4)
