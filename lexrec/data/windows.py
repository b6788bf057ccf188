"""Training windows, cut on the device from the flat event array: no worker, no per-sample Python.

Dimension key: N events, S samples, V users who have samples, T batches of an epoch, B rows, L window length,
M = T * B places of an epoch.
"""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lexrec.data._chunks import CHUNK
from lexrec.data.batch import Batch
from lexrec.data.dataset import Dataset

_SLOT_ROUNDING = 64
"""Capacities are rounded up to this, so that few different shapes occur."""
_GPU_GRID = 16
"""On a GPU, where each shape is a graph to capture: to this share of the next power of two as well."""


class Windows:
    """Events on the device, and windows of them.

    Args:
        dataset: where events come from; its flat arrays are copied to a GPU, and used where they lie, in
            memory or mapped from their files, on a CPU.
        length: events in a window.
        device: where windows are cut.
    """

    def __init__(self, dataset: Dataset, length: int, device: torch.device) -> None:
        self.length = length
        self.item_N = _as_it_lies(dataset.item_N).to(device)
        self.time_N = None if dataset.time_N is None else _as_it_lies(dataset.time_N).to(device)
        self.age_L = torch.arange(length, device=device) - length

    def cut(self, start_B: Tensor, end_B: Tensor, user_B: Tensor, capacity: int | None = None) -> Batch:
        """The newest events of each row's span [start, end), left-padded. start == end: an empty row."""
        place_BL = end_B[:, None] + self.age_L
        is_item_BL = place_BL >= start_B[:, None]
        place_BL = place_BL.clamp(min=0)
        item_BL = self.item_N[place_BL].mul_(is_item_BL).long()  # PAD is 0
        time_BL = None
        if self.time_N is not None:
            time_BL = self.time_N[place_BL].masked_fill(~is_item_BL, 0)
        # Not the sum of `is_item`, which takes a GPU as long as the gather.
        length_B = (end_B - start_B).clamp(max=self.length)
        return Batch(item_BL, length_B, user_B, time_BL, capacity=capacity)


class Spans(NamedTuple):
    """Where windows are cut: [start, end) of the flat array. start == end == 0 and user -1: an empty row."""

    start: Tensor
    end: Tensor
    user: Tensor
    n_inputs: Tensor
    """Items the model reads of each."""


@dataclass(frozen=True)
class Samples:
    """What an epoch visits, by user: as many numbers as there are users, however many samples."""

    user_V: Tensor
    start_V: Tensor
    """Place of a user's oldest event."""
    end_V: Tensor
    """Place after a user's last training event."""
    first_V: Tensor
    """Samples of the users before each, V + 1 numbers."""
    sampling: Literal["history", "prefix"]
    max_len: int
    extra_events: int

    def __len__(self) -> int:
        return int(self.first_V[-1])

    @staticmethod
    def of(
        dataset: Dataset, sampling: Literal["history", "prefix"], max_len: int, extra_events: int
    ) -> "Samples":
        """The samples of one epoch.

        history: each user's training events, users with nothing to predict left out.
        prefix: the events up to and including each training event that has one before it.
        """
        n_train_U = dataset.train_end_U - dataset.start_U
        user_V = np.flatnonzero(n_train_U > 1)
        n_samples_V = n_train_U[user_V] - 1 if sampling == "prefix" else np.ones_like(user_V)
        first_V = np.concatenate([[0], np.cumsum(n_samples_V)])
        by_user = (user_V, dataset.start_U[user_V], dataset.train_end_U[user_V], first_V)
        user, start, end, first = (torch.from_numpy(a.astype(np.int64)) for a in by_user)
        return Samples(user, start, end, first, sampling, max_len, extra_events)

    def spans(self, sample: Tensor) -> Spans:
        """The spans of samples by number, of any shape; of -1 an empty one."""
        is_sample, sample = sample >= 0, sample.long().clamp(min=0)
        if self.sampling == "history":
            place, end = sample, self.end_V[sample]
        else:
            place = torch.searchsorted(self.first_V, sample, right=True) - 1
            end = self.start_V[place] + 2 + sample - self.first_V[place]
        start, user = self.start_V[place], self.user_V[place]
        n_inputs = (end - start).clamp(max=self.max_len + self.extra_events) - self.extra_events
        start, end, n_inputs = (value.where(is_sample, 0) for value in (start, end, n_inputs))
        return Spans(start, end, user.where(is_sample, -1), n_inputs)

    def n_batches(self, batch_size: int) -> int:
        """Batches of an epoch; the last one is filled up with empty rows."""
        return -(-len(self) // batch_size)

    def fill(self, epoch: "Batches", *, seed: int, number: int) -> None:
        """Put every sample once into `epoch`, in an order that depends on (seed, number) alone."""
        dtype = torch.int32 if len(self) < 2**31 else torch.int64
        order_M = torch.full((len(epoch) * epoch.batch_size,), -1, dtype=dtype)
        generator = _order_generator(seed, number)
        torch.randperm(len(self), generator=generator, dtype=dtype, out=order_M[: len(self)])
        epoch.take(self, order_M.view(len(epoch), epoch.batch_size))


class Batches(Protocol):
    """One pass over the samples, batch by batch."""

    batch_size: int
    capacity_T: list[int]
    """Slots that hold the items of each batch."""
    n_items: int
    """Items that the model reads in the whole pass."""

    def __len__(self) -> int: ...

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        ...

    def take(self, samples: Samples, order_TB: Tensor) -> None:
        """Make these samples the epoch's; -1 for none."""
        ...

    def batch(self, i: int) -> Batch:
        """Batch i."""
        ...

    def batch_at(self, at_1: Tensor, capacity: int) -> Batch:
        """The batch whose number stands in `at_1`, int64 [1] on the device: no host needs to know it."""
        ...

    def reading(self, first: int) -> AbstractContextManager[None]:
        """Around steps that read batches by `batch_at`, one after another from `first`."""
        ...

    def ready(self, i: int) -> None:
        """Called within `reading` before batch i is read by `batch_at`."""
        ...


class Epoch:
    """Batches cut on the device, from spans that lie there in buffers which every pass refills.

    Args:
        windows: what cuts.
        n_batches: batches of an epoch (T).
        batch_size: rows of a batch (B).
    """

    def __init__(self, windows: Windows, n_batches: int, batch_size: int) -> None:
        self.windows, self.batch_size, self.n_items = windows, batch_size, 0
        device = windows.item_N.device
        self.span_3TB = torch.zeros(3, n_batches, batch_size, dtype=torch.int64, device=device)
        self.capacity_T: list[int] = []

    def __len__(self) -> int:
        return self.span_3TB.shape[1]

    @property
    def device(self) -> torch.device:
        return self.span_3TB.device

    def take(self, samples: Samples, order_TB: Tensor) -> None:
        n_inputs_T = []
        for batches in batch_pieces(order_TB):
            *spans, n_inputs_tB = samples.spans(order_TB[batches])
            self.span_3TB[:, batches] = torch.stack(spans).to(self.device)
            n_inputs_T += n_inputs_tB.sum(1).tolist()
        self.n_items = sum(n_inputs_T)
        self.capacity_T = capacities(n_inputs_T, self.batch_size * self.windows.length, self.device)

    def batch(self, i: int) -> Batch:
        start_B, end_B, user_B = self.span_3TB[:, i]
        return self.windows.cut(start_B, end_B, user_B, self.capacity_T[i])

    def batch_at(self, at_1: Tensor, capacity: int) -> Batch:
        if at_1.is_cuda:
            from lexrec.data import _windows_triton

            item_N, time_N, length = self.windows.item_N, self.windows.time_N, self.windows.length
            return _windows_triton.cut(item_N, time_N, self.span_3TB, at_1, length, capacity)
        start_B, end_B, user_B = self.span_3TB.index_select(1, at_1)[:, 0]
        return self.windows.cut(start_B, end_B, user_B, capacity)

    def reading(self, first: int) -> AbstractContextManager[None]:
        return nullcontext()

    def ready(self, i: int) -> None:
        pass


def batch_pieces(order_TB: Tensor) -> Iterator[slice]:
    """Slices of the batches whose spans are found at once."""
    n_batches, batch_size = order_TB.shape
    step = max(1, CHUNK // batch_size)
    for first in range(0, n_batches, step):
        yield slice(first, min(first + step, n_batches))


def capacities(n_inputs_T: list[int], most: int, device: torch.device) -> list[int]:
    """Slots of each batch that hold so many items, at most `most`."""
    if device.type == "cuda":
        # Every batch of the epoch has one shape; on a CPU each batch is as small as it can be.
        n_inputs_T = [_on_grid(max(n_inputs_T))] * len(n_inputs_T)
    return [min(-(-n // _SLOT_ROUNDING) * _SLOT_ROUNDING, most) for n in n_inputs_T]


def _as_it_lies(array: NDArray[Any]) -> Tensor:
    """The array's own memory as a tensor, which nobody writes to."""
    with warnings.catch_warnings():
        # That a map of a file cannot be written is what we want.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))


def _on_grid(n: int) -> int:
    """The next of a few sizes, at most an eighth larger than n."""
    step = max(1, (1 << max(n - 1, 1).bit_length()) // _GPU_GRID)
    return -(-n // step) * step


def _order_generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
