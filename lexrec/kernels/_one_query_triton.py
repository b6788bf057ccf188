"""Attention where each unit asks once (a position with tokens of its own): sums in registers, heads at once.

Dimension key: U units, K chosen tokens, H heads of C.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import triton.language as tl

from lexrec.kernels._jit import kernel


@kernel
def one_query(
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
    key_KHC = chosen_heads(projected_ptr + H * C, token_K, k < K, stride, H, C, BH, BC)
    value_KHC = chosen_heads(projected_ptr + 2 * H * C, token_K, k < K, stride, H, C, BH, BC)
    share_KH = _softmax_heads(_heads(query_ptr, u, H, C, BH, BC), key_KHC, k < K, sharpness)
    if DROPS:
        share_KH *= _kept_heads(seed_ptr, u, K, dropout, H, BH, BK)
    mixed_HC = tl.sum(share_KH[:, :, None] * value_KHC, 0)
    h, c = tl.arange(0, BH)[:, None], tl.arange(0, BC)[None, :]
    tl.store(mixed_ptr + u * H * C + h * C + c, mixed_HC, (h < H) & (c < C))


@kernel
def one_query_backward(
    query_ptr,
    projected_ptr,
    token_ptr,
    seed_ptr,
    grad_ptr,
    query_grad_ptr,
    slope_ptr,
    share_ptr,
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
    """Gradient of the query; slopes of the logits and weights of the values, [U, K, H]."""
    u, k = tl.program_id(0).to(tl.int64), tl.arange(0, BK)
    token_K = tl.load(token_ptr + u * K + k, k < K, 0)
    key_KHC = chosen_heads(projected_ptr + H * C, token_K, k < K, stride, H, C, BH, BC)
    value_KHC = chosen_heads(projected_ptr + 2 * H * C, token_K, k < K, stride, H, C, BH, BC)
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
    at_KH = (u * K + k[:, None]) * H + tl.arange(0, BH)[None, :]
    is_there_KH = (k < K)[:, None] & (tl.arange(0, BH) < H)[None, :]
    tl.store(slope_ptr + at_KH, slope_KH, is_there_KH)
    tl.store(share_ptr + at_KH, kept_KH, is_there_KH)


@kernel
def chosen_heads(
    ptr, token_K, is_token_K, stride, H: tl.constexpr, C: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr
):
    """Rows of all heads, [K, H, C], in float32."""
    h, c = tl.arange(0, BH)[None, :, None], tl.arange(0, BC)[None, None, :]
    at_KHC = token_K[:, None, None] * stride + h * C + c
    return tl.load(ptr + at_KHC, is_token_K[:, None, None] & (h < H) & (c < C), 0.0).to(tl.float32)


@kernel
def _heads(ptr, u, H: tl.constexpr, C: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr):
    """The vector of unit u, [H, C], in float32."""
    h, c = tl.arange(0, BH)[:, None], tl.arange(0, BC)[None, :]
    return tl.load(ptr + u * H * C + h * C + c, (h < H) & (c < C), 0.0).to(tl.float32)


@kernel
def _kept_heads(seed_ptr, u, K, dropout, H: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr):
    """What each attention weight is multiplied by, [K, H]: 0 or 1 / (1 - dropout)."""
    h, k = tl.arange(0, BH)[None, :], tl.arange(0, BK)[:, None]
    draw_KH = tl.rand(tl.load(seed_ptr), (u.to(tl.int32) * H + h) * K + k)
    return tl.where(draw_KH >= dropout, 1 / (1 - dropout), 0.0)


@kernel
def _softmax_heads(query_HC, key_KHC, is_token_K, sharpness):
    """Attention weights, [K, H]."""
    logit_KH = tl.sum(key_KHC * query_HC[None], 2) * sharpness
    logit_KH = tl.where(is_token_K[:, None], logit_KH, float("-inf"))
    share_KH = tl.exp(logit_KH - tl.max(logit_KH, 0)[None, :])
    return share_KH / tl.sum(share_KH, 0)[None, :]
