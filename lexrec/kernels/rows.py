"""Rows of a table by index, with a gradient that sums them in place.

PyTorch's own gradient of an embedding sorts the indexes on a GPU, some ten kernels; adding atomically is one,
at the price that sums differ in their last bit from run to run.

Dimension key: R rows of the table, D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def take_rows(table_RD: Tensor, index: Tensor, padding: int) -> Tensor:
    """`table_RD[index]`, [*index.shape, D]; the row `padding` gets no gradient, as in `F.embedding`."""
    if not table_RD.is_cuda:
        return F.embedding(index, table_RD, padding_idx=padding)
    taken: Tensor = _Take.apply(table_RD, index, padding)  # type: ignore[no-untyped-call]
    return taken


class _Take(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(table_RD: Tensor, index: Tensor, padding: int) -> Tensor:
        return F.embedding(index, table_RD)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        table_RD, index, ctx.padding = inputs
        ctx.n_rows = len(table_RD)
        ctx.save_for_backward(index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        of_table_RD = grad.new_zeros(ctx.n_rows, grad.shape[-1])
        of_table_RD.index_add_(0, index.flatten(), grad.reshape(-1, grad.shape[-1]))
        of_table_RD[ctx.padding].zero_()
        return of_table_RD, None, None
