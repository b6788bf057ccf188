"""Kernels of `means.py`: a row a program, some positions at a time.

Dimension key: B rows, L positions, D width; l, d: of one tile.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import torch
import triton
import triton.language as tl
from torch import Tensor

from lexrec.kernels._jit import kernel

_POSITIONS = 64


def prefix_means(x_BLD: Tensor, is_known_BL: Tensor) -> Tensor:
    """See `means.prefix_means`."""
    mean_BLD = torch.empty_like(x_BLD, memory_format=torch.contiguous_format)
    _run(x_BLD, is_known_BL, mean_BLD, keeps_all=True)
    return mean_BLD


def row_means(x_BLD: Tensor, is_known_BL: Tensor) -> Tensor:
    """See `means.row_means`."""
    mean_BD = x_BLD.new_empty(len(x_BLD), x_BLD.shape[2])
    _run(x_BLD, is_known_BL, mean_BD, keeps_all=False)
    return mean_BD


def _run(x_BLD: Tensor, is_known_BL: Tensor, mean: Tensor, keeps_all: bool) -> None:
    (B, L, D), tile_d = x_BLD.shape, min(64, triton.next_power_of_2(x_BLD.shape[2]))
    tile_l = min(_POSITIONS, triton.next_power_of_2(L))
    grid = (B, triton.cdiv(D, tile_d))
    _means[grid](x_BLD.contiguous(), is_known_BL.contiguous(), mean, L, D, keeps_all, tile_l, tile_d)


@kernel
def _means(x, is_known, mean, L, D, KEEPS_ALL: tl.constexpr, TILE_L: tl.constexpr, TILE_D: tl.constexpr):
    row, d = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE_D + tl.arange(0, TILE_D)
    sum_d, n = tl.zeros([TILE_D], tl.float32), 0
    for first in range(0, L, TILE_L):
        position = first + tl.arange(0, TILE_L)
        is_in_ld = (position < L)[:, None] & (d < D)[None, :]
        at_ld = (row * L + position)[:, None] * D + d[None, :]
        x_ld = tl.load(x + at_ld, mask=is_in_ld, other=0.0).to(tl.float32)
        known_l = tl.load(is_known + row * L + position, mask=position < L, other=0).to(tl.int32)
        part_ld = x_ld * known_l[:, None]
        n_l = n + tl.cumsum(known_l, 0)
        mean_ld = (sum_d[None, :] + tl.cumsum(part_ld, 0)) / tl.maximum(n_l, 1)[:, None]
        mean_ld = tl.where((n_l > 0)[:, None], mean_ld, x_ld)
        if KEEPS_ALL:
            tl.store(mean + at_ld, mean_ld, mask=is_in_ld)
        else:
            at_last_ld = row * D + d[None, :] + 0 * position[:, None]
            tl.store(mean + at_last_ld, mean_ld, mask=is_in_ld & (position == L - 1)[:, None])
        sum_d += tl.sum(part_ld, 0)
        n += tl.sum(known_l, 0)
