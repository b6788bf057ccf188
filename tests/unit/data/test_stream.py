"""Streamed batches are those cut on the device, and nothing of a thread is left behind."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from lexrec.data import stream
from lexrec.data.batch import Batch
from lexrec.data.dataset import Dataset
from lexrec.data.stream import StreamedEpoch, build_epoch
from lexrec.data.windows import Batches, Epoch, Samples, Windows
from tests.worlds import world

CPU = torch.device("cpu")
LENGTH = 5


@pytest.fixture(params=["with times", "without"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    rng = np.random.default_rng(0)
    rows = [list(rng.integers(1, 10, n)) for n in rng.integers(3, 15, 40)]
    times = [[100 * u + t for t in range(len(row))] for u, row in enumerate(rows)]
    return world(rows, 9, times=times if request.param == "with times" else None).save(tmp_path / "data")


def filled(epoch: Batches, samples: Samples, number: int = 0) -> Batches:
    samples.fill(epoch, seed=1, number=number)
    return epoch


def same(one: Batch, other: Batch) -> bool:
    pairs = zip(one[:4], other[:4], strict=True)
    alike = all(a is b is None or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in pairs)
    return alike and one.capacity == other.capacity


def resident(dataset: Dataset, samples: Samples, batch_size: int) -> Epoch:
    return Epoch(Windows(dataset, LENGTH, CPU), samples.n_batches(batch_size), batch_size)


def streamed(dataset: Dataset, samples: Samples, batch_size: int) -> StreamedEpoch:
    return StreamedEpoch(Windows(dataset, LENGTH, CPU), samples.n_batches(batch_size), batch_size, CPU)


@pytest.mark.parametrize("sampling", ["history", "prefix"])
@pytest.mark.parametrize("first", [0, 3])
def test_streamed_batches_are_the_resident_ones(sampling: str, first: int, dataset: Dataset) -> None:
    samples = Samples.of(dataset, sampling, LENGTH - 1, 1)  # type: ignore[arg-type]
    expected, found = resident(dataset, samples, 4), streamed(dataset, samples, 4)
    for number in (0, 1):
        filled(expected, samples, number)
        filled(found, samples, number)
        assert (found.n_items, found.capacity_T) == (expected.n_items, expected.capacity_T)
        assert len(found) == len(expected) > 6
        with found.reading(first):
            for i in range(first, len(found)):
                found.ready(i)
                batch = found.batch_at(torch.tensor([i]), found.capacity_T[i])
                assert same(batch, expected.batch(i))
                assert same(found.batch(i), expected.batch(i))


def test_batches_asked_for_out_of_turn_are_a_fault(dataset: Dataset) -> None:
    samples = Samples.of(dataset, "history", LENGTH - 1, 1)
    epoch = streamed(dataset, samples, 4)
    filled(epoch, samples)
    with epoch.reading(0), pytest.raises(AssertionError, match="batch 2 was asked for, 0 is next"):
        epoch.ready(2)


def test_a_pass_that_is_cut_short_leaves_no_thread(dataset: Dataset) -> None:
    samples = Samples.of(dataset, "prefix", LENGTH - 1, 1)
    epoch = streamed(dataset, samples, 2)
    filled(epoch, samples)

    def one_batch() -> None:
        with epoch.reading(0):
            epoch.ready(0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one_batch()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lexrec-windows")]


def test_what_goes_wrong_while_cutting_is_raised_where_the_batch_is_needed(dataset: Dataset) -> None:
    samples = Samples.of(dataset, "history", LENGTH - 1, 1)
    epoch = streamed(dataset, samples, 4)
    filled(epoch, samples)
    epoch.windows.item_N = epoch.windows.item_N[:1]  # as if the file had become shorter
    with epoch.reading(0), pytest.raises(IndexError):
        epoch.ready(0)


def test_data_on_a_cpu_is_used_where_it_lies(dataset: Dataset) -> None:
    windows = Windows(dataset, LENGTH, CPU)
    assert windows.item_N.data_ptr() == dataset.item_N.ctypes.data


def test_prefixes_are_held_by_user(dataset: Dataset) -> None:
    samples = Samples.of(dataset, "prefix", LENGTH - 1, 1)
    assert len(samples) > 3 * dataset.n_users
    tensors = [value for value in vars(samples).values() if isinstance(value, torch.Tensor)]
    assert all(len(tensor) <= dataset.n_users + 1 for tensor in tensors)


def test_spans_in_pieces_are_the_same(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = Samples.of(dataset, "prefix", LENGTH - 1, 1)
    expected = resident(dataset, samples, 4)
    filled(expected, samples)
    monkeypatch.setattr("lexrec.data.windows.CHUNK", 9)
    found = resident(dataset, samples, 4)
    filled(found, samples)
    assert torch.equal(found.span_3TB, expected.span_3TB)
    assert found.capacity_T == expected.capacity_T


@pytest.mark.parametrize(("said", "kind"), [(None, Epoch), ("0", Epoch), ("1", StreamedEpoch)])
def test_the_environment_can_ask_for_a_stream(
    said: str | None, kind: type, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(stream.STREAM, raising=False)
    if said is not None:
        monkeypatch.setenv(stream.STREAM, said)
    samples = Samples.of(dataset, "history", LENGTH - 1, 1)
    assert isinstance(build_epoch(dataset, samples, LENGTH, 4, CPU), kind)


@pytest.mark.gpu
def test_data_beyond_its_share_of_a_gpu_is_streamed(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(stream.STREAM, raising=False)
    cuda = torch.device("cuda")
    assert not stream.streams(dataset, 100, cuda)
    monkeypatch.setattr(stream, "_SHARE", 0.0)
    assert stream.streams(dataset, 100, cuda)
