"""Attention over packed rows on a GPU: one kernel forward, one backward, for rows that fit one tile.

A program does one head of one row. It reads the row's items where they are among the slots: nothing is
padded, masks are compared, not stored, and the backward pass makes the weights anew, dropout included: if one
is dropped is a hash of its place and of a number drawn for the call.

Dimension key: N slots, M = 3 x D, B rows, D width, i, j: items of a row, k: of a head's width.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import torch
import triton
import triton.language as tl
from torch import Tensor

from lexrec.kernels._dropout_triton import draw_seed, drop_below, hashed
from lexrec.kernels._jit import kernel
from lexrec.kernels.attention import PackedRows

_LOG2E = tl.constexpr(1.4426950408889634)
_LONGEST = 128
"""Row length up to which a row fits one tile."""
_CELLS = 128 * 64
"""Numbers of a tile's queries: 82 KiB of a multiprocessor, and a quarter of a minute for the compiler."""


def fits(longest: int, head_width: int, dtype: torch.dtype) -> bool:
    """True where rows of this length and heads of this width can be done here: 16 bits alone.

    Exact products of float32 tiles are unrolled, which takes the compiler up to minutes.
    """
    tile, tile_k = _tile_of(longest, head_width)
    return dtype.itemsize == 2 and longest <= _LONGEST and tile * tile_k <= _CELLS


def packed_attention(qkv_NM: Tensor, rows: PackedRows, n_heads: int, dropout: float) -> Tensor:
    """As `attention.packed_attention`, for what `fits`."""
    # Drawn outside the operator, so that whoever captures or compiles the step sees the draw.
    seed_1 = draw_seed(qkv_NM.device)
    length_B, longest, causal = rows
    y_ND: Tensor = _attend(qkv_NM, length_B, seed_1, longest, n_heads, causal, dropout)
    return y_ND


@torch.library.custom_op("lexrec::packed_attention", mutates_args=())
def _attend(
    qkv_NM: Tensor,
    length_B: Tensor,
    seed_1: Tensor,
    longest: int,
    n_heads: int,
    causal: bool,
    dropout: float,
) -> Tensor:
    qkv_NM = qkv_NM.contiguous()
    D = qkv_NM.shape[1] // 3
    N, B = len(qkv_NM), len(length_B)
    y_ND = qkv_NM.new_empty(N, D)
    _forward[(B, n_heads)](
        qkv_NM, length_B, seed_1, y_ND, N, D, D // n_heads, (D // n_heads) ** -0.5,
        dropout, drop_below(dropout), causal, dropout > 0, *_tile_of(longest, D // n_heads),
        triton.next_power_of_2(B), num_warps=4,
    )  # fmt: skip
    return y_ND


@_attend.register_fake
def _(
    qkv_NM: Tensor,
    length_B: Tensor,
    seed_1: Tensor,
    longest: int,
    n_heads: int,
    causal: bool,
    dropout: float,
) -> Tensor:
    return qkv_NM.new_empty(len(qkv_NM), qkv_NM.shape[1] // 3)


@torch.library.custom_op("lexrec::packed_attention_backward", mutates_args=())
def _gradient(
    grad_ND: Tensor,
    qkv_NM: Tensor,
    length_B: Tensor,
    seed_1: Tensor,
    longest: int,
    n_heads: int,
    causal: bool,
    dropout: float,
) -> Tensor:
    qkv_NM, grad_ND = qkv_NM.contiguous(), grad_ND.contiguous()
    D = grad_ND.shape[1]
    of_qkv_NM = torch.empty_like(qkv_NM)
    N, B = len(qkv_NM), len(length_B)
    _backward[(B, n_heads)](
        grad_ND, qkv_NM, length_B, seed_1, of_qkv_NM, N, D, D // n_heads, (D // n_heads) ** -0.5,
        dropout, drop_below(dropout), causal, dropout > 0, *_tile_of(longest, D // n_heads),
        triton.next_power_of_2(B), num_warps=4,
    )  # fmt: skip
    return of_qkv_NM


@_gradient.register_fake
def _(
    grad_ND: Tensor,
    qkv_NM: Tensor,
    length_B: Tensor,
    seed_1: Tensor,
    longest: int,
    n_heads: int,
    causal: bool,
    dropout: float,
) -> Tensor:
    return torch.empty_like(qkv_NM)


def _save(ctx, inputs, output):
    *tensors, ctx.longest, ctx.n_heads, ctx.causal, ctx.dropout = inputs
    ctx.save_for_backward(*tensors)


def _to_inputs(ctx, grad_ND):
    of_qkv_NM = _gradient(grad_ND, *ctx.saved_tensors, ctx.longest, ctx.n_heads, ctx.causal, ctx.dropout)
    return of_qkv_NM, *(None,) * 6


_attend.register_autograd(_to_inputs, setup_context=_save)


def _tile_of(longest: int, width: int) -> tuple[int, int]:
    return max(16, triton.next_power_of_2(longest)), max(16, triton.next_power_of_2(width))


@kernel
def _weights(
    query_ik, key_jk, i, length, seed, row_head, scale, threshold,
    CAUSAL: tl.constexpr, DROPS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Softmax of a row's scores, 0 outside it, and True where dropout keeps a weight."""
    score_ij = tl.dot(query_ik, tl.trans(key_jk), input_precision="ieee") * (scale * _LOG2E)
    may_look_ij = (i < length)[None, :] & (i < length)[:, None]
    if CAUSAL:
        may_look_ij = may_look_ij & (i[None, :] <= i[:, None])
    score_ij = tl.where(may_look_ij, score_ij, -1.0e30)
    part_ij = tl.where(may_look_ij, tl.exp2(score_ij - tl.max(score_ij, 1)[:, None]), 0.0)
    weight_ij = part_ij / tl.maximum(tl.sum(part_ij, 1), 1e-30)[:, None]
    keeps_ij = may_look_ij
    if DROPS:
        place_ij = (row_head * TILE + i[:, None]) * TILE + i[None, :]
        keeps_ij = hashed(place_ij.to(tl.uint32), seed) >= threshold
    return weight_ij, keeps_ij


@kernel
def _place(length, b, TILE_B: tl.constexpr):
    """The first slot of a row, its items, and the slots of all rows."""
    r = tl.arange(0, TILE_B)
    length_r = tl.load(length + r, mask=r < tl.num_programs(0), other=0)
    return tl.sum(tl.where(r < b, length_r, 0), 0), tl.load(length + b), tl.sum(length_r, 0)


@kernel
def _clear(n_used, out, N, D, k, K, TILE: tl.constexpr):
    """Zero this head's columns in this row's share of the slots that belong to no row."""
    b, h = tl.program_id(0), tl.program_id(1)
    share = tl.cdiv(N, tl.num_programs(0))
    for first in range(b * share, (b + 1) * share, TILE):
        n = first + tl.arange(0, TILE)
        is_spare_nk = ((n >= n_used) & (n < (b + 1) * share) & (n < N))[:, None] & (k < K)[None, :]
        zero_nk = tl.zeros([TILE, k.shape[0]], out.dtype.element_ty)
        tl.store(out + n[:, None] * D + (h * K + k)[None, :], zero_nk, mask=is_spare_nk)


@kernel
def _forward(
    qkv, length, seed, out, N, D: tl.constexpr, K: tl.constexpr, scale, dropout, threshold,
    CAUSAL: tl.constexpr, DROPS: tl.constexpr, TILE: tl.constexpr, TILE_K: tl.constexpr, TILE_B: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(0), tl.program_id(1)
    i, k = tl.arange(0, TILE), tl.arange(0, TILE_K)
    first, n_items, n_used = _place(length, b, TILE_B)
    is_in_ik = (i < n_items)[:, None] & (k < K)[None, :]
    at_ik = (first + i)[:, None] * 3 * D + (h * K + k)[None, :]
    query_ik = tl.load(qkv + at_ik, mask=is_in_ik, other=0.0)
    key_jk = tl.load(qkv + at_ik + D, mask=is_in_ik, other=0.0)
    value_jk = tl.load(qkv + at_ik + 2 * D, mask=is_in_ik, other=0.0)
    row_head = b * tl.num_programs(1) + h
    weight_ij, keeps_ij = _weights(
        query_ik, key_jk, i, n_items, tl.load(seed), row_head, scale, threshold, CAUSAL, DROPS, TILE
    )
    weight_ij = tl.where(keeps_ij, weight_ij / (1 - dropout), 0.0)
    y_ik = tl.dot(weight_ij.to(value_jk.dtype), value_jk, input_precision="ieee")
    tl.store(out + (first + i)[:, None] * D + (h * K + k)[None, :], y_ik, mask=is_in_ik)
    _clear(n_used, out, N, D, k, K, TILE)


@kernel
def _backward(
    grad, qkv, length, seed, out, N, D: tl.constexpr, K: tl.constexpr, scale, dropout, threshold,
    CAUSAL: tl.constexpr, DROPS: tl.constexpr, TILE: tl.constexpr, TILE_K: tl.constexpr, TILE_B: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(0), tl.program_id(1)
    i, k = tl.arange(0, TILE), tl.arange(0, TILE_K)
    first, n_items, n_used = _place(length, b, TILE_B)
    is_in_ik = (i < n_items)[:, None] & (k < K)[None, :]
    at_ik = (first + i)[:, None] * 3 * D + (h * K + k)[None, :]
    query_ik = tl.load(qkv + at_ik, mask=is_in_ik, other=0.0)
    key_jk = tl.load(qkv + at_ik + D, mask=is_in_ik, other=0.0)
    value_jk = tl.load(qkv + at_ik + 2 * D, mask=is_in_ik, other=0.0)
    grad_ik = tl.load(grad + (first + i)[:, None] * D + (h * K + k)[None, :], mask=is_in_ik, other=0.0)
    row_head = b * tl.num_programs(1) + h
    weight_ij, keeps_ij = _weights(
        query_ik, key_jk, i, n_items, tl.load(seed), row_head, scale, threshold, CAUSAL, DROPS, TILE
    )
    kept_ij = tl.where(keeps_ij, weight_ij / (1 - dropout), 0.0)
    of_value_jk = tl.dot(tl.trans(kept_ij.to(grad_ik.dtype)), grad_ik, input_precision="ieee")
    # kept * <grad, value> summed over a row is what the softmax takes off each score's derivative.
    of_kept_ij = tl.dot(grad_ik, tl.trans(value_jk), input_precision="ieee")
    inner_ij = kept_ij * of_kept_ij
    of_score_ij = (inner_ij - weight_ij * tl.sum(inner_ij, 1)[:, None]) * scale
    of_score_ij = of_score_ij.to(grad_ik.dtype)
    tl.store(out + at_ik, tl.dot(of_score_ij, key_jk, input_precision="ieee"), mask=is_in_ik)
    tl.store(out + at_ik + D, tl.dot(tl.trans(of_score_ij), query_ik, input_precision="ieee"), mask=is_in_ik)
    tl.store(out + at_ik + 2 * D, of_value_jk, mask=is_in_ik)
    for part in range(3):
        _clear(n_used, out + part * D, N, 3 * D, k, K, TILE)
