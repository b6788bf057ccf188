"""Training windows of data that a device has no room for: cut on the host, ahead of the steps that read them.

Threads cut batches from the memory map into a few pinned buffers; each is copied, just before its step,
into the one place on the device that a captured step reads. The batches are those of `Epoch`.

Dimension key: T batches of an epoch, B rows, L window length.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from lexrec.data.batch import Batch
from lexrec.data.dataset import Dataset
from lexrec.data.windows import Batches, Epoch, Samples, Windows, batch_pieces, capacities

STREAM = "LEXREC_STREAM"
"""Environment variable: 1 streams training windows whatever their size, 0 never."""
_SHARE = 0.5
"""Of a GPU's free memory, for events and spans that stay there."""
_AHEAD = 8
"""Batches that are cut, being cut or being copied at any time."""
_COPYING = 2
"""Of those, batches that may be copied while the host goes on."""
_THREADS = 4
"""Threads that cut."""


def build_epoch(
    dataset: Dataset, samples: Samples, length: int, batch_size: int, device: torch.device
) -> Batches:
    """An epoch on the device where it fits, streamed where not. Batches are the same either way.

    Args:
        dataset: where events come from.
        samples: what the epoch visits.
        length: events in a window.
        batch_size: rows of a batch.
        device: where batches are needed.
    """
    n_batches = samples.n_batches(batch_size)
    if streams(dataset, len(samples), device):
        windows = Windows(dataset, length, torch.device("cpu"))
        return StreamedEpoch(windows, n_batches, batch_size, device)
    return Epoch(Windows(dataset, length, device), n_batches, batch_size)


def streams(dataset: Dataset, n_samples: int, device: torch.device) -> bool:
    """Whether windows are streamed: if LEXREC_STREAM says so, or if they take too much of a GPU's memory."""
    said = os.environ.get(STREAM, "")
    if said or device.type != "cuda":
        return said not in ("", "0")
    n_bytes = sum(array.nbytes for array in (dataset.item_N, dataset.time_N) if array is not None)
    free, _ = torch.cuda.mem_get_info(device)
    return n_bytes + 3 * 8 * n_samples > _SHARE * free


class _Rows(NamedTuple):
    """One batch's numbers, in pinned memory or on the device."""

    item_BL: Tensor
    length_B: Tensor
    user_B: Tensor
    time_BL: Tensor | None

    def put(self, rows: "Batch | _Rows") -> None:
        """Take over the numbers of others of the same shape."""
        for mine, theirs in zip(self, rows[:4], strict=True):
            if mine is not None and theirs is not None:
                mine.copy_(theirs, non_blocking=True)


class StreamedEpoch:
    """An epoch whose windows are cut on the host.

    Args:
        windows: what cuts, on the CPU.
        n_batches: batches of an epoch (T).
        batch_size: rows of a batch (B).
        device: where batches are needed.
    """

    def __init__(self, windows: Windows, n_batches: int, batch_size: int, device: torch.device) -> None:
        self.windows, self.batch_size, self.device, self.n_items = windows, batch_size, device, 0
        self.capacity_T: list[int] = []
        self._n_batches = n_batches
        self._samples: Samples | None = None
        self._order_TB = torch.empty(0, 0)
        self._here = self._rows(device)
        self._pinned = [self._rows(torch.device("cpu")) for _ in range(_AHEAD)]
        self._ahead: _Ahead | None = None

    def __len__(self) -> int:
        return self._n_batches

    def take(self, samples: Samples, order_TB: Tensor) -> None:
        self._samples, self._order_TB = samples, order_TB
        n_inputs_T: list[int] = []
        for batches in batch_pieces(order_TB):
            n_inputs_T += samples.spans(order_TB[batches]).n_inputs.sum(1).tolist()
        self.n_items = sum(n_inputs_T)
        self.capacity_T = capacities(n_inputs_T, self.batch_size * self.windows.length, self.device)

    def batch(self, i: int) -> Batch:
        return self.cut(i)._replace(capacity=self.capacity_T[i]).to(self.device)

    def batch_at(self, at_1: Tensor, capacity: int) -> Batch:
        """What `ready` brought, which is the batch of that number."""
        return Batch(*self._here[:4], capacity=capacity)

    @contextmanager
    def reading(self, first: int) -> Iterator[None]:
        self._ahead = _Ahead(self, self._pinned, first)
        try:
            yield
        finally:
            self._ahead.stop()
            self._ahead = None

    def ready(self, i: int) -> None:
        """Copy batch i to where a step reads it; the copy is ordered before what is launched afterwards."""
        assert self._ahead is not None
        self._ahead.bring(i, self._here)

    def cut(self, i: int) -> Batch:
        """Batch i, on the host."""
        assert self._samples is not None
        start_B, end_B, user_B, _ = self._samples.spans(self._order_TB[i])
        return self.windows.cut(start_B, end_B, user_B)

    def _rows(self, device: torch.device) -> _Rows:
        is_pinned = self.device.type == "cuda" and device.type == "cpu"

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64, device=device, pin_memory=is_pinned)

        B, L = self.batch_size, self.windows.length
        time_BL = None if self.windows.time_N is None else zeros(B, L)
        return _Rows(zeros(B, L), zeros(B), zeros(B), time_BL)


class _Ahead:
    """Cuts the batches of an epoch in order, in threads, into as many buffers as there are.

    The threads make no call to the device: while a step is captured none is allowed from anywhere.
    """

    def __init__(self, epoch: StreamedEpoch, buffers: list[_Rows], first: int) -> None:
        self._epoch, self._next = epoch, first
        self._pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), "lexrec-windows")
        self._cutting: deque[tuple[int, _Rows, Future[None]]] = deque()
        self._copying: deque[tuple[_Rows, torch.cuda.Event | None]] = deque()
        for buffer in buffers:
            self._begin(buffer)

    def bring(self, i: int, here: _Rows) -> None:
        """Copy batch i, which must be the next, and cut another into a buffer whose copy is over."""
        number, buffer, done = self._cutting.popleft()
        assert number == i, f"batch {i} was asked for, {number} is next"
        done.result()
        here.put(buffer)
        self._copying.append((buffer, _recorded(self._epoch.device)))
        # The host may run ahead of the device, but not write into a buffer that the device still reads.
        if len(self._copying) > _COPYING:
            oldest, copied = self._copying.popleft()
            _wait(copied)
            self._begin(oldest)

    def stop(self) -> None:
        """End the threads, and wait for copies that still read their buffers."""
        self._pool.shutdown(cancel_futures=True)
        for _, copied in self._copying:
            _wait(copied)

    def _begin(self, buffer: _Rows) -> None:
        if self._next < len(self._epoch):
            done = self._pool.submit(self._cut, self._next, buffer)
            self._cutting.append((self._next, buffer, done))
            self._next += 1

    def _cut(self, i: int, buffer: _Rows) -> None:
        buffer.put(self._epoch.cut(i))


def _recorded(device: torch.device) -> torch.cuda.Event | None:
    """A mark behind what the device has been asked so far; on a CPU all of that is done."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


def _wait(event: torch.cuda.Event | None) -> None:
    if event is not None:
        event.synchronize()
