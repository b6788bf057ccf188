"""Gated feed-forward layers of a language model's training step in 16 bits on a GPU; elsewhere plain PyTorch.

    y = down(act(gate(x)) * up(x))      SwiGLU, GeGLU: https://arxiv.org/abs/2002.05202

The middle is one kernel each way (`_gated_triton.py`). Weights that are trained in float32 are rounded to 16
bits once, forward; gate and up are then one product, and gradients of weights leave theirs in float32.

Dimension key: M tokens, W width in, I inner width, X = 2 x I.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lexrec.kernels._training import trains_in_16_bits
from lexrec.kernels.dense import wide_product

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu", "gelu_tanh", "relu")
"""gelu by the error function, gelu_tanh by its approximation (Gemma)."""


def activated(x: Tensor, activation: Activation) -> Tensor:
    """The activation alone, by PyTorch."""
    if activation == "silu":
        return F.silu(x)
    if activation == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def gated(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """act(gate) * up, in their type; both of one shape, [..., I]."""
    if trains_in_16_bits(gate) and gate.dtype == up.dtype:
        y: Tensor = _Gated.apply(gate, up, activation)  # type: ignore[no-untyped-call]
        return y
    return activated(gate, activation) * up


def gated_halves(both: Tensor, activation: Activation) -> Tensor:
    """The same of gates and ups side by side, [..., X] -> [..., I]."""
    if trains_in_16_bits(both):
        y: Tensor = _GatedHalves.apply(both, activation)  # type: ignore[no-untyped-call]
        return y
    gate, up = both.chunk(2, -1)
    return activated(gate, activation) * up


def narrow_linear(x: Tensor, *weights: Tensor) -> Tensor:
    """Products with float32 weights side by side, [..., W] -> [..., E1 + E2 ...], in 16 bits.

    Without them, `F.linear` of each.
    """
    if trains_in_16_bits(x):
        dtype = torch.get_autocast_dtype("cuda")
        y: Tensor = _NarrowLinear.apply(x, dtype, *weights)  # type: ignore[no-untyped-call]
        return y
    return torch.cat([F.linear(x, weight) for weight in weights], -1)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        from lexrec.kernels import _gated_triton

        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        y = torch.empty_like(gate)
        _gated_triton.gated(gate, up, y, activation)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        from lexrec.kernels import _gated_triton

        gate, up = ctx.saved_tensors
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        _gated_triton.gradients(grad.contiguous(), (gate, up), (of_gate, of_up), ctx.activation)
        return of_gate, of_up, None


class _GatedHalves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor, activation: Activation) -> Tensor:
        from lexrec.kernels import _gated_triton

        both = both.contiguous()
        ctx.save_for_backward(both)
        ctx.activation = activation
        y = both.new_empty(*both.shape[:-1], both.shape[-1] // 2)
        gate, up = both.chunk(2, -1)
        _gated_triton.gated(gate, up, y, activation)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        from lexrec.kernels import _gated_triton

        (both,) = ctx.saved_tensors
        of_both, inner = torch.empty_like(both), grad.shape[-1]
        given, of = ((one[..., :inner], one[..., inner:]) for one in (both, of_both))
        _gated_triton.gradients(grad.contiguous(), given, of, ctx.activation)
        return of_both, None


class _NarrowLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, *weights: Tensor) -> Tensor:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            narrow_MW, narrow_EW = x.flatten(0, -2).to(dtype), _side_by_side(weights, dtype)
            ctx.save_for_backward(narrow_MW, narrow_EW)
            ctx.x_dtype, ctx.shape, ctx.lengths = x.dtype, x.shape, [len(weight) for weight in weights]
            return (narrow_MW @ narrow_EW.T).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        narrow_MW, narrow_EW = ctx.saved_tensors
        grad_ME = grad.flatten(0, -2).to(narrow_MW.dtype)
        of_x = (grad_ME @ narrow_EW).view(ctx.shape).to(ctx.x_dtype) if ctx.needs_input_grad[0] else None
        return of_x, None, *torch.split(wide_product(grad_ME, narrow_MW).float(), ctx.lengths)


def _side_by_side(weights: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """All rows, in 16 bits: a kernel a weight, without a float32 copy."""
    if len(weights) == 1:
        return weights[0].to(dtype)
    lengths = [len(weight) for weight in weights]
    all_EW = weights[0].new_empty(sum(lengths), weights[0].shape[1], dtype=dtype)
    for part, weight in zip(torch.split(all_EW, lengths), weights, strict=True):
        part.copy_(weight)
    return all_EW
