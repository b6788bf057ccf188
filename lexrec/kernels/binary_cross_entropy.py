"""Binary cross-entropy of targets against sampled items: scores, losses and slopes in one kernel on a GPU.

    l_n = beta softplus(-s_n0 - prior) + sum over k of softplus(s_nk + prior)      s_nx = <query_n, row_x>

A training step on a GPU in 16 bits keeps nothing but the derivative of each score
(`_binary_cross_entropy_triton.py`); elsewhere plain PyTorch.

Dimension key: N states, R rows of the table, D width, K sampled items, X = 1 + K: the target and those.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lexrec.kernels._training import trains_in_16_bits
from lexrec.kernels.rows import score_rows


def binary_cross_entropy(
    query_ND: Tensor, table_RD: Tensor, index_NX: Tensor, weight_N: Tensor, beta: float, prior: float
) -> Tensor:
    """The weighted sum of the losses, a scalar in float32.

    Args:
        query_ND: states ready for a dot product.
        table_RD: rows to score.
        index_NX: int64 rows of each state, its target first; a sampled one that is the target does not count.
        weight_N: float32 weights, without gradient.
        beta: weight of the target's loss.
        prior: added to each score.
    """
    if trains_in_16_bits(table_RD):
        loss: Tensor = _OnGpu.apply(query_ND, table_RD, index_NX, weight_N, beta, prior)  # type: ignore[no-untyped-call]
        return loss
    logit_NX = score_rows(query_ND, table_RD, index_NX).float()
    is_wrong_NK = index_NX[:, 1:] != index_NX[:, :1]
    return (losses(logit_NX[:, 0], logit_NX[:, 1:], is_wrong_NK, beta, prior) * weight_N).sum()


def losses(positive_N: Tensor, negative_NK: Tensor, is_wrong_NK: Tensor, beta: float, prior: float) -> Tensor:
    """The loss of each state, [N]; of sampled items those count for which `is_wrong` is True."""
    negative_N = (F.softplus(negative_NK + prior) * is_wrong_NK).sum(1)
    return beta * F.softplus(-positive_N - prior) + negative_N


class _OnGpu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_ND: Tensor,
        table_RD: Tensor,
        index_NX: Tensor,
        weight_N: Tensor,
        beta: float,
        prior: float,
    ) -> Tensor:
        from lexrec.kernels import _binary_cross_entropy_triton

        loss_N, slope_NX = _binary_cross_entropy_triton.losses(
            query_ND, table_RD, index_NX, weight_N, beta, prior
        )
        ctx.save_for_backward(slope_NX, query_ND, table_RD, index_NX)
        return loss_N.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from lexrec.kernels import _rows_triton

        slope_NX, *rest = ctx.saved_tensors
        return *_rows_triton.score_gradients(slope_NX * grad, *rest), None, None, None, None
