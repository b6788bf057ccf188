"""Rows with their positions, read at the slots of a batch: what a packed model begins with.

In a training step on a GPU one kernel forward and one backward (`_place_triton.py`), with the dropout that
follows; elsewhere plain PyTorch.

Dimension key: B rows, L positions, M = B * L places, N slots, D width.
"""

from typing import Any

import torch
from torch import Tensor

from lexrec.data.batch import Places
from lexrec.kernels._training import trains_in_16_bits
from lexrec.kernels.dense import drop


def placed(x_BLD: Tensor, position_LD: Tensor, places: Places, dropout: float) -> Tensor:
    """`drop(x + position)` at the slots, [N, D]; without slots at every place.

    Args:
        x_BLD: item vectors.
        position_LD: position vectors, of which the newest item has the last; more rows than L do not matter.
        places: where slots are.
        dropout: share of the numbers that is dropped; 0 where nothing is trained.
    """
    if len(position_LD) > places.length:
        position_LD = position_LD[-places.length :]
    if places.slot_N is None or not trains_in_16_bits(x_BLD) or x_BLD.dtype != torch.float32:
        x_ND = places.pack(x_BLD + position_LD)
        return drop(x_ND, dropout) if dropout else x_ND
    placed_ND: Tensor = _Placed.apply(x_BLD, position_LD, places.slot_N, dropout)  # type: ignore[no-untyped-call]
    return placed_ND


class _Placed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLD: Tensor, position_LD: Tensor, slot_N: Tensor, dropout: float) -> Tensor:
        from lexrec.kernels import _dropout_triton, _place_triton

        seed_1 = _dropout_triton.draw_seed(x_BLD.device) if dropout else None
        ctx.save_for_backward(slot_N, seed_1)
        ctx.shape, ctx.dropout = x_BLD.shape, dropout
        return _place_triton.placed(x_BLD, position_LD, slot_N, seed_1, dropout)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, Tensor, None, None]:
        from lexrec.kernels import _place_triton

        slot_N, seed_1 = ctx.saved_tensors
        of_x_BLD = _place_triton.gradient(grad_ND, slot_N, seed_1, ctx.shape, ctx.dropout)
        return of_x_BLD, of_x_BLD.sum(0), None, None
