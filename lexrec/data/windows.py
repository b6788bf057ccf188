"""Training windows, cut on the device from the flat event array: no worker, no per-sample Python.

Dimension key: N events, S samples, T batches of an epoch, B rows, L window length.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lexrec.data.batch import PAD, Batch
from lexrec.data.dataset import TRAIN, Dataset

_SLOT_ROUNDING = 64
"""Capacities are rounded up to this, so that few different shapes occur."""
_GPU_GRID = 16
"""On a GPU, where each shape is a graph to capture: to this share of the next power of two as well."""


class Windows:
    """Events on the device, and windows of them.

    Args:
        dataset: where events come from; the whole flat array is copied to the device.
        length: events in a window.
        device: where windows are cut.
    """

    def __init__(self, dataset: Dataset, length: int, device: torch.device) -> None:
        self.length = length
        self.item_N = torch.from_numpy(np.array(dataset.item_N)).to(device)
        self.time_N = None
        if dataset.time_N is not None:
            self.time_N = torch.from_numpy(np.array(dataset.time_N)).to(device)
        self.age_L = torch.arange(length, device=device) - length

    def cut(self, start_B: Tensor, end_B: Tensor, user_B: Tensor, capacity: int | None = None) -> Batch:
        """The newest events of each row's span [start, end), left-padded. start == end: an empty row."""
        place_BL = end_B[:, None] + self.age_L
        is_item_BL = place_BL >= start_B[:, None]
        place_BL = place_BL.clamp(min=0)
        item_BL = self.item_N[place_BL].long().masked_fill(~is_item_BL, PAD)
        time_BL = None
        if self.time_N is not None:
            time_BL = self.time_N[place_BL].masked_fill(~is_item_BL, 0)
        return Batch(item_BL, is_item_BL.sum(1), user_B, time_BL, capacity=capacity)


class Epoch:
    """One pass over the samples, batch by batch: spans on the device, in buffers that every epoch refills.

    Args:
        windows: what cuts.
        n_batches: batches of an epoch (T).
        batch_size: rows of a batch (B).
    """

    def __init__(self, windows: Windows, n_batches: int, batch_size: int) -> None:
        self.windows = windows
        device = windows.item_N.device
        self.span_3TB = torch.zeros(3, n_batches, batch_size, dtype=torch.int64, device=device)
        self.capacity_T: list[int] = []
        """Slots that hold the items of each batch."""

    def __len__(self) -> int:
        return self.span_3TB.shape[1]

    @property
    def device(self) -> torch.device:
        """Where batches are cut."""
        return self.span_3TB.device

    def batch(self, i: int) -> Batch:
        """Batch i."""
        start_B, end_B, user_B = self.span_3TB[:, i]
        return self.windows.cut(start_B, end_B, user_B, self.capacity_T[i])

    def batch_at(self, at_1: Tensor, capacity: int) -> Batch:
        """The batch whose number stands in `at_1`, int64 [1] on the device: no host needs to know it."""
        start_B, end_B, user_B = self.span_3TB.index_select(1, at_1)[:, 0]
        return self.windows.cut(start_B, end_B, user_B, capacity)


@dataclass(frozen=True)
class Samples:
    """What an epoch visits: spans [start, end) of the flat array."""

    start_S: Tensor
    end_S: Tensor
    user_S: Tensor
    n_inputs_S: Tensor
    """Items the model reads of each sample."""

    def __len__(self) -> int:
        return len(self.end_S)

    @staticmethod
    def of(
        dataset: Dataset, sampling: Literal["history", "prefix"], max_len: int, extra_events: int
    ) -> "Samples":
        """The samples of one epoch.

        history: each user's training events, users with nothing to predict left out.
        prefix: the events up to and including each training event that has one before it.
        """
        n_train_U = dataset.train_end_U - dataset.start_U
        if sampling == "history":
            user_S = np.flatnonzero(n_train_U > 1)
            end_S = dataset.train_end_U[user_S]
        else:
            user_N = np.repeat(np.arange(dataset.n_users), np.diff(dataset.offset_U))
            has_past_N = np.arange(len(user_N)) > dataset.start_U[user_N]
            event_S = np.flatnonzero((np.asarray(dataset.split_N) == TRAIN) & has_past_N)
            user_S, end_S = user_N[event_S], event_S + 1
        start_S = dataset.start_U[user_S]
        n_inputs_S = np.minimum(end_S - start_S, max_len + extra_events) - extra_events
        return Samples(*(torch.from_numpy(a.astype(np.int64)) for a in (start_S, end_S, user_S, n_inputs_S)))

    def n_batches(self, batch_size: int) -> int:
        """Batches of an epoch; the last one is filled up with empty rows."""
        return -(-len(self) // batch_size)

    def fill(self, epoch: Epoch, *, seed: int, number: int) -> None:
        """Put every sample once into `epoch`, in an order that depends on (seed, number) alone."""
        n_batches, batch_size = epoch.span_3TB.shape[1:]
        order_S = torch.randperm(len(self), generator=_order_generator(seed, number))
        n_filled = n_batches * batch_size - len(self)
        spans = []
        for value_S, empty in ((self.start_S, 0), (self.end_S, 0), (self.user_S, -1), (self.n_inputs_S, 0)):
            filled_S = torch.cat([value_S[order_S], value_S.new_full((n_filled,), empty)])
            spans.append(filled_S.view(n_batches, batch_size))
        epoch.span_3TB.copy_(torch.stack(spans[:3]))
        most = batch_size * epoch.windows.length
        n_slots_T = spans[3].sum(1).tolist()
        if epoch.device.type == "cuda":
            # Every batch of the epoch has one shape; on a CPU each batch is as small as it can be.
            n_slots_T = [_on_grid(max(n_slots_T))] * n_batches
        epoch.capacity_T = [min(-(-n // _SLOT_ROUNDING) * _SLOT_ROUNDING, most) for n in n_slots_T]


def _on_grid(n: int) -> int:
    """The next of a few sizes, at most an eighth larger than n."""
    step = max(1, (1 << max(n - 1, 1).bit_length()) // _GPU_GRID)
    return -(-n // step) * step


def _order_generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
