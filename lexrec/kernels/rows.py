"""Rows of a table by index, and their dot products, with gradients that are summed in place.

PyTorch's own gradient of an embedding sorts the indexes on a GPU, some ten kernels, and a dot product of
chosen rows first makes a copy of each: [N, K, D]. In a training step on a GPU `_rows_triton.py` adds
atomically and copies nothing, at the price that sums differ in their last bit from run to run.

Dimension key: R rows of the table, N states, K chosen rows of each, D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lexrec.kernels._training import trains_in_16_bits

_FEW = 4
"""Chosen rows of a state up to which products and sums are quicker than a matrix product each."""
_NONE = -1


def take_rows(table_RD: Tensor, index: Tensor, padding: int) -> Tensor:
    """`table_RD[index]`, [*index.shape, D]; the row `padding` gets no gradient, as in `F.embedding`."""
    if not trains_in_16_bits(table_RD):
        return F.embedding(index, table_RD, padding_idx=padding)
    taken: Tensor = _Take.apply(table_RD, index, padding)  # type: ignore[no-untyped-call]
    return taken


def pick_rows(x_RD: Tensor, index_N: Tensor) -> Tensor:
    """`x_RD[index_N]`, [N, D]. Not by [ ], whose gradient sorts the indexes on a GPU."""
    if not trains_in_16_bits(x_RD):
        return x_RD.index_select(0, index_N)
    picked_ND: Tensor = _Take.apply(x_RD, index_N, _NONE)  # type: ignore[no-untyped-call]
    return picked_ND


def score_rows(query_ND: Tensor, table_RD: Tensor, index_NK: Tensor) -> Tensor:
    """Dot products of each state with its chosen rows, [N, K]."""
    if trains_in_16_bits(table_RD):
        score_NK: Tensor = _Score.apply(query_ND, table_RD, index_NK)  # type: ignore[no-untyped-call]
        return score_NK
    return dot_rows(query_ND, F.embedding(index_NK, table_RD))


def dot_rows(query_ND: Tensor, row_NKD: Tensor) -> Tensor:
    """Dot products of each state with rows of its own, [N, K]."""
    if row_NKD.shape[1] <= _FEW:
        return (row_NKD * query_ND[:, None]).sum(-1)
    return (row_NKD @ query_ND[:, :, None])[..., 0]


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_RD: Tensor, index: Tensor, padding: int) -> Tensor:
        from lexrec.kernels import _rows_triton

        ctx.save_for_backward(index)
        ctx.n_rows, ctx.padding = len(table_RD), padding
        return _rows_triton.take(table_RD, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        from lexrec.kernels import _rows_triton

        (index,) = ctx.saved_tensors
        return _rows_triton.add_up(grad, index, ctx.n_rows, ctx.padding), None, None


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_ND: Tensor, table_RD: Tensor, index_NK: Tensor) -> Tensor:
        from lexrec.kernels import _rows_triton

        ctx.save_for_backward(query_ND, table_RD, index_NK)
        return _rows_triton.score(query_ND, table_RD, index_NK)

    @staticmethod
    def backward(ctx: Any, grad_NK: Tensor) -> tuple[Tensor, Tensor, None]:
        from lexrec.kernels import _rows_triton

        return *_rows_triton.score_gradients(grad_NK, *ctx.saved_tensors), None
