"""Kernels of `gated.py`: number by number. Rows of gates and of ups may be further apart than they are long.

Dimension key: N = M x INNER numbers of a result, n: of one tile.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import triton
import triton.language as tl
from torch import Tensor

from lexrec.kernels._jit import kernel

_TILE = 1024
Pair = tuple[Tensor, Tensor]
"""Of gate and up: alike in shape and strides, rows evenly spaced."""


def gated(gate: Tensor, up: Tensor, y: Tensor, activation: str) -> None:
    """Write act(gate) * up to the contiguous `y`."""
    inner = gate.shape[-1]
    stride = gate.stride(-2) if gate.ndim > 1 else inner
    grid = (triton.cdiv(y.numel(), _TILE),)
    _gated[grid](gate, up, y, y.numel(), inner, stride, activation, _TILE)


def gradients(grad: Tensor, given: Pair, of: Pair, activation: str) -> None:
    """Write the gradients of gate and up, which lie as those do, to `of`."""
    inner = grad.shape[-1]
    stride = given[0].stride(-2) if grad.ndim > 1 else inner
    grid = (triton.cdiv(grad.numel(), _TILE),)
    _gradients[grid](grad, *given, *of, grad.numel(), inner, stride, activation, _TILE)


@kernel
def _sigmoid(x):
    # Beyond that it is next to 0, and an exponential is none any more.
    return 1 / (1 + tl.exp(tl.minimum(-x, 80.0)))


@kernel
def _activated(x, ACTIVATION: tl.constexpr):
    """The activation and its derivative."""
    if ACTIVATION == "silu":
        share = _sigmoid(x)
        return x * share, share * (1 + x * (1 - share))
    elif ACTIVATION == "gelu":
        share = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
        return x * share, share + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(z)) / 2 is the sigmoid of 2 z.
        share = _sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        slope = 1.5957691216057308 * (1 + 0.134145 * x * x)
        return x * share, share + x * share * (1 - share) * slope
    else:
        return tl.maximum(x, 0.0), tl.where(x > 0, 1.0, 0.0)


@kernel
def _gated(
    gate, up, out, N,
    INNER: tl.constexpr, STRIDE: tl.constexpr, ACT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    at_n, is_in_n = n // INNER * STRIDE + n % INNER, n < N
    gate_n = tl.load(gate + at_n, mask=is_in_n, other=0.0).to(tl.float32)
    up_n = tl.load(up + at_n, mask=is_in_n, other=0.0).to(tl.float32)
    value_n, _ = _activated(gate_n, ACT)
    tl.store(out + n, value_n * up_n, mask=is_in_n)


@kernel
def _gradients(
    grad, gate, up, of_gate, of_up, N,
    INNER: tl.constexpr, STRIDE: tl.constexpr, ACT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    at_n, is_in_n = n // INNER * STRIDE + n % INNER, n < N
    grad_n = tl.load(grad + n, mask=is_in_n, other=0.0).to(tl.float32)
    gate_n = tl.load(gate + at_n, mask=is_in_n, other=0.0).to(tl.float32)
    up_n = tl.load(up + at_n, mask=is_in_n, other=0.0).to(tl.float32)
    value_n, slope_n = _activated(gate_n, ACT)
    tl.store(of_gate + at_n, grad_n * up_n * slope_n, mask=is_in_n)
    tl.store(of_up + at_n, grad_n * value_n, mask=is_in_n)
