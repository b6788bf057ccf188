"""Attention where each unit asks Q times (a row that shares its tokens): matrix products, a head a program.

Dimension key: U units of Q queries, K chosen tokens, H heads of C.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import triton.language as tl

from lexrec.kernels._jit import kernel


@kernel
def many_queries(
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


@kernel
def many_queries_backward(
    query_ptr,
    projected_ptr,
    token_ptr,
    seed_ptr,
    grad_ptr,
    query_grad_ptr,
    row_ptr,
    pull_ptr,
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
    """Gradients of the queries and of each chosen key and value, [U * K, 3D]; sums of slopes, [U, H, K]."""
    u, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k, c = tl.arange(0, BK), tl.arange(0, BC)
    token_K = tl.load(token_ptr + u * K + k, k < K, 0)
    pull_K = tl.zeros([BK], tl.float32)
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
    tl.store(pull_ptr + (u * H + h) * K + k, pull_K, k < K)


@kernel
def _head_rows(ptr, row, is_row, stride, c, C: tl.constexpr):
    return tl.load(ptr + row[:, None] * stride + c[None, :], is_row[:, None] & (c < C)[None, :], 0.0)


@kernel
def _softmax_rows(query_QC, key_KC, is_token_K, sharpness):
    """Attention weights, [Q, K]."""
    logit_QK = tl.dot(query_QC, tl.trans(key_KC), input_precision="ieee") * sharpness
    logit_QK = tl.where(is_token_K[None, :], logit_QK, float("-inf"))
    share_QK = tl.exp(logit_QK - tl.max(logit_QK, 1)[:, None])
    return share_QK / tl.sum(share_QK, 1)[:, None]


@kernel
def _kept_rows(seed_ptr, row_Q, k, K, dropout):
    """What each attention weight is multiplied by, [Q, K]: 0 or 1 / (1 - dropout)."""
    draw_QK = tl.rand(tl.load(seed_ptr), row_Q[:, None] * K + k[None, :])
    return tl.where(draw_QK >= dropout, 1 / (1 - dropout), 0.0)
