"""Windows are cut, and become inputs and targets: kernels give what plain PyTorch gives."""

import pytest
import torch

from lexrec.data.batch import Batch, collate
from lexrec.data.windows import Epoch, Samples, Windows
from lexrec.kernels.shift import Shifted, shift
from tests.unit.kernels.conftest import Interpreted
from tests.worlds import world

WINDOWS = [
    [[1, 2, 3], [], [4], [5, 6], [7, 8, 9, 10, 11]],
    [[1]],
    [list(range(1, 6))] * 3,
]


def assert_same(found: Shifted, expected: Shifted) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one.cpu(), other)


def windows(rows: list[list[int]]) -> Batch:
    return collate(rows, 5)


def test_a_window_is_cut_in_two() -> None:
    found = shift(windows([[1, 2, 3], [4], [5, 6]]), 5)
    assert found.item_BL.tolist() == [[0, 0, 1, 2], [0, 0, 0, 0], [0, 0, 0, 5]]
    assert found.length_B.tolist() == [2, 0, 1]
    assert found.slot_N.tolist() == [2, 3, 11, 12, 12]
    assert found.target_N.tolist() == [2, 3, 6, 1, 1]
    assert found.weight_N.tolist() == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("spare", [0, 1, 9])
@pytest.mark.parametrize("rows", WINDOWS)
def test_the_kernel_cuts_alike(rows: list[list[int]], spare: int, interpreted: Interpreted) -> None:
    batch = windows(rows)
    capacity = max(1, sum(max(len(row) - 1, 0) for row in rows) + spare)
    found = interpreted("_shift_triton").shift(batch.item_BL, batch.length_B, capacity)
    assert_same(Shifted(*found), shift(batch, capacity))


@pytest.mark.gpu
def test_a_gpu_cuts_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 6, (300,), generator=generator).tolist()
    batch = windows([list(range(1, 1 + length)) for length in lengths])
    assert_same(shift(batch.to("cuda"), 1216), shift(batch, 1216))


def epoch_of(device: str) -> Epoch:
    rows = [[1 + i % 9] * (2 + i % 7) for i in range(11)]
    dataset = world(rows, 9, times=[[100 * u + t for t in range(len(row))] for u, row in enumerate(rows)])
    samples = Samples.of(dataset, "history", 5, 1)
    epoch = Epoch(Windows(dataset, 6, torch.device(device)), samples.n_batches(4), 4)
    samples.fill(epoch, seed=1, number=0)
    return epoch


def assert_same_batch(found: Batch, expected: Batch) -> None:
    assert found.capacity == expected.capacity
    for one, other in zip(found[:4], expected[:4], strict=True):
        assert one is not None
        assert other is not None
        assert one.dtype == other.dtype
        assert torch.equal(one.cpu(), other)


def test_the_kernel_cuts_the_same_windows(interpreted: Interpreted) -> None:
    interpreted("_shift_triton")
    from lexrec.data import _windows_triton

    epoch, windows = epoch_of("cpu"), epoch_of("cpu").windows
    for i in range(len(epoch)):
        given = windows.item_N, windows.time_N, epoch.span_3TB, torch.tensor([i]), windows.length
        assert_same_batch(_windows_triton.cut(*given, epoch.capacity_T[i]), epoch.batch(i))


@pytest.mark.gpu
def test_a_gpu_cuts_the_same_windows() -> None:
    epoch, expected = epoch_of("cuda"), epoch_of("cpu")
    for i in range(len(epoch)):
        found = epoch.batch_at(torch.tensor([i], device="cuda"), epoch.capacity_T[i])
        assert_same_batch(found._replace(capacity=None), expected.batch(i)._replace(capacity=None))
