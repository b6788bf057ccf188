"""The one batch type every model and objective reads.

Dimension key: B rows, L positions, N packed slots, M = B * L places, D width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PAD = 0
"""Item index of padding; items are 1..n_items and MASK is n_items + 1."""


class Batch(NamedTuple):
    """Histories, left-padded: the newest item is always at position -1.

    The packed form is an index, not another type: `slot_N` lists the flat places (row * L + position)
    that hold an item, at a fixed capacity, and B * L where a slot is unused. A model with
    `layout = "packed"` does its per-position work on those N slots and skips padding.
    """

    item_BL: Tensor
    """int64 item indexes, oldest to newest; PAD where there is no item."""
    length_B: Tensor
    """int64 number of items in each row; 0 for an empty history."""
    user_B: Tensor
    """int64 user indexes, for reporting only; -1 where there is no user."""
    time_BL: Tensor | None = None
    """int64 event times in the data set's unit, 0 at padding; None where the data set has none."""
    slot_N: Tensor | None = None
    """int64 flat places of the items; None: every place is computed."""
    capacity: int | None = None
    """Of a training window: slots that hold its items once the objective has taken its targets."""

    @property
    def is_item_BL(self) -> Tensor:
        """True where there is an item (or MASK)."""
        return self.item_BL != PAD

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        time_BL = None if self.time_BL is None else self.time_BL.to(device)
        slot_N = None if self.slot_N is None else self.slot_N.to(device)
        item_BL, length_B, user_B = (t.to(device) for t in self[:3])
        return Batch(item_BL, length_B, user_B, time_BL, slot_N, self.capacity)


def collate(
    histories: Sequence[Sequence[int]],
    max_len: int,
    times: Sequence[Sequence[int]] | None = None,
) -> Batch:
    """A batch of the newest `max_len` items of each history of item indexes."""
    rows = [np.asarray(history[-max_len:], dtype=np.int64) for history in histories]
    length_B = np.array([len(row) for row in rows], dtype=np.int64)
    item_BL = _left_pad(rows, length_B, max_len)
    time_BL = None
    if times is not None:
        time_rows = [np.asarray(time[-max_len:], dtype=np.int64) for time in times]
        time_BL = torch.from_numpy(_left_pad(time_rows, length_B, max_len))
    user_B = torch.full((len(rows),), -1, dtype=torch.int64)
    return Batch(torch.from_numpy(item_BL), torch.from_numpy(length_B), user_B, time_BL)


def with_slots(batch: Batch, capacity: int) -> Batch:
    """The batch with its packed form: `capacity` slots, at least as many as it has items.

    Static shapes and no host synchronisation: a prefix sum places each item.
    """
    B, L = batch.item_BL.shape
    is_item_M = batch.is_item_BL.flatten()
    place_M = torch.where(is_item_M, is_item_M.cumsum(0) - 1, capacity)
    slot_N = place_M.new_full((capacity + 1,), B * L)
    slot_N = slot_N.scatter(0, place_M, torch.arange(B * L, device=place_M.device))
    slot_N[capacity:].fill_(B * L)  # not an assignment, which would copy from the host
    return batch._replace(slot_N=slot_N[:capacity])


class Places(NamedTuple):
    """Moves between padded rows [B, L, D] and the packed slots [N, D] of a batch."""

    n_rows: int
    length: int
    slot_N: Tensor | None

    @staticmethod
    def of(batch: Batch) -> "Places":
        return Places(batch.item_BL.shape[0], batch.item_BL.shape[1], batch.slot_N)

    def pack(self, x_BLD: Tensor) -> Tensor:
        """[B, L, D] -> [N, D]; without slots every place is one. Unused slots read the last place."""
        x_MD = x_BLD.flatten(0, 1)
        if self.slot_N is None:
            return x_MD
        # Not by [ ]: its gradient would sort the slots on a GPU.
        return x_MD.index_select(0, self.slot_N.clamp(max=len(x_MD) - 1))

    def unpack(self, x_ND: Tensor) -> Tensor:
        """[N, D] -> [B, L, D]; zero where there is no item."""
        if self.slot_N is None:
            return x_ND.view(self.n_rows, self.length, -1)
        return self.spread(x_ND)[:-1].view(self.n_rows, self.length, -1)

    def spread(self, x_ND: Tensor) -> Tensor:
        """[N, D] -> the flat places and one more, [B * L + 1, D]: all unused slots write that last one."""
        assert self.slot_N is not None
        x_MD = x_ND.new_zeros(self.n_rows * self.length + 1, x_ND.shape[1])
        return x_MD.index_copy(0, self.slot_N, x_ND)


def _left_pad(rows: list[NDArray[np.int64]], length_B: NDArray[np.int64], max_len: int) -> NDArray[np.int64]:
    padded_BL = np.zeros((len(rows), max_len), dtype=np.int64)
    is_item_BL = np.arange(max_len) >= max_len - length_B[:, None]
    if rows:
        padded_BL[is_item_BL] = np.concatenate(rows)
    return padded_BL
