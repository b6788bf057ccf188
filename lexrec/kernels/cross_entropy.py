"""Cross-entropy over a whole catalogue without its logits: exact value and gradients, no [N, I] tensor.

    loss = sum over n of weight_n * (log sum_i exp(s_ni) - s_n,target(n))     s_ni = <query_n, row_i> + bias_i

Two ways to the same numbers:

- In chunks of rows, plain PyTorch, anywhere: a chunk's logits become its softmax, its loss and its share of
  the gradients before the next chunk is scored. The gradients are made in the forward pass, since the weights
  are known by then, so nothing is scored twice. What is small enough to be one chunk is left to PyTorch.
- On a GPU in 16-bit arithmetic (`_cross_entropy_triton.py`), tile by tile: the forward pass keeps a running
  maximum and sum a row, the backward pass scores again. Sums are float32.

The idea of recomputing tiles is that of cut cross-entropy (Wijmans et al. 2024, arXiv 2411.09009), without
its skipping of small gradients.

Dimension key: N scored states, I items, D width, C states of a chunk, U those in use.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK_CELLS = 2**20
"""Logits held at once on a CPU: 4 MiB, which a processor's cache holds."""
_GPU_CHUNK_CELLS = 2**26
"""On a GPU in float32: 256 MiB, since each chunk is a dozen launches."""
_CHUNK_ROWS = 32
"""States of a chunk at least: matrix products with fewer are slow."""
_WIDEST = 256
"""Width up to which a tile fits a multiprocessor."""


def cross_entropy(
    query_ND: Tensor, row_ID: Tensor, target_N: Tensor, weight_N: Tensor, bias_I: Tensor | None = None
) -> Tensor:
    """The weighted sum of the losses, a scalar in float32 (float64 for float64) with exact gradients.

    Args:
        query_ND: states ready for a dot product.
        row_ID: item vectors. Under autocast both are rounded to its type, as a matrix product would.
        target_N: int64 row of `row_ID` that each state should find; in range also where its weight is 0.
        weight_N: float32 weights, 0 or more, without gradient; states of weight 0 are left out.
        bias_I: added to each item's logit; -inf keeps an item out.
    """
    device = query_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query_ND.dtype
    bias_I = None if bias_I is None else bias_I.to(_sum_type(dtype))
    with torch.autocast(device, enabled=False):
        if query_ND.is_cuda and dtype in (torch.bfloat16, torch.float16) and query_ND.shape[1] <= _WIDEST:
            from lexrec.kernels import _cross_entropy_triton

            return _cross_entropy_triton.cross_entropy(query_ND, row_ID, target_N, weight_N, bias_I, dtype)
        query_ND, row_ID = query_ND.to(dtype), row_ID.to(dtype)
        if len(query_ND) * len(row_ID) <= _chunk_cells(query_ND):
            return _whole(query_ND, row_ID, target_N, weight_N, bias_I)
        loss: Tensor = _Chunked.apply(  # type: ignore[no-untyped-call]
            query_ND, row_ID, target_N, weight_N, bias_I
        )
        return loss


def _whole(
    query_ND: Tensor, row_ID: Tensor, target_N: Tensor, weight_N: Tensor, bias_I: Tensor | None
) -> Tensor:
    loss_N = F.cross_entropy(_logits(query_ND, row_ID, bias_I), target_N, reduction="none")
    return (loss_N * weight_N).sum()


def _logits(query_CD: Tensor, row_ID: Tensor, bias_I: Tensor | None) -> Tensor:
    logit_CI = (query_CD @ row_ID.T).to(_sum_type(query_CD.dtype))
    return logit_CI if bias_I is None else logit_CI.add_(bias_I)


class _Chunked(torch.autograd.Function):
    """The loss and, at once, its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        query_ND: Tensor,
        row_ID: Tensor,
        target_N: Tensor,
        weight_N: Tensor,
        bias_I: Tensor | None,
    ) -> Tensor:
        wants_gradient = any(ctx.needs_input_grad)
        grads = _Gradients(query_ND, row_ID, bias_I) if wants_gradient else None
        loss = weight_N.new_zeros((), dtype=_sum_type(query_ND.dtype))
        step = max(_CHUNK_ROWS, _chunk_cells(query_ND) // len(row_ID))
        for first in range(0, _n_used(weight_N), step):
            chunk = slice(first, first + step)
            query_CD, target_C, weight_C = query_ND[chunk], target_N[chunk, None], weight_N[chunk, None]
            logit_CI = _logits(query_CD, row_ID, bias_I)
            logit_C = logit_CI.gather(1, target_C)
            highest_C = logit_CI.amax(1, keepdim=True)
            share_CI = torch.softmax(logit_CI, 1, out=logit_CI)
            # The largest share is at least 1 / I, so its logarithm is safe where the target's own is not.
            log_sum_C = highest_C - share_CI.amax(1, keepdim=True).log()
            loss += ((log_sum_C - logit_C) * weight_C).sum()
            if grads is not None:
                slope_CI = share_CI.mul_(weight_C).scatter_add_(1, target_C, -weight_C.to(share_CI.dtype))
                grads.add(chunk, slope_CI)
        ctx.save_for_backward(*(grads.all if grads else ()))
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_query_ND, of_row_ID, *of_bias = ctx.saved_tensors
        of_query_ND, of_row_ID = (one * grad.to(one.dtype) for one in (of_query_ND, of_row_ID))
        return of_query_ND, of_row_ID, None, None, of_bias[0] * grad if of_bias else None


class _Gradients:
    """Sums of the chunks' gradients."""

    def __init__(self, query_ND: Tensor, row_ID: Tensor, bias_I: Tensor | None) -> None:
        self._query_ND, self._row_ID = query_ND, row_ID
        self.of_query_ND = torch.zeros_like(query_ND)
        self.of_row_ID = row_ID.new_zeros(row_ID.shape, dtype=_sum_type(row_ID.dtype))
        self.of_bias_I = None if bias_I is None else torch.zeros_like(bias_I)

    def add(self, chunk: slice, slope_CI: Tensor) -> None:
        """One chunk: the derivative of the loss by its logits."""
        if self.of_bias_I is not None:
            self.of_bias_I += slope_CI.sum(0)
        slope_CI = slope_CI.to(self._row_ID.dtype)
        torch.mm(slope_CI, self._row_ID, out=self.of_query_ND[chunk])
        if self.of_row_ID.dtype == slope_CI.dtype:
            torch.addmm(self.of_row_ID, slope_CI.T, self._query_ND[chunk], out=self.of_row_ID)
        else:
            self.of_row_ID += slope_CI.T @ self._query_ND[chunk]

    @property
    def all(self) -> list[Tensor]:
        found = (self.of_query_ND, self.of_row_ID.to(self._row_ID.dtype), self.of_bias_I)
        return [one for one in found if one is not None]


def _chunk_cells(query_ND: Tensor) -> int:
    return _GPU_CHUNK_CELLS if query_ND.is_cuda else _CHUNK_CELLS


def _sum_type(dtype: torch.dtype) -> torch.dtype:
    """float32 at least: thousands of 16-bit additions would lose the small ones."""
    return torch.promote_types(dtype, torch.float32)


def _n_used(weight_N: Tensor) -> int:
    """States up to the last one of weight > 0; where to ask would be to wait for the device, all."""
    if weight_N.device.type != "cpu":
        return len(weight_N)
    used_U1 = weight_N.nonzero()
    return int(used_U1[-1]) + 1 if len(used_U1) else 0
