"""Kernels of `rms_norm.py`: a program has a few whole rows, or where the weight is trained strips of them.

Dimension key: M rows, D width, S strips of rows, m, d: of one tile.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lexrec.kernels._jit import kernel
from lexrec.kernels.rms_norm import RmsForm

_CELLS = 4096
"""Numbers of a tile, where a row is not longer."""
_MOST_STRIPS = 256
"""Programs that share the rows where the weight is trained."""


def rms_norm(x: Tensor, weight_D: Tensor, form: RmsForm, dtype: torch.dtype) -> Tensor:
    """Of rows that lie in memory without a gap; the result lies as `x` does."""
    y = torch.empty_like(x, dtype=dtype)
    M, sizes = _sizes(x)
    _normed[(triton.cdiv(M, sizes["ROWS"]),)](x, weight_D, y, M, *form, **sizes)
    return y


def gradients(
    grad: Tensor, x: Tensor, weight_D: Tensor, form: RmsForm, is_trained: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and, if it is trained, of the weight; `grad` lies as `x` does."""
    of_x = torch.empty_like(x)
    M, sizes = _sizes(x)
    S = triton.cdiv(M, sizes["ROWS"])
    S = max(1, min(S, _MOST_STRIPS)) if is_trained else S
    part_SD = x.new_empty(S if is_trained else 0, x.shape[-1], dtype=torch.float32)
    _gradients[(S,)](grad, x, weight_D, of_x, part_SD, M, S, *form, TRAINED=is_trained, **sizes)
    return of_x, part_SD.sum(0).to(weight_D.dtype) if is_trained else None


def _sizes(x: Tensor) -> tuple[int, dict[str, Any]]:
    """Rows, and what a program is compiled for."""
    D = x.shape[-1]
    TILE_D = triton.next_power_of_2(D)
    rows = max(1, min(64, _CELLS // TILE_D))
    return x.numel() // D, {
        "D": D,
        "ROWS": rows,
        "TILE_D": TILE_D,
        "num_warps": 4 if TILE_D <= _CELLS else 8,
    }


@kernel
def _unit(x, at_md, is_in_md, D: tl.constexpr, eps):
    """Rows of mean square 1, and what they were multiplied by."""
    x_md = tl.load(x + at_md, mask=is_in_md, other=0.0).to(tl.float32)
    factor_m = 1 / tl.sqrt(tl.sum(x_md * x_md, 1) / D + eps)
    return x_md * factor_m[:, None], factor_m


@kernel
def _normed(x, weight, out, M, eps, offset, D: tl.constexpr, ROWS: tl.constexpr, TILE_D: tl.constexpr):
    m, d = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, TILE_D)
    is_in_md, at_md = (m < M)[:, None] & (d < D)[None, :], m[:, None] * D + d[None, :]
    unit_md, _ = _unit(x, at_md, is_in_md, D, eps)
    weight_d = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32) + offset
    tl.store(out + at_md, unit_md * weight_d[None, :], mask=is_in_md)


@kernel
def _gradients(
    grad, x, weight, out, part, M, S, eps, offset,
    D: tl.constexpr, ROWS: tl.constexpr, TILE_D: tl.constexpr, TRAINED: tl.constexpr,
):  # fmt: skip
    strip, d = tl.program_id(0), tl.arange(0, TILE_D)
    weight_d = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32) + offset
    of_weight_d = tl.zeros([TILE_D], tl.float32)
    for start in range(strip * ROWS, M, S * ROWS):
        m = (start + tl.arange(0, ROWS)).to(tl.int64)
        is_in_md, at_md = (m < M)[:, None] & (d < D)[None, :], m[:, None] * D + d[None, :]
        unit_md, factor_m = _unit(x, at_md, is_in_md, D, eps)
        grad_md = tl.load(grad + at_md, mask=is_in_md, other=0.0).to(tl.float32)
        if TRAINED:
            of_weight_d += tl.sum(grad_md * unit_md, 0)
        of_unit_md = grad_md * weight_d[None, :]
        along_m = tl.sum(of_unit_md * unit_md, 1) / D
        tl.store(out + at_md, (of_unit_md - unit_md * along_m[:, None]) * factor_m[:, None], mask=is_in_md)
    if TRAINED:
        tl.store(part + strip * D + d, of_weight_d, mask=d < D)
