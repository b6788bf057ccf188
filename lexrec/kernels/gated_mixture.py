"""A gated sum of what experts say, no longer than a share of the vector that it joins.

    mixed = sum_e softmax(gate)_e out_e
    added = mixed * min(1, cap |vector| / |mixed|)

In PyTorch that is some twenty kernels forward and forty backward, each of a few microseconds on a GPU and
each waiting for the one before; there it is one and one (`_gated_mixture_triton.py`).

Dimension key: R rows, E experts, D width.
"""

from typing import Any

import torch
from torch import Tensor

from lexrec.kernels.gpu import on_gpu

_WIDEST = 1024
"""Width up to which a row fits a program."""


def gated_mixture(gate_RE: Tensor, out_ERD: Tensor, vector_RD: Tensor, cap: float | None) -> Tensor:
    """What is added to each vector, [R, D], in the wider of the given types.

    The gradient reaches the gate and the experts. It passes through the length of the mixture, not through
    that of the vector.

    Args:
        gate_RE: logits of the gate.
        out_ERD: what each expert says.
        vector_RD: what the mixture is added to.
        cap: longest the mixture may be, in lengths of the vector; None: unbounded.
    """
    if on_gpu(out_ERD) and out_ERD.shape[2] <= _WIDEST:
        added_RD: Tensor = _Mixture.apply(gate_RE, out_ERD, vector_RD, cap)  # type: ignore[no-untyped-call]
        return added_RD
    mixed_RD = (gate_RE.softmax(dim=-1).T[:, :, None] * out_ERD).sum(0)
    return mixed_RD if cap is None else capped(mixed_RD, vector_RD, cap)


def capped(mixed_RD: Tensor, vector_RD: Tensor, cap: float) -> Tensor:
    """A mixture, shortened where it is longer than `cap` vectors."""
    longest_R1 = cap * vector_RD.detach().norm(dim=-1, keepdim=True)
    length_R1 = mixed_RD.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    capped_RD: Tensor = mixed_RD * (longest_R1 / length_R1).clamp(max=1)
    return capped_RD


class _Mixture(torch.autograd.Function):
    """The kernels as one differentiable step."""

    @staticmethod
    def forward(ctx: Any, gate_RE: Tensor, out_ERD: Tensor, vector_RD: Tensor, cap: float | None) -> Tensor:
        from lexrec.kernels import _gated_mixture_triton

        given = (gate_RE.contiguous(), out_ERD.contiguous(), vector_RD.detach().contiguous())
        ctx.save_for_backward(*given)
        ctx.cap = cap
        return _gated_mixture_triton.mixture(*given, cap)

    @staticmethod
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, Tensor, None, None]:
        from lexrec.kernels import _gated_mixture_triton

        gate_RE, out_ERD, vector_RD = ctx.saved_tensors
        found = _gated_mixture_triton.gradients(grad_RD.contiguous(), gate_RE, out_ERD, vector_RD, ctx.cap)
        return *found, None, None
