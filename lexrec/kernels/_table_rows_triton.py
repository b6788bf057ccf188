"""Gradients of a projected table's rows, and of the maps that projected it.

Dimension key: U units, K chosen tokens, V tokens, D width, H heads of C, R choices, N of a chunk, J rows of
it, W table width, S parts of a sum, X = 3D: alignment, key and value side by side.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import triton.language as tl

from lexrec.kernels._jit import kernel


@kernel
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


@kernel
def choice_rows(
    query_ptr,
    grad_ptr,
    direction_ptr,
    slope_ptr,
    share_ptr,
    order_ptr,
    token_ptr,
    projected_ptr,
    scale_ptr,
    row_ptr,
    pulled_ptr,
    part_ptr,
    R,
    K,
    stride,
    sharpness,
    H: tl.constexpr,
    C: tl.constexpr,
    BD: tl.constexpr,
    CHUNK: tl.constexpr,
    SUMS: tl.constexpr,
    LEARNS: tl.constexpr,
):
    """Where units ask once: gradients of the rows of a chunk of choices, or of their tokens if SUMS.

    Choices then stand by token, and a product with zeros and ones adds up those of each. What a token has in
    a chunk that it began before is the first of two parts, [3, D] each, and what it has in the chunk that
    it goes on from the second.
    """
    i, D = tl.program_id(0), H * C
    n, j, d = i * CHUNK + tl.arange(0, CHUNK), tl.arange(0, CHUNK), tl.arange(0, BD)
    token_J, is_whole_J, choice_N, row_J = tl.load(token_ptr + n, n < R, 0).to(tl.int32), n < R, n, n
    one_JN, at_JD, is_part_JD = n, n, n
    if SUMS:
        choice_N = tl.load(order_ptr + n, n < R, 0).to(tl.int32)
        is_new_N = (n < R) & ((j == 0) | (token_J != tl.load(token_ptr + n - 1, (n < R) & (j > 0), 0)))
        segment_N = tl.where(n < R, tl.cumsum(is_new_N.to(tl.int32), 0) - 1, CHUNK)
        is_of_JN, n_segments = segment_N[None, :] == j[:, None], tl.sum(is_new_N.to(tl.int32), 0)
        token_J = tl.sum(tl.where(is_of_JN & is_new_N[None, :], token_J[None, :], 0), 1)
        one_JN, row_J = is_of_JN.to(tl.float32), token_J
        began_J = tl.where(j == 0, _goes_on(token_ptr, i * CHUNK, R), 0) > 0
        is_last_J = (j == n_segments - 1) & (began_J == 0)
        goes_on_J = tl.where(is_last_J, _goes_on(token_ptr, i * CHUNK + CHUNK, R), 0) > 0
        is_whole_J = (j < n_segments) & (began_J == 0) & (goes_on_J == 0)
        part_ptr += i.to(tl.int64) * (6 * D)
        at_JD = tl.where(began_J, 0, 3 * D)[:, None] + d[None, :]
        is_part_JD = (began_J | goes_on_J)[:, None] & (d < D)[None, :]
    is_there_ND, unit_at_ND = (n < R)[:, None] & (d < D)[None, :], (choice_N // K)[:, None] * D + d[None, :]
    # Each head's weight stands at its C places.
    weight_at_ND = choice_N[:, None] * H + (d // C)[None, :]
    share_ND = tl.load(share_ptr + weight_at_ND, is_there_ND, 0.0)
    value_ND = share_ND * tl.load(grad_ptr + unit_at_ND, is_there_ND, 0.0).to(tl.float32)
    value_JD = _summed(value_ND, one_JN, part_ptr + 2 * D, at_JD, is_part_JD, SUMS, row_ptr.dtype.element_ty)
    _store_rows(row_ptr + 2 * D, row_J, is_whole_J, value_JD, D, BD)
    slope_ND = tl.load(slope_ptr + weight_at_ND, is_there_ND, 0.0)
    key_ND = slope_ND * tl.load(query_ptr + unit_at_ND, is_there_ND, 0.0).to(tl.float32)
    key_JD = _summed(key_ND, one_JN, part_ptr + D, at_JD, is_part_JD, SUMS, row_ptr.dtype.element_ty)
    _store_rows(row_ptr + D, row_J, is_whole_J, key_JD * sharpness, D, BD)
    direction_ND = tl.load(direction_ptr + unit_at_ND, is_there_ND, 0.0).to(tl.float32)
    aligned_ND = (tl.sum(slope_ND, 1) / C)[:, None] * direction_ND
    aligned_JD = _summed(aligned_ND, one_JN, part_ptr, at_JD, is_part_JD, SUMS, row_ptr.dtype.element_ty)
    aligned_JD, pull_J = _through_cosine(
        projected_ptr, token_J, is_whole_J, aligned_JD, scale_ptr, stride, D, BD, LEARNS
    )
    tl.store(pulled_ptr + i, tl.sum(pull_J, 0))
    _store_rows(row_ptr, row_J, is_whole_J, aligned_JD, D, BD)


@kernel
def _summed(x_ND, one_JN, part_ptr, at_JD, is_part_JD, SUMS: tl.constexpr, TYPE: tl.constexpr):
    """What choices pull, added up by token if SUMS; what tokens of several chunks have here is kept aside."""
    if SUMS:
        one_JN, high_ND = one_JN.to(TYPE), x_ND.to(TYPE)
        sum_JD = tl.dot(one_JN, high_ND, input_precision="ieee")
        if x_ND.dtype != TYPE:
            # What 16 bits leave over, so that the sum is as good as in 32.
            sum_JD = tl.dot(one_JN, (x_ND - high_ND.to(tl.float32)).to(TYPE), sum_JD)
        x_ND = sum_JD
        tl.store(part_ptr + at_JD, x_ND, is_part_JD)
    return x_ND


@kernel
def joined_rows(
    part_ptr,
    token_ptr,
    projected_ptr,
    scale_ptr,
    row_ptr,
    pulled_ptr,
    R,
    stride,
    sharpness,
    D: tl.constexpr,
    BD: tl.constexpr,
    CHUNK: tl.constexpr,
    LEARNS: tl.constexpr,
):
    """The row of the token that begins in a chunk and goes on in the next ones, if there is one."""
    i = tl.program_id(0)
    first, next_ = i * CHUNK, i * CHUNK + CHUNK
    token = tl.load(token_ptr + tl.minimum(next_, R) - 1).to(tl.int32)
    began = tl.where(tl.load(token_ptr + first).to(tl.int32) == token, _goes_on(token_ptr, first, R), 0)
    pull = 0.0
    if _goes_on(token_ptr, next_, R) > began:
        three, d = tl.arange(0, 4)[:, None], tl.arange(0, BD)[None, :]
        at_3D, is_there_3D = three * D + d, (three < 3) & (d < D)
        sum_3D = tl.load(part_ptr + (2 * i + 1).to(tl.int64) * (3 * D) + at_3D, is_there_3D, 0.0)
        chunk = i + 1
        while chunk > 0:
            sum_3D += tl.load(part_ptr + (2 * chunk).to(tl.int64) * (3 * D) + at_3D, is_there_3D, 0.0)
            chunk += 1
            at = chunk * CHUNK
            goes_on = tl.load(token_ptr + at, at < R, -1).to(tl.int32) == token
            chunk = tl.where(goes_on & (at < R), chunk, 0)
        aligned_1D = tl.sum(tl.where(three == 0, sum_3D, 0.0), 0)[None, :]
        key_1D = tl.sum(tl.where(three == 1, sum_3D, 0.0), 0)[None, :]
        value_1D = tl.sum(tl.where(three == 2, sum_3D, 0.0), 0)[None, :]
        token_1 = token + tl.arange(0, 1)
        aligned_1D, pull_1 = _through_cosine(
            projected_ptr, token_1, token_1 >= 0, aligned_1D, scale_ptr, stride, D, BD, LEARNS
        )
        pull = tl.sum(pull_1, 0)
        _store_rows(row_ptr, token_1, token_1 >= 0, aligned_1D, D, BD)
        _store_rows(row_ptr + D, token_1, token_1 >= 0, key_1D * sharpness, D, BD)
        _store_rows(row_ptr + 2 * D, token_1, token_1 >= 0, value_1D, D, BD)
    tl.store(pulled_ptr + tl.num_programs(0) + i, pull)


@kernel
def _goes_on(token_ptr, at, R):
    """1 if choices at - 1 and at are of one token, else 0."""
    is_inside = (at > 0) & (at < R)
    before = tl.load(token_ptr + at - 1, is_inside, 0).to(tl.int32)
    return tl.where(before == tl.load(token_ptr + at, is_inside, 1).to(tl.int32), 1, 0)


@kernel
def _through_cosine(
    projected_ptr,
    token_J,
    is_there_J,
    pulled_JD,
    scale_ptr,
    stride,
    D: tl.constexpr,
    BD: tl.constexpr,
    LEARNS: tl.constexpr,
):
    """Gradients of aligned rows and of the scale through scale * cos, given that of the rows of length 1."""
    pull_J = tl.zeros_like(token_J).to(tl.float32)
    if LEARNS:
        d = tl.arange(0, BD)
        at_JD = token_J[:, None].to(tl.int64) * stride + d[None, :]
        is_there_JD = is_there_J[:, None] & (d < D)[None, :]
        aligned_JD = tl.load(projected_ptr + at_JD, is_there_JD, 0.0).to(tl.float32)
        length_J = tl.maximum(tl.sqrt(tl.sum(aligned_JD * aligned_JD, 1)), 1e-12)
        aligned_JD /= length_J[:, None]
        pull_J = tl.sum(pulled_JD * aligned_JD, 1)
        pulled_JD = (pulled_JD - pull_J[:, None] * aligned_JD) * (tl.load(scale_ptr) / length_J)[:, None]
    else:
        pulled_JD *= 0.0
    return pulled_JD, pull_J


@kernel
def _store_rows(row_ptr, row_J, is_there_J, x_JD, D: tl.constexpr, BD: tl.constexpr):
    """A third of each row."""
    d = tl.arange(0, BD)
    at_JD = row_J[:, None].to(tl.int64) * (3 * D) + d[None, :]
    tl.store(row_ptr + at_JD, x_JD, is_there_J[:, None] & (d < D)[None, :])


@kernel
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
