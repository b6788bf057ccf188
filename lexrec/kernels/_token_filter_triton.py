"""Choosing tokens on a GPU: exact top-K without a tensor of M x V scores.

The K best tokens lie in the K groups with the best maxima, so a choice takes four kernels:

    maxima   the best score of each group, [M, P]; the tokens of group p are p, p + P, p + 2P ...
    select   the K groups with the best maxima
    rescore  the scores of their tokens, [M, G * K]
    select   the K best of those, best first

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
) -> Tensor:
    """Indexes of the K best tokens of each query, best first, int64 [M, K].

    Args:
        query_MD: interests, normalised here and then rounded to the tokens' type.
        token_VD: normalised token vectors with contiguous rows of any stride.
        k: tokens to choose.
        scale: one number on the device, float32.
        noise: of these queries, or none.
    """
    M, V = len(query_MD), len(token_VD)
    G = group_size(V, k)
    P = n_groups(V, G)
    chosen_MK = torch.empty(M, k, dtype=torch.int64, device=query_MD.device)
    rows = max(1, _CELLS // max(P, G * k))
    for first in range(0, M, rows):
        part = slice(first, first + rows)
        _choose_rows(query_MD[part], token_VD, scale, noise, part, chosen_MK[part])
    return chosen_MK


def drawn_noise(n_rows: int, n_tokens: int, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`log_3V` and `place_M` of a `ShiftedGumbel`, from one draw of torch's generator."""
    seed = torch.empty(1, dtype=torch.int64, device=device).random_(2**31 - 1)
    log_3V = torch.empty(3 * n_tokens, device=device)
    place_M = torch.empty(n_rows, dtype=torch.int64, device=device)
    grid = (triton.cdiv(max(3 * n_tokens, n_rows), 512),)
    _draw[grid](seed, log_3V, place_M, n_rows, n_tokens, n_tokens // step, B=512)
    return log_3V, place_M


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


def _choose_rows(
    query_MD: Tensor,
    token_VD: Tensor,
    scale: Tensor,
    noise: "ShiftedGumbel | None",
    part: slice,
    chosen_MK: Tensor,
) -> None:
    (M, D), V, k = query_MD.shape, len(token_VD), chosen_MK.shape[1]
    G = group_size(V, k)
    P = n_groups(V, G)
    # Where there is no noise, what is given for it is not read.
    drawn = (scale, scale) if noise is None else (noise.log_3V, noise.place_M[part])
    step = 0 if noise is None else noise.step
    scored = (query_MD, token_VD, *drawn, scale)
    sizes = (V, P, k, query_MD.stride(0), token_VD.stride(0))
    fixed = {"D": D, "BD": max(16, triton.next_power_of_2(D)), "STEP": step}
    new = {"dtype": torch.float32, "device": query_MD.device}
    best_MP = torch.empty(M, P, **new)  # type: ignore[call-overload]
    BM = 64 if M >= 512 else 16
    grid = (triton.cdiv(P, 64), triton.cdiv(M, BM))
    _maxima[grid](*scored, best_MP, M, *sizes, **fixed, G=G, BM=BM, BP=64, num_warps=4)
    group_MK = torch.empty(M, k, dtype=torch.int32, device=query_MD.device)
    _select[(M,)](best_MP, group_MK, best_MP, best_MP, P, V, P, k, **_select_blocks(P, k), LAST=False)
    score_MX = torch.empty(M, G * k, **new)  # type: ignore[call-overload]
    BG = min(G, 4)
    grid = (M, triton.cdiv(G, BG))
    _rescore[grid](*scored, group_MK, score_MX, *sizes, **fixed, BG=BG, **_rescore_blocks(k))
    value_MK = torch.empty(M, k, **new)  # type: ignore[call-overload]
    blocks = _select_blocks(G * k, k)
    _select[(M,)](score_MX, chosen_MK, group_MK, value_MK, G * k, V, P, k, **blocks, LAST=True)


def _select_blocks(n: int, k: int) -> dict[str, int]:
    BX = triton.next_power_of_2(n)
    return {"BX": BX, "BK": triton.next_power_of_2(k), "num_warps": min(16, max(1, BX // 512))}


def _rescore_blocks(k: int) -> dict[str, int]:
    BK = triton.next_power_of_2(k)
    return {"BK": BK, "num_warps": min(8, max(1, BK // 16))}


@triton.jit
def _maxima(
    query_ptr,
    token_ptr,
    noise_ptr,
    place_ptr,
    scale_ptr,
    best_ptr,
    M,
    V,
    P,
    K,
    query_stride,
    token_stride,
    D: tl.constexpr,
    BD: tl.constexpr,
    STEP: tl.constexpr,
    G: tl.constexpr,
    BM: tl.constexpr,
    BP: tl.constexpr,
):
    """The best score of each query in each group."""
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    query_MD = _unit_rows(query_ptr, m, m < M, query_stride, D, BD).to(token_ptr.dtype.element_ty)
    scale = tl.load(scale_ptr)
    d = tl.arange(0, BD)
    best_MP = tl.full([BM, BP], float("-inf"), tl.float32)
    if STEP > 0:
        place_M = tl.load(place_ptr + m, m < M, 0).to(tl.int32) * STEP
    for g in range(G):
        v = g * P + p
        is_token = (p < P) & (v < V)
        token_DP = tl.load(
            token_ptr + v[None, :].to(tl.int64) * token_stride + d[:, None],
            is_token[None, :] & (d < D)[:, None],
            0.0,
        )
        score_MP = tl.dot(query_MD, token_DP, input_precision="ieee") * scale
        if STEP > 0:
            # Aligned reads must not ask which tokens there are; beyond the last one stand more draws.
            is_read_P = is_token if STEP == 1 else p < P
            log_MP = tl.load(
                noise_ptr + (place_M[:, None] + v[None, :]), is_read_P[None, :] & (m < M)[:, None], 0.0
            )
            score_MP -= log_MP
        best_MP = tl.maximum(best_MP, tl.where(is_token[None, :], score_MP, float("-inf")))
    tl.store(
        best_ptr + m[:, None].to(tl.int64) * P + p[None, :], best_MP, (m < M)[:, None] & (p < P)[None, :]
    )


@triton.jit
def _rescore(
    query_ptr,
    token_ptr,
    noise_ptr,
    place_ptr,
    scale_ptr,
    group_ptr,
    score_ptr,
    V,
    P,
    K,
    query_stride,
    token_stride,
    D: tl.constexpr,
    BD: tl.constexpr,
    STEP: tl.constexpr,
    BG: tl.constexpr,
    BK: tl.constexpr,
):
    """The scores of BG tokens of each chosen group; -inf where a group has fewer."""
    m = tl.program_id(0).to(tl.int64)
    k, d = tl.arange(0, BK), tl.arange(0, BD)
    query_1D = _unit_rows(query_ptr, m + tl.arange(0, 1), tl.arange(0, 1) < 1, query_stride, D, BD)
    query_1D = query_1D.to(token_ptr.dtype.element_ty).to(tl.float32)
    scale = tl.load(scale_ptr)
    group_K = tl.load(group_ptr + m * K + k, k < K, 0)
    for i in tl.static_range(BG):
        g = tl.program_id(1) * BG + i
        v = group_K + g * P
        is_token = (k < K) & (v < V)
        token_KD = tl.load(
            token_ptr + v[:, None].to(tl.int64) * token_stride + d[None, :],
            is_token[:, None] & (d < D)[None, :],
            0.0,
        )
        score_K = tl.sum(token_KD.to(tl.float32) * query_1D, 1) * scale
        if STEP > 0:
            score_K -= tl.load(noise_ptr + tl.load(place_ptr + m) * STEP + v, is_token, 0.0)
        score_K = tl.where(is_token, score_K, float("-inf"))
        tl.store(score_ptr + (m * tl.num_programs(1) * BG + g) * K + k, score_K, k < K)


@triton.jit
def _select(
    value_ptr,
    chosen_ptr,
    group_ptr,
    kept_ptr,
    X,
    V,
    P,
    K,
    BX: tl.constexpr,
    BK: tl.constexpr,
    LAST: tl.constexpr,
):
    """The K largest of X values: their places in any order, or if LAST the tokens there, largest first."""
    m = tl.program_id(0).to(tl.int64)
    x = tl.arange(0, BX)
    value_X = tl.load(value_ptr + m * X + x, x < X, float("-inf"))
    key_X = tl.where(value_X > float("-inf"), _ordered(value_X), 1)
    is_there_X = x < X
    if LAST:
        token_X = tl.load(group_ptr + m * K + x % K, x < X, 0) + (x // K) * P
        is_there_X = is_there_X & (token_X < V)
    # Where scores are no numbers, a place beyond the end must still not win.
    key_X = tl.where(is_there_X, key_X, 0)
    least = _kth_largest(key_X, is_there_X, K)
    is_more_X, is_equal_X = key_X > least, key_X == least
    n_more = tl.sum(is_more_X.to(tl.int32), 0)
    # Both counts in one scan: how many are more in the low half, how many equal in the high one.
    count_X = tl.cumsum(is_more_X.to(tl.int32) + is_equal_X.to(tl.int32) * 65536, 0)
    place_X = tl.where(is_more_X, count_X % 65536, n_more + count_X // 65536) - 1
    is_chosen_X = is_more_X | (is_equal_X & (place_X < K))
    if LAST:
        tl.store(kept_ptr + m * K + place_X, value_X, is_chosen_X)
        tl.store(chosen_ptr + m * K + place_X, token_X.to(tl.int64), is_chosen_X)
        _sort(chosen_ptr + m * K, kept_ptr + m * K, K, BK)
    else:
        tl.store(chosen_ptr + m * K + place_X, x, is_chosen_X)


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
def _draw(seed_ptr, log_ptr, place_ptr, M, V, n_places, B: tl.constexpr):
    i, seed = tl.program_id(0) * B + tl.arange(0, B), tl.load(seed_ptr)
    # -log of a uniform number is an exponential one.
    tl.store(log_ptr + i, tl.log(-tl.log(tl.rand(seed, i % V))), i < 3 * V)
    # Half of an unsigned number is a positive signed one.
    place = (tl.randint(seed, V + i).to(tl.uint32, bitcast=True) >> 1).to(tl.int32) % n_places
    tl.store(place_ptr + i, place.to(tl.int64), i < M)


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
