"""Gradients of a projected table's rows where tokens were chosen many times each: a token a program.

Choices stand by token. A chunk of them that is all of one token is added up first, so that a program adds
whole chunks, and of its token's choices only those before its first whole chunk and behind its last.

Dimension key: V tokens, K chosen tokens, D width, H heads of C, N choices of a token, R choices.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import triton.language as tl

from lexrec.kernels._jit import kernel
from lexrec.kernels._one_query_triton import chosen_heads


@kernel
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


@kernel
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


@kernel
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
    """What choices first..last-1 pull at alignment, key and value."""
    d, h = tl.arange(0, BD), tl.arange(0, BH)
    pulled_D = tl.zeros([BD], tl.float32)
    of_key_HC, of_value_HC = tl.zeros([BH, BC], tl.float32), tl.zeros([BH, BC], tl.float32)
    for start in range(first, last, BN):
        n = start + tl.arange(0, BN)
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


@kernel
def _through_cosine(aligned_ptr, pulled_D, scale_ptr, D: tl.constexpr, BD: tl.constexpr):
    """Gradients of an aligned row and of the scale through scale * cos, given that of the row of length 1."""
    d = tl.arange(0, BD)
    aligned_D = tl.load(aligned_ptr + d, d < D, 0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(aligned_D * aligned_D, 0)), 1e-12)
    aligned_D /= length
    pull = tl.sum(pulled_D * aligned_D, 0)
    return (pulled_D - pull * aligned_D) * (tl.load(scale_ptr) / length), pull


@kernel
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
