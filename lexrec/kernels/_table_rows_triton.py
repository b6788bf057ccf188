"""Gradients of a projected table's rows, and of the maps that projected it.

Dimension key: U units, K chosen tokens, V tokens, D width, H heads of C, N choices of a token, R choices,
W table width, X = 3D: alignment, key and value side by side.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import triton
import triton.language as tl

from lexrec.kernels._one_query_triton import chosen_heads


@triton.jit
def aligned_rows(
    projected_ptr,
    token_ptr,
    direction_ptr,
    scale_ptr,
    pull_ptr,
    row_ptr,
    pulled_ptr,
    K,
    stride,
    H: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
    LEARNS: tl.constexpr,
):
    """Gradient of the chosen aligned rows of a unit through scale * cos, given the slopes of its scores."""
    u, k, d = tl.program_id(0).to(tl.int64), tl.arange(0, BK), tl.arange(0, BD)
    is_there_KD = (k < K)[:, None] & (d < D)[None, :]
    row_KD = tl.zeros([BK, BD], tl.float32)
    if LEARNS:
        token_K = tl.load(token_ptr + u * K + k, k < K, 0)
        pull_K = tl.zeros([BK], tl.float32)
        for h in tl.static_range(H):
            pull_K += tl.load(pull_ptr + (u * H + h) * K + k, k < K, 0.0)
        aligned_KD = tl.load(projected_ptr + token_K[:, None] * stride + d[None, :], is_there_KD, 0.0).to(
            tl.float32
        )
        length_K = tl.maximum(tl.sqrt(tl.sum(aligned_KD * aligned_KD, 1)), 1e-12)
        aligned_KD /= length_K[:, None]
        direction_1D = tl.load(direction_ptr + u * D + d, d < D, 0.0).to(tl.float32)[None, :]
        cosine_K = tl.sum(aligned_KD * direction_1D, 1)
        tl.store(pulled_ptr + u, tl.sum(pull_K * cosine_K, 0))
        slope_K = pull_K * tl.load(scale_ptr) / length_K
        row_KD = slope_K[:, None] * (direction_1D - cosine_K[:, None] * aligned_KD)
    tl.store(row_ptr + (u * K + k)[:, None] * (3 * D) + d[None, :], row_KD, is_there_KD)


@triton.jit
def summed_rows(
    query_ptr,
    grad_ptr,
    direction_ptr,
    projected_ptr,
    scale_ptr,
    slope_ptr,
    share_ptr,
    token_ptr,
    order_ptr,
    start_ptr,
    row_ptr,
    pulled_ptr,
    K,
    stride,
    sharpness,
    H: tl.constexpr,
    C: tl.constexpr,
    BH: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
    LEARNS: tl.constexpr,
    EACH: tl.constexpr,
):
    """Where units ask once: the gradient of a token's row, summed over who chose it; EACH: of a choice's."""
    i, d = tl.program_id(0).to(tl.int64), tl.arange(0, BD)
    h, c = tl.arange(0, BH), tl.arange(0, BC)
    of_key_HC, of_value_HC = tl.zeros([BH, BC], tl.float32), tl.zeros([BH, BC], tl.float32)
    pulled_D = tl.zeros([BD], tl.float32)
    if EACH:
        start, end, token = i, i + 1, tl.load(token_ptr + i)
    else:
        start, end, token = tl.load(start_ptr + i), tl.load(start_ptr + i + 1), i
    for first in range(start, end, BN):
        n = first + tl.arange(0, BN)
        choice_N = n if EACH else tl.load(order_ptr + n, n < end, 0)
        unit_N = choice_N // K
        at_NH, is_there_NH = choice_N[:, None] * H + h[None, :], (n < end)[:, None] & (h < H)[None, :]
        slope_NH = tl.load(slope_ptr + at_NH, is_there_NH, 0.0)
        share_NH = tl.load(share_ptr + at_NH, is_there_NH, 0.0)
        query_NHC = chosen_heads(query_ptr, unit_N, n < end, H * C, H, C, BH, BC)
        grad_NHC = chosen_heads(grad_ptr, unit_N, n < end, H * C, H, C, BH, BC)
        of_key_HC += tl.sum(slope_NH[:, :, None] * query_NHC, 0)
        of_value_HC += tl.sum(share_NH[:, :, None] * grad_NHC, 0)
        if LEARNS:
            at_ND = unit_N[:, None] * (H * C) + d[None, :]
            direction_ND = tl.load(direction_ptr + at_ND, (n < end)[:, None] & (d < H * C)[None, :], 0.0)
            pulled_D += tl.sum(tl.sum(slope_NH, 1)[:, None] * direction_ND.to(tl.float32), 0)
    row_ptr += i * (3 * H * C)
    at_HC, is_there_HC = h[:, None] * C + c[None, :], (h < H)[:, None] & (c < C)[None, :]
    tl.store(row_ptr + H * C + at_HC, of_key_HC * sharpness, is_there_HC)
    tl.store(row_ptr + 2 * H * C + at_HC, of_value_HC, is_there_HC)
    if LEARNS:
        aligned_D = tl.load(projected_ptr + token * stride + d, d < H * C, 0.0).to(tl.float32)
        length = tl.maximum(tl.sqrt(tl.sum(aligned_D * aligned_D, 0)), 1e-12)
        aligned_D /= length
        pull = tl.sum(pulled_D * aligned_D, 0)
        tl.store(pulled_ptr + i, pull)
        pulled_D = (pulled_D - pull * aligned_D) * (tl.load(scale_ptr) / length)
    tl.store(row_ptr + d, pulled_D, d < H * C)


@triton.jit
def row_products(
    row_ptr,
    table_ptr,
    token_ptr,
    product_ptr,
    R,
    R_part,
    W,
    table_stride,
    X: tl.constexpr,
    BX: tl.constexpr,
    BR: tl.constexpr,
    BW: tl.constexpr,
):
    """Part of row^T table[token], [S, X, W]: chosen rows of the table are read once, and copied nowhere."""
    part, w = tl.program_id(1), tl.program_id(0) * BW + tl.arange(0, BW)
    x = tl.arange(0, BX)
    product_XW = tl.zeros([BX, BW], tl.float32)
    for first in range(part * R_part, min(part * R_part + R_part, R), BR):
        r = first + tl.arange(0, BR)
        token_R = tl.load(token_ptr + r, r < R, 0)
        row_RX = tl.load(row_ptr + r[:, None] * X + x[None, :], (r < R)[:, None] & (x < X)[None, :], 0.0)
        at_RW = token_R[:, None] * table_stride + w[None, :]
        table_RW = tl.load(table_ptr + at_RW, (r < R)[:, None] & (w < W)[None, :], 0.0)
        product_XW += tl.dot(tl.trans(row_RX), table_RW, input_precision="ieee")
    at_XW = (part * X + x)[:, None] * W + w[None, :]
    tl.store(product_ptr + at_XW, product_XW, (x < X)[:, None] & (w < W)[None, :])
