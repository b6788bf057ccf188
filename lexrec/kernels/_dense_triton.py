"""Kernels of `dense.py`: sums over columns, and layer norm with its gradients.

Dimension key: N rows, D width, S strips of rows, n, d, s: of one tile.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import torch
import triton
import triton.language as tl
from torch import Tensor

from lexrec.kernels._jit import kernel

_ROWS = 16
"""Rows of a tile."""
_MOST_STRIPS = 256
"""Programs that share the rows: twice the multiprocessors of a large GPU."""


def column_sums(x_ND: Tensor) -> Tensor:
    """Sum over rows in float32, [D]."""
    x_ND = x_ND.contiguous()
    N, D = x_ND.shape
    n_strips = _n_strips(N)
    part_SD = x_ND.new_empty(n_strips, D, dtype=torch.float32)
    _column_sums[(n_strips,)](x_ND, part_SD, N, D, n_strips, _ROWS, triton.next_power_of_2(D))
    return _total(part_SD)


def layer_norm(x: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Of contiguous rows, in `dtype`."""
    y = torch.empty_like(x, dtype=dtype)
    D = x.shape[-1]
    N = x.numel() // D
    _normed[(triton.cdiv(N, _ROWS),)](x, weight_D, bias_D, y, N, D, eps, _ROWS, triton.next_power_of_2(D))
    return y


def layer_norm_gradients(
    grad: Tensor, x: Tensor, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; the statistics are made anew."""
    D = x.shape[-1]
    N = x.numel() // D
    n_strips = _n_strips(N)
    of_x = torch.empty_like(x)
    part_SX = x.new_empty(n_strips, 2 * D, dtype=torch.float32)
    _norm_gradients[(n_strips,)](
        grad, x, weight_D, of_x, part_SX, N, D, eps, n_strips, _ROWS, triton.next_power_of_2(D)
    )
    total_X = _total(part_SX)
    return of_x, total_X[:D].to(weight_D.dtype), total_X[D:].to(weight_D.dtype)


def _n_strips(n_rows: int) -> int:
    return max(1, min(_MOST_STRIPS, -(-n_rows // _ROWS)))


def _total(part_SD: Tensor) -> Tensor:
    S, D = part_SD.shape
    total_D = part_SD.new_empty(D)
    _strips_summed[(triton.cdiv(D, 16),)](part_SD, total_D, S, D, triton.next_power_of_2(S), 16)
    return total_D


@kernel
def _strips_summed(part, out, S, D: tl.constexpr, TILE_S: tl.constexpr, TILE_D: tl.constexpr):
    s, d = tl.arange(0, TILE_S), tl.program_id(0) * TILE_D + tl.arange(0, TILE_D)
    is_in_sd = (s < S)[:, None] & (d < D)[None, :]
    part_sd = tl.load(part + s[:, None] * D + d[None, :], mask=is_in_sd, other=0.0)
    tl.store(out + d, tl.sum(part_sd, 0), mask=d < D)


@kernel
def _column_sums(x, part, N, D: tl.constexpr, n_strips, ROWS: tl.constexpr, TILE_D: tl.constexpr):
    strip, d = tl.program_id(0), tl.arange(0, TILE_D)
    sum_nd = tl.zeros([ROWS, TILE_D], tl.float32)
    for start in range(strip * ROWS, N, n_strips * ROWS):
        n = start + tl.arange(0, ROWS)
        is_in_nd = (n < N)[:, None] & (d < D)[None, :]
        sum_nd += tl.load(x + n[:, None].to(tl.int64) * D + d[None, :], mask=is_in_nd, other=0.0).to(
            tl.float32
        )
    tl.store(part + strip * D + d, tl.sum(sum_nd, 0), mask=d < D)


@kernel
def _standardised(x, at_nd, is_in_nd, D: tl.constexpr, eps):
    """Rows with mean 0 and variance 1, zero beyond their ends, and what they were multiplied by."""
    x_nd = tl.load(x + at_nd, mask=is_in_nd, other=0.0).to(tl.float32)
    centred_nd = tl.where(is_in_nd, x_nd - (tl.sum(x_nd, 1) / D)[:, None], 0.0)
    factor_n = 1 / tl.sqrt(tl.sum(centred_nd * centred_nd, 1) / D + eps)
    return centred_nd * factor_n[:, None], factor_n


@kernel
def _normed(x, weight, bias, out, N, D: tl.constexpr, eps, ROWS: tl.constexpr, TILE_D: tl.constexpr):
    n, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, TILE_D)
    is_in_nd = (n < N)[:, None] & (d < D)[None, :]
    at_nd = n[:, None].to(tl.int64) * D + d[None, :]
    unit_nd, _ = _standardised(x, at_nd, is_in_nd, D, eps)
    weight_d = tl.load(weight + d, mask=d < D, other=0.0)
    bias_d = tl.load(bias + d, mask=d < D, other=0.0)
    tl.store(out + at_nd, unit_nd * weight_d[None, :] + bias_d[None, :], mask=is_in_nd)


@kernel
def _norm_gradients(
    grad, x, weight, out, part, N, D: tl.constexpr, eps, n_strips, ROWS: tl.constexpr, TILE_D: tl.constexpr
):
    strip, d = tl.program_id(0), tl.arange(0, TILE_D)
    weight_d = tl.load(weight + d, mask=d < D, other=0.0)
    of_weight_nd = tl.zeros([ROWS, TILE_D], tl.float32)
    of_bias_nd = tl.zeros([ROWS, TILE_D], tl.float32)
    for start in range(strip * ROWS, N, n_strips * ROWS):
        n = start + tl.arange(0, ROWS)
        is_in_nd = (n < N)[:, None] & (d < D)[None, :]
        at_nd = n[:, None].to(tl.int64) * D + d[None, :]
        unit_nd, factor_n = _standardised(x, at_nd, is_in_nd, D, eps)
        grad_nd = tl.load(grad + at_nd, mask=is_in_nd, other=0.0).to(tl.float32)
        of_weight_nd += grad_nd * unit_nd
        of_bias_nd += grad_nd
        of_unit_nd = grad_nd * weight_d[None, :]
        along_n = tl.sum(of_unit_nd * unit_nd, 1) / D
        mean_n = tl.sum(of_unit_nd, 1) / D
        of_x_nd = (of_unit_nd - mean_n[:, None] - unit_nd * along_n[:, None]) * factor_n[:, None]
        tl.store(out + at_nd, of_x_nd, mask=is_in_nd)
    tl.store(part + strip * 2 * D + d, tl.sum(of_weight_nd, 0), mask=d < D)
    tl.store(part + strip * 2 * D + D + d, tl.sum(of_bias_nd, 0), mask=d < D)
