"""One step of AdamW on one large tensor.

PyTorch's fused step cuts tensors into chunks of 65,536 numbers, one a multiprocessor: eleven of them for an
item table of 10,000 rows, most of a GPU idle. Here a program takes a thousand numbers.

Dimension key: N numbers of the tensor, n: of one program.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from lexrec.kernels._jit import kernel

_TILE = 1024


class Rates(NamedTuple):
    """What a step multiplies by."""

    lr_1: Tensor
    """float32 learning rate, on the device."""
    betas: tuple[float, float]
    weight_decay: float
    eps: float


def step(weight: Tensor, grad: Tensor, mean: Tensor, square: Tensor, count: Tensor, rates: Rates) -> None:
    """Changes float32 weights and their moments; `count` holds the steps, this one included."""
    N = weight.numel()
    log_betas = tuple(math.log(beta) if beta else -1e4 for beta in rates.betas)
    _step[(triton.cdiv(N, _TILE),)](
        weight, grad.contiguous(), mean, square, count, rates.lr_1,
        N, *rates.betas, *log_betas, rates.weight_decay, rates.eps, _TILE,
    )  # fmt: skip


@kernel
def _step(
    weight, grad, mean, square, count, lr, N, beta1, beta2, log_beta1, log_beta2, weight_decay, eps,
    TILE: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    rate, steps = tl.load(lr).to(tl.float32), tl.load(count).to(tl.float64)
    # In float64: 1 - beta ** steps has three digits left of its seven at first.
    unbiased1 = (1 - tl.exp(steps * log_beta1)).to(tl.float32)
    unbiased2 = (1 - tl.exp(steps * log_beta2)).to(tl.float32)
    grad_n = tl.load(grad + n, mask=n < N, other=0.0)
    mean_n = beta1 * tl.load(mean + n, mask=n < N, other=0.0) + (1 - beta1) * grad_n
    square_n = beta2 * tl.load(square + n, mask=n < N, other=0.0) + (1 - beta2) * grad_n * grad_n
    weight_n = tl.load(weight + n, mask=n < N, other=0.0) * (1 - rate * weight_decay)
    weight_n -= (rate / unbiased1) * mean_n / (tl.sqrt(square_n) / tl.sqrt(unbiased2) + eps)
    tl.store(mean + n, mean_n, mask=n < N)
    tl.store(square + n, square_n, mask=n < N)
    tl.store(weight + n, weight_n, mask=n < N)
