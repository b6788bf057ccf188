"""Linear layers, layer norms and dropout of a training step in 16 bits on a GPU; elsewhere PyTorch's own.

These layers are narrow and their inputs long: [N, 64] with N in the tens of thousands. PyTorch's gradients of
a bias and of a norm's scale, sums over N, take several times as long as the matrix products beside them. Here
a hundred programs each sum a strip of rows, and a second kernel sums the strips: always in the same order.

Dimension key: N rows, D width in, E width out.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lexrec.kernels._training import trains_in_16_bits


def linear(x_ND: Tensor, weight_ED: Tensor, bias_E: Tensor | None) -> Tensor:
    """`F.linear`, [N, E]."""
    if bias_E is None or not trains_in_16_bits(x_ND):
        return F.linear(x_ND, weight_ED, bias_E)
    y_NE: Tensor = _Linear.apply(x_ND, weight_ED, bias_E, torch.get_autocast_dtype("cuda"))  # type: ignore[no-untyped-call]
    return y_NE


def layer_norm(x_ND: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, narrow: bool = False) -> Tensor:
    """`F.layer_norm` over the last dimension.

    Args:
        x_ND: any leading dimensions; float32 or 16 bits.
        weight_D: scale.
        bias_D: shift.
        eps: added to the variance.
        narrow: the result only goes into linear layers, so under autocast it may have their 16 bits.
    """
    if not trains_in_16_bits(x_ND):
        return F.layer_norm(x_ND, (x_ND.shape[-1],), weight_D, bias_D, eps)
    dtype = torch.get_autocast_dtype("cuda") if narrow else torch.float32
    y_ND: Tensor = _LayerNorm.apply(x_ND, weight_D, bias_D, eps, dtype)  # type: ignore[no-untyped-call]
    return y_ND


def drop(x: Tensor, p: float) -> Tensor:
    """Each entry zero with probability p, else divided by 1 - p."""
    if x.is_cuda or p == 0:
        return F.dropout(x, p)
    # Uniform numbers come five times as fast as the coins that F.dropout tosses.
    return x * (torch.rand_like(x) >= p).to(x.dtype).mul_(1 / (1 - p))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_ED: Tensor, bias_E: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.types = x_ND.dtype, weight_ED.dtype, bias_E.dtype
        with torch.autocast("cuda", enabled=False):
            x, weight = x_ND.flatten(0, -2).to(dtype), weight_ED.to(dtype)
            ctx.save_for_backward(x, weight)
            return torch.addmm(bias_E.to(dtype), x, weight.T).view(*x_ND.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad_NE: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        from lexrec.kernels import _dense_triton

        x, weight = ctx.saved_tensors
        x_type, weight_type, bias_type = ctx.types
        grad = grad_NE.flatten(0, -2).to(x.dtype)
        of_x = (grad @ weight).view(*grad_NE.shape[:-1], -1).to(x_type)
        return of_x, (grad.T @ x).to(weight_type), _dense_triton.column_sums(grad).to(bias_type), None


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        from lexrec.kernels import _dense_triton

        x = x_ND.contiguous()
        ctx.save_for_backward(x, weight_D, bias_D)
        ctx.eps = eps
        return _dense_triton.layer_norm(x, weight_D, bias_D, eps, dtype)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        from lexrec.kernels import _dense_triton

        x, weight_D, _ = ctx.saved_tensors
        return *_dense_triton.layer_norm_gradients(grad_ND.contiguous(), x, weight_D, ctx.eps), None, None
