"""Kernels of `place.py`.

Dimension key: B rows, L positions, M = B * L places, N slots, D width, n, d: of one tile.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import torch
import triton
import triton.language as tl
from torch import Tensor

from lexrec.kernels._dropout_triton import drop_below, hashed
from lexrec.kernels._jit import kernel

_ROWS = 32
"""Slots of a tile."""


def placed(
    x_BLD: Tensor, position_LD: Tensor, slot_N: Tensor, seed_1: Tensor | None, dropout: float
) -> Tensor:
    """`drop(x + position)` at the slots, float32 [N, D]; zero at unused ones."""
    (B, L, D), N = x_BLD.shape, len(slot_N)
    out_ND = x_BLD.new_empty(N, D)
    _placed[(triton.cdiv(N, _ROWS),)](
        x_BLD.contiguous(), position_LD.contiguous(), slot_N, slot_N if seed_1 is None else seed_1, out_ND,
        B * L, L, N, D, dropout, drop_below(dropout), dropout > 0, _ROWS, triton.next_power_of_2(D),
    )  # fmt: skip
    return out_ND


def gradient(
    grad_ND: Tensor, slot_N: Tensor, seed_1: Tensor | None, shape: torch.Size, dropout: float
) -> Tensor:
    """Of x, [B, L, D]."""
    (B, L, D), N = shape, len(slot_N)
    of_x_BLD = grad_ND.new_zeros(shape)
    _gradient[(triton.cdiv(N, _ROWS),)](
        grad_ND.contiguous(), slot_N, slot_N if seed_1 is None else seed_1, of_x_BLD,
        B * L, N, D, dropout, drop_below(dropout), dropout > 0, _ROWS, triton.next_power_of_2(D),
    )  # fmt: skip
    return of_x_BLD


@kernel
def _dropped(x_nd, n, d, D: tl.constexpr, seed, dropout, threshold):
    place_nd = n[:, None].to(tl.uint32) * D + d[None, :].to(tl.uint32)
    return tl.where(hashed(place_nd, tl.load(seed)) >= threshold, x_nd / (1 - dropout), 0.0)


@kernel
def _placed(
    x, position, slot, seed, out, M, L, N, D: tl.constexpr, dropout, threshold,
    DROPS: tl.constexpr, ROWS: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    n, d = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64), tl.arange(0, TILE_D)
    slot_n = tl.load(slot + n, mask=n < N, other=0)
    is_in_nd = ((n < N) & (slot_n < M))[:, None] & (d < D)[None, :]
    x_nd = tl.load(x + slot_n[:, None] * D + d[None, :], mask=is_in_nd, other=0.0)
    x_nd += tl.load(position + (slot_n % L)[:, None] * D + d[None, :], mask=is_in_nd, other=0.0)
    if DROPS:
        x_nd = _dropped(x_nd, n, d, D, seed, dropout, threshold)
    tl.store(out + n[:, None] * D + d[None, :], x_nd, mask=(n < N)[:, None] & (d < D)[None, :])


@kernel
def _gradient(
    grad, slot, seed, of_x, M, N, D: tl.constexpr, dropout, threshold,
    DROPS: tl.constexpr, ROWS: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    n, d = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64), tl.arange(0, TILE_D)
    slot_n = tl.load(slot + n, mask=n < N, other=0)
    is_in_nd = ((n < N) & (slot_n < M))[:, None] & (d < D)[None, :]
    grad_nd = tl.load(grad + n[:, None] * D + d[None, :], mask=is_in_nd, other=0.0)
    if DROPS:
        grad_nd = _dropped(grad_nd, n, d, D, seed, dropout, threshold)
    tl.store(of_x + slot_n[:, None] * D + d[None, :], grad_nd, mask=is_in_nd)
