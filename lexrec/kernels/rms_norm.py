"""RMS norm of a language model's training step in 16 bits on a GPU; elsewhere plain PyTorch.

    y = x / sqrt(mean(x^2) + eps) * (offset + weight)      over the last dimension; https://arxiv.org/abs/1910.07467

transformers' own is six kernels forward and a dozen backward, and each linear map that reads its float32
result casts it again. Here it is one kernel each way, and one more where the weight is trained: its gradient
is summed in strips of rows, always in the same order. What is read may be the float32 residual, what is
written the 16 bits that linear maps multiply (`_rms_norm_triton.py`).

Dimension key: M rows, D width.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lexrec.kernels._training import trains_in_16_bits

_WIDEST = 8192
"""Width up to which a row fits a program."""


class RmsForm(NamedTuple):
    """What a family makes of a norm, beside its weight."""

    eps: float
    """Added to the mean square."""
    offset: float
    """Added to the weight: 1 where the weight is the difference from 1 (Gemma), else 0."""


def rms_norm(x: Tensor, weight_D: Tensor, form: RmsForm, dtype: torch.dtype) -> Tensor:
    """The norm of the last dimension, in `dtype`; sums and products are float32 at least.

    Args:
        x: any leading dimensions; float32 or 16 bits.
        weight_D: frozen ones cost no gradient.
        form: the rest of the equation.
        dtype: of the result.
    """
    if trains_in_16_bits(x) and x.shape[-1] <= _WIDEST:
        y: Tensor = _RmsNorm.apply(x, weight_D, form, dtype)  # type: ignore[no-untyped-call]
        return y
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    factor = torch.rsqrt(exact.square().mean(-1, keepdim=True) + form.eps)
    return (exact * factor * (form.offset + weight_D)).to(dtype)


def rows_in_memory(x: Tensor) -> Tensor:
    """`x`, or a copy, whose memory is rows of its last dimension without a gap, in whichever order."""
    order = sorted(range(x.ndim), key=x.stride, reverse=True)
    is_dense = order[-1] == x.ndim - 1 and x.permute(order).is_contiguous()
    return x if is_dense else x.contiguous()


def laid_out_like(grad: Tensor, x: Tensor) -> Tensor:
    """`grad`, or a copy, with its rows where those of `x` are."""
    return grad if grad.stride() == x.stride() else torch.empty_like(x, dtype=grad.dtype).copy_(grad)


class _RmsNorm(torch.autograd.Function):
    """The kernels as one differentiable step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, form: RmsForm, dtype: torch.dtype) -> Tensor:
        from lexrec.kernels import _rms_norm_triton

        x = rows_in_memory(x)
        ctx.save_for_backward(x, weight_D)
        ctx.form = form
        return _rms_norm_triton.rms_norm(x, weight_D, form, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        from lexrec.kernels import _rms_norm_triton

        x, weight_D = ctx.saved_tensors
        grad, is_trained = laid_out_like(grad, x), ctx.needs_input_grad[1]
        return *_rms_norm_triton.gradients(grad, x, weight_D, ctx.form, is_trained), None, None
