"""Gradients of a projected table's rows, and of the maps that projected it.

Dimension key: U units, K chosen tokens, V tokens, D width, H heads of C, N choices of a token, R choices,
W table width, S parts of a sum, X = 3D: alignment, key and value side by side.
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
def chunk_sums(
    query_ptr,
    grad_ptr,
    direction_ptr,
    slope_ptr,
    share_ptr,
    order_ptr,
    sorted_ptr,
    sum_ptr,
    R,
    K,
    H: tl.constexpr,
    C: tl.constexpr,
    BH: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Sums over chunks of choices that are all of one token, [3, D] each; others are left as they are."""
    i, first = tl.program_id(0).to(tl.int64), tl.program_id(0) * CHUNK
    last = tl.minimum(first + CHUNK, R)
    if tl.load(sorted_ptr + first) == tl.load(sorted_ptr + last - 1):
        pulled_D, of_key_HC, of_value_HC = _sums(
            query_ptr, grad_ptr, direction_ptr, slope_ptr, share_ptr, order_ptr,
            first, last, K, H, C, BH, BC, BD, BN,
        )  # fmt: skip
        _store_three(sum_ptr + i * (3 * H * C), pulled_D, of_key_HC, of_value_HC, H, C, BH, BC, BD)


@triton.jit
def summed_rows(
    query_ptr,
    grad_ptr,
    direction_ptr,
    slope_ptr,
    share_ptr,
    order_ptr,
    start_ptr,
    sum_ptr,
    projected_ptr,
    scale_ptr,
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
    CHUNK: tl.constexpr,
    LEARNS: tl.constexpr,
):
    """Where units ask once: the gradient of a token's row, summed over who chose it.

    Many may choose one token, and a program that added them one after another would outlast all others: of a
    token's choices only those before its first whole chunk and behind its last are read here.
    """
    token = tl.program_id(0).to(tl.int64)
    start, end = tl.load(start_ptr + token), tl.load(start_ptr + token + 1)
    first, last = tl.cdiv(start, CHUNK), end // CHUNK
    head_end, tail_start = tl.minimum(first * CHUNK, end), tl.maximum(last * CHUNK, first * CHUNK)
    pulled_D, of_key_HC, of_value_HC = _sums(
        query_ptr, grad_ptr, direction_ptr, slope_ptr, share_ptr, order_ptr,
        start, head_end, K, H, C, BH, BC, BD, BN,
    )  # fmt: skip
    more_D, more_key_HC, more_value_HC = _sums(
        query_ptr, grad_ptr, direction_ptr, slope_ptr, share_ptr, order_ptr,
        tail_start, end, K, H, C, BH, BC, BD, BN,
    )  # fmt: skip
    pulled_D, of_key_HC, of_value_HC = pulled_D + more_D, of_key_HC + more_key_HC, of_value_HC + more_value_HC
    d, h, c = tl.arange(0, BD), tl.arange(0, BH)[:, None], tl.arange(0, BC)[None, :]
    is_there_HC = (h < H) & (c < C)
    for i in range(first, last):
        at = sum_ptr + i * (3 * H * C)
        pulled_D += tl.load(at + d, d < H * C, 0.0)
        of_key_HC += tl.load(at + H * C + h * C + c, is_there_HC, 0.0)
        of_value_HC += tl.load(at + 2 * H * C + h * C + c, is_there_HC, 0.0)
    if LEARNS:
        pulled_D, pull = _through_cosine(projected_ptr + token * stride, pulled_D, scale_ptr, H * C, BD)
        tl.store(pulled_ptr + token, pull)
    else:
        pulled_D *= 0.0
    _store_three(
        row_ptr + token * (3 * H * C), pulled_D, of_key_HC * sharpness, of_value_HC, H, C, BH, BC, BD
    )


@triton.jit
def choice_rows(
    query_ptr,
    grad_ptr,
    direction_ptr,
    slope_ptr,
    share_ptr,
    token_ptr,
    projected_ptr,
    scale_ptr,
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
    LEARNS: tl.constexpr,
):
    """Where units ask once: the gradient of the row of each choice."""
    i = tl.program_id(0).to(tl.int64)
    pulled_D, of_key_HC, of_value_HC = _sums(
        query_ptr, grad_ptr, direction_ptr, slope_ptr, share_ptr, token_ptr,
        i, i + 1, K, H, C, BH, BC, BD, 0,
    )  # fmt: skip
    if LEARNS:
        at = projected_ptr + tl.load(token_ptr + i) * stride
        pulled_D, pull = _through_cosine(at, pulled_D, scale_ptr, H * C, BD)
        tl.store(pulled_ptr + i, pull)
    else:
        pulled_D *= 0.0
    _store_three(row_ptr + i * (3 * H * C), pulled_D, of_key_HC * sharpness, of_value_HC, H, C, BH, BC, BD)


@triton.jit
def _sums(
    query_ptr,
    grad_ptr,
    direction_ptr,
    slope_ptr,
    share_ptr,
    order_ptr,
    first,
    last,
    K,
    H: tl.constexpr,
    C: tl.constexpr,
    BH: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
):
    """What choices first..last-1 pull at alignment, key and value; BN = 0: in their own order."""
    d, h = tl.arange(0, BD), tl.arange(0, BH)
    pulled_D = tl.zeros([BD], tl.float32)
    of_key_HC, of_value_HC = tl.zeros([BH, BC], tl.float32), tl.zeros([BH, BC], tl.float32)
    step: tl.constexpr = BN if BN > 0 else 1
    for start in range(first, last, step):
        n = start + tl.arange(0, step)
        choice_N = n
        if BN > 0:
            choice_N = tl.load(order_ptr + n, n < last, 0)
        unit_N = choice_N // K
        at_NH, is_there_NH = choice_N[:, None] * H + h[None, :], (n < last)[:, None] & (h < H)[None, :]
        slope_NH = tl.load(slope_ptr + at_NH, is_there_NH, 0.0)
        share_NH = tl.load(share_ptr + at_NH, is_there_NH, 0.0)
        query_NHC = chosen_heads(query_ptr, unit_N, n < last, H * C, H, C, BH, BC)
        grad_NHC = chosen_heads(grad_ptr, unit_N, n < last, H * C, H, C, BH, BC)
        of_key_HC += tl.sum(slope_NH[:, :, None] * query_NHC, 0)
        of_value_HC += tl.sum(share_NH[:, :, None] * grad_NHC, 0)
        at_ND = unit_N[:, None] * (H * C) + d[None, :]
        direction_ND = tl.load(direction_ptr + at_ND, (n < last)[:, None] & (d < H * C)[None, :], 0.0)
        pulled_D += tl.sum(tl.sum(slope_NH, 1)[:, None] * direction_ND.to(tl.float32), 0)
    return pulled_D, of_key_HC, of_value_HC


@triton.jit
def _through_cosine(aligned_ptr, pulled_D, scale_ptr, D: tl.constexpr, BD: tl.constexpr):
    """Gradients of an aligned row and of the scale through scale * cos, given that of the row of length 1."""
    d = tl.arange(0, BD)
    aligned_D = tl.load(aligned_ptr + d, d < D, 0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(aligned_D * aligned_D, 0)), 1e-12)
    aligned_D /= length
    pull = tl.sum(pulled_D * aligned_D, 0)
    return (pulled_D - pull * aligned_D) * (tl.load(scale_ptr) / length), pull


@triton.jit
def _store_three(
    ptr,
    aligned_D,
    key_HC,
    value_HC,
    H: tl.constexpr,
    C: tl.constexpr,
    BH: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
):
    d, h, c = tl.arange(0, BD), tl.arange(0, BH)[:, None], tl.arange(0, BC)[None, :]
    tl.store(ptr + d, aligned_D, d < H * C)
    tl.store(ptr + H * C + h * C + c, key_HC, (h < H) & (c < C))
    tl.store(ptr + 2 * H * C + h * C + c, value_HC, (h < H) & (c < C))


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
    D: tl.constexpr,
    BD: tl.constexpr,
    BR: tl.constexpr,
    BW: tl.constexpr,
):
    """Parts of row^T table[token] and, by the last column of programs, of the sum of rows, [S, 3D * W + 3D].

    Chosen rows of the table are read once, and copied nowhere.
    """
    part, d = tl.program_id(1), tl.arange(0, BD)
    first, last = part * R_part, tl.minimum(part * R_part + R_part, R)
    product_ptr += part.to(tl.int64) * (3 * D * (W + 1))
    if tl.program_id(0) < tl.num_programs(0) - 1:
        w = tl.program_id(0) * BW + tl.arange(0, BW)
        of_aligned_DW, of_key_DW = tl.zeros([BD, BW], tl.float32), tl.zeros([BD, BW], tl.float32)
        of_value_DW = tl.zeros([BD, BW], tl.float32)
        for start in range(first, last, BR):
            r = start + tl.arange(0, BR)
            token_R = tl.load(token_ptr + r, r < R, 0)
            at_RW = token_R[:, None] * table_stride + w[None, :]
            table_RW = tl.load(table_ptr + at_RW, (r < R)[:, None] & (w < W)[None, :], 0.0)
            of_aligned_DW = _added_product(of_aligned_DW, row_ptr, r, R, table_RW, D, BD)
            of_key_DW = _added_product(of_key_DW, row_ptr + D, r, R, table_RW, D, BD)
            of_value_DW = _added_product(of_value_DW, row_ptr + 2 * D, r, R, table_RW, D, BD)
        at_DW, is_there_DW = d[:, None] * W + w[None, :], (d < D)[:, None] & (w < W)[None, :]
        tl.store(product_ptr + at_DW, of_aligned_DW, is_there_DW)
        tl.store(product_ptr + D * W + at_DW, of_key_DW, is_there_DW)
        tl.store(product_ptr + 2 * D * W + at_DW, of_value_DW, is_there_DW)
    else:
        for i in tl.static_range(3):
            sum_D = tl.zeros([BD], tl.float32)
            for start in range(first, last, BR):
                row_DR = _rows_across(row_ptr + i * D, start + tl.arange(0, BR), R, D, BD)
                sum_D += tl.sum(row_DR.to(tl.float32), 1)
            tl.store(product_ptr + 3 * D * W + i * D + d, sum_D, d < D)


@triton.jit
def _added_product(sum_DW, row_ptr, r, R, table_RW, D: tl.constexpr, BD: tl.constexpr):
    return tl.dot(_rows_across(row_ptr, r, R, D, BD), table_RW, sum_DW, input_precision="ieee")


@triton.jit
def _rows_across(row_ptr, r, R, D: tl.constexpr, BD: tl.constexpr):
    """A third of each row, [D, R]."""
    d = tl.arange(0, BD)
    return tl.load(row_ptr + r[None, :] * (3 * D) + d[:, None], (r < R)[None, :] & (d < D)[:, None], 0.0)


@triton.jit
def parts_summed(part_ptr, sum_ptr, S, N, BN: tl.constexpr):
    """The sum over S parts of N numbers each, in order."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    sum_N = tl.zeros([BN], tl.float32)
    for s in range(S):
        sum_N += tl.load(part_ptr + s * N + n, n < N, 0.0)
    tl.store(sum_ptr + n, sum_N, n < N)
