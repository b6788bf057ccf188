"""Attention to chosen rows of a projected table on a GPU: nothing of U x K x D is made where it can be avoided.

One program serves one unit: it reads the K rows that were chosen for it straight from the table. Where a unit
asks once (a position with tokens of its own), products are sums in registers; where it asks Q times (a row
that shares its tokens), they are matrix products.

The gradient of the table's rows comes in one of two forms:

- `rows`: one row for each choice, [U * K, 3D], in the order alignment, key, value.
- `sums`: one row for each token, [V, 3D]: choices are sorted by token, and one program adds up those of
  a token. The sums are always added in the same order, so a gradient is the same bits each time.

Dimension key: U units of Q queries, K chosen tokens, V tokens, D width, H heads of C, N choices of a token.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Asked(NamedTuple):
    """One call: who asks, and what was chosen for them."""

    query_UQD: Tensor
    projected_V3D: Tensor
    """Alignment, keys and values of every token, side by side."""
    token_UK: Tensor
    interest_UD: Tensor
    scale: Tensor
    """Factor on the cosine, float32, one number."""
    seed: Tensor
    """int64, one number: which attention weights are dropped."""
    n_heads: int
    dropout: float


def forward(asked: Asked) -> Tensor:
    """The mixture of values that each query gets, [U, Q, D]."""
    U, Q, D = asked.query_UQD.shape
    mixed_UQD = torch.empty_like(asked.query_UQD)
    if Q == 1:
        _one[(U,)](*_pointers(asked), mixed_UQD, *_numbers(asked), **_blocks(asked))
    else:
        _many[(U, asked.n_heads)](*_pointers(asked), mixed_UQD, Q, *_numbers(asked), **_blocks(asked))
    return mixed_UQD


def backward_rows(asked: Asked, grad_UQD: Tensor, learns: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the queries, of each chosen row [U * K, 3D], and of the scale."""
    (U, Q, D), K = asked.query_UQD.shape, asked.token_UK.shape[1]
    query_UQD, pull_U = torch.empty_like(asked.query_UQD), grad_UQD.new_zeros(U, dtype=torch.float32)
    row_RX = asked.projected_V3D.new_empty(U * K, 3 * D)
    filtering = (asked.interest_UD, asked.scale, pull_U, asked.interest_UD.stride(0))
    given = (*_pointers(asked), grad_UQD, query_UQD, row_RX)
    learning = {"BD": triton.next_power_of_2(D), "LEARNS": learns}
    if Q == 1:
        blocks = {**_blocks(asked), **learning, "SUMS": False}
        _one_backward[(U,)](*given, row_RX, *filtering, *_numbers(asked), **blocks)
    else:
        blocks = {**_blocks(asked), **learning}
        _many_backward[(U,)](*given, *filtering, Q, *_numbers(asked), **blocks)
    return query_UQD, row_RX, pull_U.sum()


def backward_sums(asked: Asked, grad_U1D: Tensor, learns: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the queries, of each token's row [V, 3D], and of the scale; one query a unit."""
    (U, _, D), K, V = asked.query_UQD.shape, asked.token_UK.shape[1], len(asked.projected_V3D)
    query_U1D = torch.empty_like(asked.query_UQD)
    slope_UKH = grad_U1D.new_empty(U, K, asked.n_heads, dtype=torch.float32)
    share_UKH = torch.empty_like(slope_UKH)
    filtering = (asked.interest_UD, asked.scale, slope_UKH, asked.interest_UD.stride(0))
    given = (*_pointers(asked), grad_U1D, query_U1D, slope_UKH, share_UKH)
    blocks, learning = _blocks(asked), {"BD": triton.next_power_of_2(D), "LEARNS": learns}
    _one_backward[(U,)](*given, *filtering, *_numbers(asked), **blocks, **learning, SUMS=True)
    sorted_R, order_R = asked.token_UK.flatten().int().sort(stable=True)
    start_V = torch.searchsorted(sorted_R, torch.arange(V + 1, device=sorted_R.device, dtype=torch.int32))
    row_VX, pull_V = torch.empty_like(asked.projected_V3D), grad_U1D.new_empty(V, dtype=torch.float32)
    choices = (slope_UKH, share_UKH, order_R, start_V)
    sizes = (K, asked.projected_V3D.stride(0), asked.interest_UD.stride(0), (D // asked.n_heads) ** -0.5)
    shape = {name: blocks[name] for name in ("H", "C", "BH", "BC")}
    _token_sums[(V,)](
        asked.query_UQD, grad_U1D, asked.projected_V3D, asked.interest_UD, asked.scale, *choices,
        row_VX, pull_V, *sizes, **shape, **learning, BN=16, num_warps=2,
    )  # fmt: skip
    return query_U1D, row_VX, pull_V.sum()


def _pointers(asked: Asked) -> tuple[Tensor, ...]:
    return asked.query_UQD, asked.projected_V3D, asked.token_UK, asked.seed


def _numbers(asked: Asked) -> tuple[Any, ...]:
    """Sizes and factors that all kernels take last."""
    D, K = asked.query_UQD.shape[2], asked.token_UK.shape[1]
    return K, asked.projected_V3D.stride(0), (D // asked.n_heads) ** -0.5, asked.dropout


def _blocks(asked: Asked) -> dict[str, Any]:
    (_, Q, D), K, H = asked.query_UQD.shape, asked.token_UK.shape[1], asked.n_heads
    blocks = {"H": H, "C": D // H, "DROPS": asked.dropout > 0}
    power = triton.next_power_of_2
    if Q == 1:
        return {**blocks, "BK": power(K), "BH": power(H), "BC": power(D // H), "num_warps": 4}
    # A matrix product has sides of 16 at least.
    sides = {"BQ": max(16, min(64, power(Q))), "BK": max(16, power(K)), "BC": max(16, power(D // H))}
    return {**blocks, **sides, "num_warps": 4}


@triton.jit
def _chosen(ptr, token_K, is_token_K, stride, H: tl.constexpr, C: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr):
    """Rows of all heads, [K, H, C], in float32."""
    h, c = tl.arange(0, BH)[None, :, None], tl.arange(0, BC)[None, None, :]
    at_KHC = token_K[:, None, None] * stride + h * C + c
    return tl.load(ptr + at_KHC, is_token_K[:, None, None] & (h < H) & (c < C), 0.0).to(tl.float32)


@triton.jit
def _heads(ptr, u, H: tl.constexpr, C: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr):
    """The vector of unit u, [H, C], in float32."""
    h, c = tl.arange(0, BH)[:, None], tl.arange(0, BC)[None, :]
    return tl.load(ptr + u * H * C + h * C + c, (h < H) & (c < C), 0.0).to(tl.float32)


@triton.jit
def _kept_heads(seed_ptr, u, K, dropout, H: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr):
    """What each attention weight is multiplied by, [K, H]: 0 or 1 / (1 - dropout)."""
    h, k = tl.arange(0, BH)[None, :], tl.arange(0, BK)[:, None]
    draw_KH = tl.rand(tl.load(seed_ptr), (u.to(tl.int32) * H + h) * K + k)
    return tl.where(draw_KH >= dropout, 1 / (1 - dropout), 0.0)


@triton.jit
def _softmax_heads(query_HC, key_KHC, is_token_K, sharpness):
    """Attention weights, [K, H]."""
    logit_KH = tl.sum(key_KHC * query_HC[None], 2) * sharpness
    logit_KH = tl.where(is_token_K[:, None], logit_KH, float("-inf"))
    share_KH = tl.exp(logit_KH - tl.max(logit_KH, 0)[None, :])
    return share_KH / tl.sum(share_KH, 0)[None, :]


@triton.jit
def _one(
    query_ptr,
    projected_ptr,
    token_ptr,
    seed_ptr,
    mixed_ptr,
    K,
    stride,
    sharpness,
    dropout,
    H: tl.constexpr,
    C: tl.constexpr,
    DROPS: tl.constexpr,
    BK: tl.constexpr,
    BH: tl.constexpr,
    BC: tl.constexpr,
):
    """One query a unit."""
    u, k = tl.program_id(0).to(tl.int64), tl.arange(0, BK)
    token_K = tl.load(token_ptr + u * K + k, k < K, 0)
    key_KHC = _chosen(projected_ptr + H * C, token_K, k < K, stride, H, C, BH, BC)
    value_KHC = _chosen(projected_ptr + 2 * H * C, token_K, k < K, stride, H, C, BH, BC)
    share_KH = _softmax_heads(_heads(query_ptr, u, H, C, BH, BC), key_KHC, k < K, sharpness)
    if DROPS:
        share_KH *= _kept_heads(seed_ptr, u, K, dropout, H, BH, BK)
    mixed_HC = tl.sum(share_KH[:, :, None] * value_KHC, 0)
    h, c = tl.arange(0, BH)[:, None], tl.arange(0, BC)[None, :]
    tl.store(mixed_ptr + u * H * C + h * C + c, mixed_HC, (h < H) & (c < C))


@triton.jit
def _one_backward(
    query_ptr,
    projected_ptr,
    token_ptr,
    seed_ptr,
    grad_ptr,
    query_grad_ptr,
    row_ptr,
    share_ptr,
    interest_ptr,
    scale_ptr,
    pull_ptr,
    interest_stride,
    K,
    stride,
    sharpness,
    dropout,
    H: tl.constexpr,
    C: tl.constexpr,
    DROPS: tl.constexpr,
    BK: tl.constexpr,
    BH: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    LEARNS: tl.constexpr,
    SUMS: tl.constexpr,
):
    """One query a unit; SUMS: `row` takes the slopes of the logits and `share` the weights, [U, K, H]."""
    u, k = tl.program_id(0).to(tl.int64), tl.arange(0, BK)
    token_K = tl.load(token_ptr + u * K + k, k < K, 0)
    key_KHC = _chosen(projected_ptr + H * C, token_K, k < K, stride, H, C, BH, BC)
    value_KHC = _chosen(projected_ptr + 2 * H * C, token_K, k < K, stride, H, C, BH, BC)
    query_HC, grad_HC = _heads(query_ptr, u, H, C, BH, BC), _heads(grad_ptr, u, H, C, BH, BC)
    share_KH = _softmax_heads(query_HC, key_KHC, k < K, sharpness)
    kept_KH, slope_KH = share_KH, tl.sum(value_KHC * grad_HC[None], 2)
    if DROPS:
        factor_KH = _kept_heads(seed_ptr, u, K, dropout, H, BH, BK)
        kept_KH, slope_KH = share_KH * factor_KH, slope_KH * factor_KH
    slope_KH = share_KH * (slope_KH - tl.sum(share_KH * slope_KH, 0)[None, :])
    h, c = tl.arange(0, BH)[None, :, None], tl.arange(0, BC)[None, None, :]
    query_grad_1HC = tl.sum(slope_KH[:, :, None] * key_KHC, 0)[None] * sharpness
    tl.store(query_grad_ptr + u * H * C + h * C + c, query_grad_1HC, (h < H) & (c < C))
    if SUMS:
        at_KH = (u * K + k[:, None]) * H + tl.arange(0, BH)[None, :]
        is_there_KH = (k < K)[:, None] & (tl.arange(0, BH) < H)[None, :]
        tl.store(row_ptr + at_KH, slope_KH, is_there_KH)
        tl.store(share_ptr + at_KH, kept_KH, is_there_KH)
    else:
        at_KHC = (u * K + k)[:, None, None] * (3 * H * C) + h * C + c
        is_there_KHC = (k < K)[:, None, None] & (h < H) & (c < C)
        tl.store(row_ptr + H * C + at_KHC, slope_KH[:, :, None] * query_HC[None] * sharpness, is_there_KHC)
        tl.store(row_ptr + 2 * H * C + at_KHC, kept_KH[:, :, None] * grad_HC[None], is_there_KHC)
        _filter_rows(
            projected_ptr, token_K, tl.sum(slope_KH, 1), row_ptr, interest_ptr, scale_ptr, pull_ptr,
            u, K, stride, interest_stride, H * C, BD, BK, LEARNS,
        )  # fmt: skip


@triton.jit
def _many(
    query_ptr,
    projected_ptr,
    token_ptr,
    seed_ptr,
    mixed_ptr,
    Q,
    K,
    stride,
    sharpness,
    dropout,
    H: tl.constexpr,
    C: tl.constexpr,
    DROPS: tl.constexpr,
    BQ: tl.constexpr,
    BK: tl.constexpr,
    BC: tl.constexpr,
):
    """Q queries a unit, one head a program."""
    u, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k, c = tl.arange(0, BK), tl.arange(0, BC)
    token_K = tl.load(token_ptr + u * K + k, k < K, 0)
    key_KC = _head_rows(projected_ptr + (H + h) * C, token_K, k < K, stride, c, C)
    value_KC = _head_rows(projected_ptr + (2 * H + h) * C, token_K, k < K, stride, c, C)
    for first in range(0, Q, BQ):
        q = first + tl.arange(0, BQ)
        query_QC = _head_rows(query_ptr + u * Q * H * C + h * C, q, q < Q, H * C, c, C)
        share_QK = _softmax_rows(query_QC, key_KC, k < K, sharpness)
        if DROPS:
            share_QK *= _kept_rows(seed_ptr, (u.to(tl.int32) * H + h) * Q + q, k, K, dropout)
        mixed_QC = tl.dot(share_QK.to(value_KC.dtype), value_KC, input_precision="ieee")
        at_QC = (u * Q + q)[:, None] * (H * C) + h * C + c[None, :]
        tl.store(mixed_ptr + at_QC, mixed_QC, (q < Q)[:, None] & (c < C)[None, :])


@triton.jit
def _many_backward(
    query_ptr,
    projected_ptr,
    token_ptr,
    seed_ptr,
    grad_ptr,
    query_grad_ptr,
    row_ptr,
    interest_ptr,
    scale_ptr,
    pull_ptr,
    interest_stride,
    Q,
    K,
    stride,
    sharpness,
    dropout,
    H: tl.constexpr,
    C: tl.constexpr,
    DROPS: tl.constexpr,
    BQ: tl.constexpr,
    BK: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    LEARNS: tl.constexpr,
):
    """Q queries a unit, all heads in turn."""
    u, k, c = tl.program_id(0).to(tl.int64), tl.arange(0, BK), tl.arange(0, BC)
    token_K = tl.load(token_ptr + u * K + k, k < K, 0)
    pull_K = tl.zeros([BK], tl.float32)
    for h in range(H):
        key_KC = _head_rows(projected_ptr + (H + h) * C, token_K, k < K, stride, c, C)
        value_KC = _head_rows(projected_ptr + (2 * H + h) * C, token_K, k < K, stride, c, C)
        of_key_KC, of_value_KC = tl.zeros([BK, BC], tl.float32), tl.zeros([BK, BC], tl.float32)
        for first in range(0, Q, BQ):
            q = first + tl.arange(0, BQ)
            at_unit = u * Q * H * C + h * C
            query_QC = _head_rows(query_ptr + at_unit, q, q < Q, H * C, c, C)
            grad_QC = _head_rows(grad_ptr + at_unit, q, q < Q, H * C, c, C)
            share_QK = _softmax_rows(query_QC, key_KC, k < K, sharpness)
            kept_QK, slope_QK = share_QK, tl.dot(grad_QC, tl.trans(value_KC), input_precision="ieee")
            if DROPS:
                factor_QK = _kept_rows(seed_ptr, (u.to(tl.int32) * H + h) * Q + q, k, K, dropout)
                kept_QK, slope_QK = share_QK * factor_QK, slope_QK * factor_QK
            slope_QK = share_QK * (slope_QK - tl.sum(share_QK * slope_QK, 1)[:, None])
            slope_QK = tl.where((q < Q)[:, None], slope_QK, 0.0)
            pull_K += tl.sum(slope_QK, 0)
            rounded_QK = slope_QK.to(query_QC.dtype)
            of_query_QC = tl.dot(rounded_QK, key_KC, input_precision="ieee") * sharpness
            at_QC = at_unit + q[:, None] * (H * C) + c[None, :]
            tl.store(query_grad_ptr + at_QC, of_query_QC, (q < Q)[:, None] & (c < C)[None, :])
            of_key_KC += tl.dot(tl.trans(rounded_QK), query_QC, input_precision="ieee")
            of_value_KC += tl.dot(tl.trans(kept_QK.to(grad_QC.dtype)), grad_QC, input_precision="ieee")
        at_KC = (u * K + k)[:, None] * (3 * H * C) + h * C + c[None, :]
        is_there_KC = (k < K)[:, None] & (c < C)[None, :]
        tl.store(row_ptr + H * C + at_KC, of_key_KC * sharpness, is_there_KC)
        tl.store(row_ptr + 2 * H * C + at_KC, of_value_KC, is_there_KC)
    _filter_rows(
        projected_ptr, token_K, pull_K, row_ptr, interest_ptr, scale_ptr, pull_ptr,
        u, K, stride, interest_stride, H * C, BD, BK, LEARNS,
    )  # fmt: skip


@triton.jit
def _head_rows(ptr, row, is_row, stride, c, C: tl.constexpr):
    return tl.load(ptr + row[:, None] * stride + c[None, :], is_row[:, None] & (c < C)[None, :], 0.0)


@triton.jit
def _softmax_rows(query_QC, key_KC, is_token_K, sharpness):
    """Attention weights, [Q, K]."""
    logit_QK = tl.dot(query_QC, tl.trans(key_KC), input_precision="ieee") * sharpness
    logit_QK = tl.where(is_token_K[None, :], logit_QK, float("-inf"))
    share_QK = tl.exp(logit_QK - tl.max(logit_QK, 1)[:, None])
    return share_QK / tl.sum(share_QK, 1)[:, None]


@triton.jit
def _kept_rows(seed_ptr, row_Q, k, K, dropout):
    """What each attention weight is multiplied by, [Q, K]: 0 or 1 / (1 - dropout)."""
    draw_QK = tl.rand(tl.load(seed_ptr), row_Q[:, None] * K + k[None, :])
    return tl.where(draw_QK >= dropout, 1 / (1 - dropout), 0.0)


@triton.jit
def _filter_rows(
    projected_ptr,
    token_K,
    pull_K,
    row_ptr,
    interest_ptr,
    scale_ptr,
    pull_ptr,
    u,
    K,
    stride,
    interest_stride,
    D: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
    LEARNS: tl.constexpr,
):
    """Gradient of the aligned rows through scale * cos, given that of the chosen scores."""
    k, d = tl.arange(0, BK), tl.arange(0, BD)
    is_there_KD = (k < K)[:, None] & (d < D)[None, :]
    row_KD = tl.zeros([BK, BD], tl.float32)
    if LEARNS:
        aligned_KD = tl.load(projected_ptr + token_K[:, None] * stride + d[None, :], is_there_KD, 0.0).to(tl.float32)
        length_K = tl.maximum(tl.sqrt(tl.sum(aligned_KD * aligned_KD, 1)), 1e-12)
        aligned_KD /= length_K[:, None]
        interest_D = tl.load(interest_ptr + u * interest_stride + d, d < D, 0.0).to(tl.float32)
        interest_D /= tl.maximum(tl.sqrt(tl.sum(interest_D * interest_D, 0)), 1e-12)
        cosine_K = tl.sum(aligned_KD * interest_D[None, :], 1)
        pull_K = tl.where(k < K, pull_K, 0.0)
        tl.store(pull_ptr + u, tl.sum(pull_K * cosine_K, 0))
        slope_K = pull_K * tl.load(scale_ptr) / length_K
        row_KD = slope_K[:, None] * (interest_D[None, :] - cosine_K[:, None] * aligned_KD)
    tl.store(row_ptr + (u * K + k)[:, None] * (3 * D) + d[None, :], row_KD, is_there_KD)


@triton.jit
def _token_sums(
    query_ptr,
    grad_ptr,
    projected_ptr,
    interest_ptr,
    scale_ptr,
    slope_ptr,
    share_ptr,
    order_ptr,
    start_ptr,
    row_ptr,
    pull_ptr,
    K,
    stride,
    interest_stride,
    sharpness,
    H: tl.constexpr,
    C: tl.constexpr,
    BH: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
    LEARNS: tl.constexpr,
):
    """The gradient of one token's row: the sum over everybody who chose it."""
    v, d = tl.program_id(0).to(tl.int64), tl.arange(0, BD)
    h, c = tl.arange(0, BH), tl.arange(0, BC)
    of_key_HC, of_value_HC = tl.zeros([BH, BC], tl.float32), tl.zeros([BH, BC], tl.float32)
    pulled_D = tl.zeros([BD], tl.float32)
    start, end = tl.load(start_ptr + v), tl.load(start_ptr + v + 1)
    for first in range(start, end, BN):
        n = first + tl.arange(0, BN)
        choice_N = tl.load(order_ptr + n, n < end, 0)
        unit_N = choice_N // K
        at_NH, is_there_NH = choice_N[:, None] * H + h[None, :], (n < end)[:, None] & (h < H)[None, :]
        slope_NH = tl.load(slope_ptr + at_NH, is_there_NH, 0.0)
        share_NH = tl.load(share_ptr + at_NH, is_there_NH, 0.0)
        query_NHC = _chosen(query_ptr, unit_N, n < end, H * C, H, C, BH, BC)
        grad_NHC = _chosen(grad_ptr, unit_N, n < end, H * C, H, C, BH, BC)
        of_key_HC += tl.sum(slope_NH[:, :, None] * query_NHC, 0)
        of_value_HC += tl.sum(share_NH[:, :, None] * grad_NHC, 0)
        if LEARNS:
            at_ND = unit_N[:, None] * interest_stride + d[None, :]
            interest_ND = tl.load(interest_ptr + at_ND, (n < end)[:, None] & (d < H * C)[None, :], 0.0)
            interest_ND = interest_ND.to(tl.float32)
            length_N = tl.maximum(tl.sqrt(tl.sum(interest_ND * interest_ND, 1)), 1e-12)
            pulled_D += tl.sum((tl.sum(slope_NH, 1) / length_N)[:, None] * interest_ND, 0)
    row_ptr += v * (3 * H * C)
    at_HC, is_there_HC = h[:, None] * C + c[None, :], (h < H)[:, None] & (c < C)[None, :]
    tl.store(row_ptr + H * C + at_HC, of_key_HC * sharpness, is_there_HC)
    tl.store(row_ptr + 2 * H * C + at_HC, of_value_HC, is_there_HC)
    if LEARNS:
        aligned_D = tl.load(projected_ptr + v * stride + d, d < H * C, 0.0).to(tl.float32)
        length = tl.maximum(tl.sqrt(tl.sum(aligned_D * aligned_D, 0)), 1e-12)
        aligned_D /= length
        pull = tl.sum(pulled_D * aligned_D, 0)
        tl.store(pull_ptr + v, pull)
        pulled_D = (pulled_D - pull * aligned_D) * (tl.load(scale_ptr) / length)
    else:
        tl.store(pull_ptr + v, 0.0)
    tl.store(row_ptr + d, pulled_D, d < H * C)
