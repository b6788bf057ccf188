"""Inputs and targets of next-item training: a window cut in two, its packed form beside it.

On a GPU in place of some twenty small kernels one (`_shift_triton.py`).

Dimension key: B rows, L positions of the inputs, W = L + 1 of the window, N slots.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lexrec.data.batch import PAD, Batch, with_slots
from lexrec.kernels.gpu import on_gpu


class Shifted(NamedTuple):
    """What is read of a window and what is to be predicted."""

    item_BL: Tensor
    """int64 all but the newest item; a lone item is no input."""
    length_B: Tensor
    """int64 items of each row."""
    slot_N: Tensor
    """int64 flat places of the items, B * L where unused."""
    target_N: Tensor
    """int64 item after each slot's; 1 where unused."""
    weight_N: Tensor
    """float32 1, and 0 where a slot is unused."""


def shift(batch: Batch, capacity: int) -> Shifted:
    """Of left-padded windows, whose `length_B` counts their items.

    Args:
        batch: windows.
        capacity: slots, as many as there are inputs or more.
    """
    if on_gpu(batch.item_BL):
        from lexrec.kernels import _shift_triton

        return Shifted(*_shift_triton.shift(batch.item_BL, batch.length_B, capacity))
    item_BW = batch.item_BL
    has_target_BL = (item_BW[:, :-1] != PAD) & (item_BW[:, 1:] != PAD)
    B, L = has_target_BL.shape
    inputs = Batch(item_BW[:, :-1] * has_target_BL, has_target_BL.sum(1), batch.user_B)
    slot_N = with_slots(inputs, capacity).slot_N
    assert slot_N is not None
    is_used_N = slot_N < B * L
    target_N = item_BW[:, 1:].flatten()[slot_N.clamp(max=B * L - 1)]
    target_N = torch.where(is_used_N, target_N, 1)
    return Shifted(inputs.item_BL, inputs.length_B, slot_N, target_N, is_used_N.float())
