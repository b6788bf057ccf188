"""The K best tokens of a query, given what is known of the groups its vocabulary is in.

A token that is among the K best has at least the score of the K-th best group maximum. Of most groups chosen
only the best token has, so only groups whose second best has it too are scored once more, one after another:
two of 64 on average, all of them where scores are equal.

Dimension key: P groups of G tokens, K chosen ones, D width, X values to select from.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import triton.language as tl

from lexrec.kernels._jit import kernel


@kernel
def best_tokens(
    query_ptr,
    token_ptr,
    noise_ptr,
    scale_ptr,
    best_ptr,
    second_ptr,
    winner_ptr,
    score_ptr,
    list_ptr,
    chosen_ptr,
    first,
    V,
    P,
    n_places,
    query_stride,
    token_stride,
    K,
    D: tl.constexpr,
    BD: tl.constexpr,
    STEP: tl.constexpr,
    G: tl.constexpr,
    BP: tl.constexpr,
    BX_FEW: tl.constexpr,
    BX: tl.constexpr,
    BK: tl.constexpr,
    SORTS: tl.constexpr,
):
    """A query a program. Candidates stand in `list`, scores in `score`: K, then G an open group."""
    m, p, k = tl.program_id(0).to(tl.int64), tl.arange(0, BP), tl.arange(0, BK)
    score_ptr += m * (K + G * K)
    list_ptr += m * (K + G * K)
    value_P = tl.load(best_ptr + m * P + p, p < P, float("-inf"))
    is_chosen_P, place_P = _largest(value_P, p < P, K)
    tl.store(list_ptr + place_P, p, is_chosen_P)
    tl.debug_barrier()
    group_K = tl.load(list_ptr + k, k < K, 0)
    at_K = m * P + group_K
    best_K = tl.load(best_ptr + at_K, k < K, float("inf"))
    second_K = tl.load(second_ptr + at_K, k < K, float("-inf"))
    is_open_K = (k < K) & ~(second_K < tl.min(best_K, 0))
    n_open, place_K = tl.sum(is_open_K.to(tl.int32), 0), tl.cumsum(is_open_K.to(tl.int32), 0) - 1
    winner_K = tl.load(winner_ptr + at_K, k < K, 0).to(tl.int32)
    # Every thread has read the list of groups before one writes over it.
    tl.debug_barrier()
    tl.store(list_ptr + k, tl.where(is_open_K, -1, group_K + winner_K * P), k < K)
    tl.store(score_ptr + k, best_K, k < K)
    # An open group stands where its tokens will.
    tl.store(list_ptr + K + place_K * G, group_K, is_open_K)
    tl.debug_barrier()
    if n_open > 0:
        query_1D = normed_rows(query_ptr, m + tl.arange(0, 1), tl.arange(0, 1) < 1, query_stride, D, BD)
        query_1D = query_1D.to(token_ptr.dtype.element_ty).to(tl.float32)
        noise_ptr += ((first + m) % n_places) * STEP
        for i in range(n_open):
            _open(
                query_1D, token_ptr, noise_ptr, scale_ptr, score_ptr + K + i * G, list_ptr + K + i * G,
                V, P, token_stride, D, BD, STEP, G,
            )  # fmt: skip
        tl.debug_barrier()
    X = K + n_open * G
    if X <= BX_FEW:
        _keep(score_ptr, list_ptr, chosen_ptr + m * K, X, K, BX_FEW, BK, SORTS)
    else:
        _keep(score_ptr, list_ptr, chosen_ptr + m * K, X, K, BX, BK, SORTS)


@kernel
def _open(
    query_1D,
    token_ptr,
    noise_ptr,
    scale_ptr,
    score_ptr,
    list_ptr,
    V,
    P,
    stride,
    D: tl.constexpr,
    BD: tl.constexpr,
    STEP: tl.constexpr,
    G: tl.constexpr,
):
    """The scores and numbers of all tokens of a group; -1 where it has fewer."""
    g, d = tl.arange(0, G), tl.arange(0, BD)
    v = tl.load(list_ptr) + g * P
    is_token = v < V
    token_at_GD = token_ptr + v[:, None].to(tl.int64) * stride + d[None, :]
    token_GD = tl.load(token_at_GD, is_token[:, None] & (d < D)[None, :], 0.0)
    score_G = tl.sum(token_GD.to(tl.float32) * query_1D, 1) * tl.load(scale_ptr)
    if STEP > 0:
        score_G -= tl.load(noise_ptr + v, is_token, 0.0)
    tl.debug_barrier()
    tl.store(score_ptr + g, score_G)
    tl.store(list_ptr + g, tl.where(is_token, v, -1))


@kernel
def _keep(score_ptr, list_ptr, chosen_ptr, X, K, BX: tl.constexpr, BK: tl.constexpr, SORTS: tl.constexpr):
    """The K best of X candidates."""
    x = tl.arange(0, BX)
    token_X = tl.load(list_ptr + x, x < X, -1)
    value_X = tl.load(score_ptr + x, token_X >= 0, float("-inf"))
    is_chosen_X, place_X = _largest(value_X, token_X >= 0, K)
    tl.store(chosen_ptr + place_X, token_X.to(tl.int64), is_chosen_X)
    if SORTS:
        tl.debug_barrier()
        tl.store(score_ptr + place_X, value_X, is_chosen_X)
        _sort(chosen_ptr, score_ptr, K, BK)


@kernel
def _largest(value_X, is_there_X, K):
    """Which are the K largest, and a place of its own for each of them."""
    # Where scores are no numbers, what is not there must still not win.
    key_X = tl.where(is_there_X, tl.where(value_X > float("-inf"), _ordered(value_X), 1), 0)
    least = _kth_largest(key_X, is_there_X, K)
    is_more_X, is_equal_X = key_X > least, key_X == least
    n_more = tl.sum(is_more_X.to(tl.int32), 0)
    # Both counts in one scan: how many are more in the low half, how many equal in the high one.
    count_X = tl.cumsum(is_more_X.to(tl.int32) + is_equal_X.to(tl.int32) * 65536, 0)
    place_X = tl.where(is_more_X, count_X % 65536, n_more + count_X // 65536) - 1
    return is_more_X | (is_equal_X & (place_X < K)), place_X


@kernel
def _sort(chosen_ptr, kept_ptr, K, BK: tl.constexpr):
    """Put K tokens that this program wrote in the order of their values."""
    k = tl.arange(0, BK)
    tl.debug_barrier()
    value_K = tl.load(kept_ptr + k, k < K, float("-inf"))
    token_K = tl.load(chosen_ptr + k, k < K, 0)
    place_K = tl.zeros([BK], tl.int32)
    for first in range(0, K, 16):
        j = first + tl.arange(0, 16)
        value_J = tl.load(kept_ptr + j, j < K, float("-inf"))
        token_J = tl.load(chosen_ptr + j, j < K, 0)
        is_tie_KJ = (value_J[None, :] == value_K[:, None]) & (token_J[None, :] < token_K[:, None])
        is_before_KJ = (value_J[None, :] > value_K[:, None]) | is_tie_KJ
        place_K += tl.sum((is_before_KJ & (j < K)[None, :]).to(tl.int32), 1)
    tl.debug_barrier()
    tl.store(chosen_ptr + place_K, token_K, k < K)


@kernel
def _kth_largest(key_X, is_there_X, K):
    """A number that at least K keys reach, and K keys exactly unless some are equal to it."""
    # Halving: all keys reach `low`, or K at least; fewer than K are above `high`.
    low = tl.min(tl.where(is_there_X, key_X, 4294967295), 0)
    high = tl.max(key_X, 0)
    n_low = K + 1
    while (low < high) & (n_low != K):
        middle = low + (high - low + 1) // 2
        n = tl.sum((key_X >= middle).to(tl.int32), 0)
        n_low = tl.where(n >= K, n, n_low)
        low = tl.where(n >= K, middle, low)
        high = tl.where(n >= K, high, middle - 1)
    return low


@kernel
def _ordered(value):
    """float32 as uint32 in the same order."""
    bits = value.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)


@kernel
def normed_rows(ptr, row, is_row, stride, D: tl.constexpr, BD: tl.constexpr):
    """Rows scaled to length 1, in float32."""
    d = tl.arange(0, BD)
    x = tl.load(
        ptr + row[:, None].to(tl.int64) * stride + d[None, :], is_row[:, None] & (d < D)[None, :], 0.0
    )
    x = x.to(tl.float32)
    return x / tl.maximum(tl.sqrt(tl.sum(x * x, 1)), 1e-12)[:, None]
