"""Choosing tokens on a GPU: exact top-K without a tensor of M x V scores.

The K best tokens lie in the K groups with the best maxima, so a choice takes two kernels:

    maxima   the best score of each group, [M, P]; the tokens of group p are p, p + P, p + 2P ...
    best     a query a program: the K groups with the best maxima, the scores of their tokens, the K best of
             those

Scores are float32 sums of products of 16-bit (or float32) numbers, made once more for the tokens of the
chosen groups, so a choice is exact but for scores that differ by the rounding of such sums.

Dimension key: M queries, V tokens, D width, K chosen tokens, P groups of G tokens, X values to select from.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from lexrec.kernels._dropout_triton import draw_seed

if TYPE_CHECKING:
    from lexrec.kernels.token_filter import ShiftedGumbel

_CELLS = 16 * 1024 * 1024
"""Group maxima held at once: 64 MiB."""


def choose(
    query_MD: Tensor,
    token_VD: Tensor,
    k: int,
    scale: Tensor,
    noise: "ShiftedGumbel | None",
    in_order: bool = True,
) -> Tensor:
    """Indexes of the K best tokens of each query, int64 [M, K].

    Args:
        query_MD: interests, normalised here and then rounded to the tokens' type.
        token_VD: normalised token vectors with contiguous rows of any stride.
        k: tokens to choose.
        scale: one number on the device, float32.
        noise: of these queries, or none.
        in_order: best first.
    """
    (M, D), V = query_MD.shape, len(token_VD)
    G = group_size(V, k)
    P = n_groups(V, G)
    chosen_MK = torch.empty(M, k, dtype=torch.int64, device=query_MD.device)
    # Where there is no noise, what is given for it is not read.
    log_3V, n_places, step = (scale, 1, 0) if noise is None else (noise.log_3V, noise.n_places, noise.step)
    fixed = {"D": D, "BD": max(16, triton.next_power_of_2(D)), "STEP": step}
    rows = max(1, _CELLS // max(P, G * k))
    for first in range(0, M, rows):
        n, part_MK = min(rows, M - first), chosen_MK[first : first + rows]
        given = (query_MD[first:], token_VD, log_3V, scale)
        sizes = (first, V, P, n_places, query_MD.stride(0), token_VD.stride(0))
        best_MP, score_MX = (scale.new_empty(n, X) for X in (P, G * k))
        tile = _maxima_blocks(n)
        grid = (triton.cdiv(P, tile["BP"]), triton.cdiv(n, tile["BM"]))
        _maxima[grid](*given, best_MP, n, *sizes, G, **fixed, **tile)
        blocks = _best_blocks(P, G, k)
        _best[(n,)](*given, best_MP, score_MX, part_MK, *sizes, k, **fixed, **blocks, SORTS=in_order)
    return chosen_MK


def drawn_noise(n_tokens: int, device: torch.device) -> Tensor:
    """`log_3V` of a `ShiftedGumbel`, from one draw of torch's generator."""
    seed = draw_seed(device)
    log_3V = torch.empty(3 * n_tokens, device=device)
    _draw[(triton.cdiv(n_tokens, 256),)](seed, log_3V, n_tokens, B=256)
    return log_3V


def unit_rows(x_RD: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows scaled to length 1, contiguous."""
    R, D = x_RD.shape
    unit_RD = torch.empty(R, D, dtype=dtype, device=x_RD.device)
    _unit[(triton.cdiv(R, 16),)](x_RD, unit_RD, R, x_RD.stride(0), D=D, BD=triton.next_power_of_2(D), BR=16)
    return unit_RD


def group_size(n_tokens: int, k: int) -> int:
    """Tokens of a group: a power of two that makes about as many groups as tokens that are scored again."""
    size = 1 << max(0, round(math.log2(max(1.0, n_tokens / k)) / 2))
    while size > 1 and n_tokens // size < k:
        size //= 2
    return size


def n_groups(n_tokens: int, size: int) -> int:
    """Groups of that size, all of them with a token; in sixteens where it can be, for aligned reads."""
    exact = -(-n_tokens // size)
    return min(n_tokens, -(-exact // 16) * 16)


def _maxima_blocks(n_rows: int) -> dict[str, int]:
    return {"BM": 64 if n_rows >= 512 else 16, "BP": 64, "num_warps": 4}


def _best_blocks(P: int, G: int, k: int) -> dict[str, int]:
    power = triton.next_power_of_2
    widest = max(power(P), power(G * k))
    num_warps = min(16, max(1, widest // 512))
    return {
        "G": G,
        "BG": min(G, 4),
        "BP": power(P),
        "BX": power(G * k),
        "BK": power(k),
        "num_warps": num_warps,
    }


@triton.jit
def _maxima(
    query_ptr,
    token_ptr,
    noise_ptr,
    scale_ptr,
    best_ptr,
    M,
    first,
    V,
    P,
    n_places,
    query_stride,
    token_stride,
    G,
    D: tl.constexpr,
    BD: tl.constexpr,
    STEP: tl.constexpr,
    BM: tl.constexpr,
    BP: tl.constexpr,
):
    """The best score of each query in each group."""
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    query_MD = _unit_rows(query_ptr, m, m < M, query_stride, D, BD).to(token_ptr.dtype.element_ty)
    scale, place_M = tl.load(scale_ptr), (first + m) % n_places * STEP
    best_MP = tl.full([BM, BP], float("-inf"), tl.float32)
    n_full = V // P
    for g in range(n_full):
        score_MP = _scores(
            query_MD, token_ptr, noise_ptr, place_M, scale, g * P + p, p < P, token_stride, D, BD, STEP
        )
        best_MP = tl.maximum(best_MP, score_MP)
    for g in range(n_full, G):
        v = g * P + p
        is_token = (p < P) & (v < V)
        score_MP = _scores(
            query_MD, token_ptr, noise_ptr, place_M, scale, v, is_token, token_stride, D, BD, STEP
        )
        best_MP = tl.maximum(best_MP, tl.where(is_token[None, :], score_MP, float("-inf")))
    at_MP = best_ptr + m[:, None].to(tl.int64) * P + p[None, :]
    tl.store(at_MP, best_MP, (m < M)[:, None] & (p < P)[None, :])


@triton.jit
def _scores(
    query_MD,
    token_ptr,
    noise_ptr,
    place_M,
    scale,
    v,
    is_token,
    stride,
    D: tl.constexpr,
    BD: tl.constexpr,
    STEP: tl.constexpr,
):
    """Scores of a tile of queries and tokens; what stands where there is no token is of no use."""
    d = tl.arange(0, BD)
    token_at_DP = token_ptr + v[None, :].to(tl.int64) * stride + d[:, None]
    token_DP = tl.load(token_at_DP, is_token[None, :] & (d < D)[:, None], 0.0)
    score_MP = tl.dot(query_MD, token_DP, input_precision="ieee") * scale
    if STEP > 0:
        noise_at_MP = noise_ptr + (place_M[:, None] + v[None, :])
        if STEP == 1:
            score_MP -= tl.load(noise_at_MP, is_token[None, :], 0.0)
        else:
            # Of long vectors more draws stand behind the last token, so an aligned read need not ask.
            score_MP -= tl.load(noise_at_MP)
    return score_MP


@triton.jit
def _best(
    query_ptr,
    token_ptr,
    noise_ptr,
    scale_ptr,
    best_ptr,
    score_ptr,
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
    BG: tl.constexpr,
    BP: tl.constexpr,
    BX: tl.constexpr,
    BK: tl.constexpr,
    SORTS: tl.constexpr,
):
    """The K best tokens of a query, given the best scores of its groups."""
    m, p, k = tl.program_id(0).to(tl.int64), tl.arange(0, BP), tl.arange(0, BK)
    score_ptr += m * (G * K)
    chosen_ptr += m * K
    value_P = tl.load(best_ptr + m * P + p, p < P, float("-inf"))
    is_chosen_P, place_P = _largest(value_P, p < P, K)
    # The list of groups lies where the tokens will.
    tl.store(chosen_ptr + place_P, p.to(tl.int64), is_chosen_P)
    tl.debug_barrier()
    group_K = tl.load(chosen_ptr + k, k < K, 0).to(tl.int32)
    query_1D = _unit_rows(query_ptr, m + tl.arange(0, 1), tl.arange(0, 1) < 1, query_stride, D, BD)
    query_1D = query_1D.to(token_ptr.dtype.element_ty).to(tl.float32)
    noise_ptr += ((first + m) % n_places) * STEP
    scale, d = tl.load(scale_ptr), tl.arange(0, BD)
    for start in range(0, G, BG):
        for i in tl.static_range(BG):
            v = group_K + (start + i) * P
            is_token = (k < K) & (v < V)
            token_at_KD = token_ptr + v[:, None].to(tl.int64) * token_stride + d[None, :]
            token_KD = tl.load(token_at_KD, is_token[:, None] & (d < D)[None, :], 0.0)
            score_K = tl.sum(token_KD.to(tl.float32) * query_1D, 1) * scale
            if STEP > 0:
                score_K -= tl.load(noise_ptr + v, is_token, 0.0)
            tl.store(score_ptr + (start + i) * K + k, score_K, k < K)
    tl.debug_barrier()
    x = tl.arange(0, BX)
    token_X = tl.load(chosen_ptr + x % K, x < G * K, 0) + (x // K) * P
    is_token_X = (x < G * K) & (token_X < V)
    value_X = tl.load(score_ptr + x, is_token_X, float("-inf"))
    is_chosen_X, place_X = _largest(value_X, is_token_X, K)
    # Every thread has read the groups and the scores before one writes over them.
    tl.debug_barrier()
    tl.store(chosen_ptr + place_X, token_X, is_chosen_X)
    if SORTS:
        tl.store(score_ptr + place_X, value_X, is_chosen_X)
        _sort(chosen_ptr, score_ptr, K, BK)


@triton.jit
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


@triton.jit
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


@triton.jit
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


@triton.jit
def _ordered(value):
    """float32 as uint32 in the same order."""
    bits = value.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)


@triton.jit
def _draw(seed_ptr, log_ptr, V, B: tl.constexpr):
    v = tl.program_id(0) * B + tl.arange(0, B)
    # -log of a uniform number is an exponential one.
    log_V = tl.log(-tl.log(tl.rand(tl.load(seed_ptr), v)))
    for i in tl.static_range(3):
        tl.store(log_ptr + i * V + v, log_V, v < V)


@triton.jit
def _unit(x_ptr, unit_ptr, R, stride, D: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr):
    r, d = tl.program_id(0) * BR + tl.arange(0, BR), tl.arange(0, BD)
    unit_RD = _unit_rows(x_ptr, r, r < R, stride, D, BD)
    tl.store(unit_ptr + r[:, None] * D + d[None, :], unit_RD, (r < R)[:, None] & (d < D)[None, :])


@triton.jit
def _unit_rows(ptr, row, is_row, stride, D: tl.constexpr, BD: tl.constexpr):
    """Rows scaled to length 1, in float32."""
    d = tl.arange(0, BD)
    x = tl.load(
        ptr + row[:, None].to(tl.int64) * stride + d[None, :], is_row[:, None] & (d < D)[None, :], 0.0
    )
    x = x.to(tl.float32)
    return x / tl.maximum(tl.sqrt(tl.sum(x * x, 1)), 1e-12)[:, None]
