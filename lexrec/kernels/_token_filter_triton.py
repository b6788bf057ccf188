"""Choosing tokens on a GPU: exact top-K without a tensor of M x V scores.

The K best tokens lie in the K groups with the best maxima, so a choice takes two kernels:

    maxima   of each group the best score, which token has it and the second best, [M, P]; the tokens of group
             p are p, p + P, p + 2P ...
    best     the K best of what those say (_best_tokens_triton.py)

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

from lexrec.kernels._best_tokens_triton import best_tokens, normed_rows
from lexrec.kernels._dropout_triton import draw_seed
from lexrec.kernels._jit import kernel

if TYPE_CHECKING:
    from lexrec.kernels.token_filter import ShiftedGumbel

_CELLS = 16 * 1024 * 1024
"""Group maxima held at once: 64 MiB."""
_TILE = {"BM": 64, "BP": 32, "num_warps": 4}
"""Queries and groups of a program: of larger ones fewer fit a multiprocessor at once."""
_LARGEST = 256
"""Tokens of a group that a byte can number."""


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
    log_3V, n_places, step = (
        (scale, 1, 0) if noise is None else (noise.log_3V.half(), noise.n_places, noise.step)
    )
    fixed = {"D": D, "BD": max(16, triton.next_power_of_2(D)), "STEP": step}
    rows = max(1, _CELLS // max(P, G * k))
    for first in range(0, M, rows):
        n, part_MK = min(rows, M - first), chosen_MK[first : first + rows]
        given = (query_MD[first:], token_VD, log_3V, scale)
        sizes = (first, V, P, n_places, query_MD.stride(0), token_VD.stride(0))
        found = scale.new_empty(n, P), scale.new_empty(n, P), part_MK.new_empty(n, P, dtype=torch.uint8)
        grid = (triton.cdiv(P, _TILE["BP"]), triton.cdiv(n, _TILE["BM"]))
        _maxima[grid](*given, *found, n, *sizes, G, **fixed, **_TILE)
        score_MX, list_MX = (scale.new_empty(n, k + G * k, dtype=t) for t in (torch.float32, torch.int32))
        tile = _best_tile(P, G, k)
        best_tokens[(n,)](
            *given, *found, score_MX, list_MX, part_MK, *sizes, k, **fixed, **tile, SORTS=in_order
        )
    return chosen_MK


def drawn_noise(n_tokens: int, device: torch.device) -> Tensor:
    """`log_3V` of a `ShiftedGumbel`, from one draw of torch's generator."""
    seed = draw_seed(device)
    log_3V = torch.empty(3 * n_tokens, dtype=torch.float16, device=device)
    _draw[(triton.cdiv(n_tokens, 256),)](seed, log_3V, n_tokens, B=256)
    return log_3V


def unit_rows(x_RD: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows scaled to length 1, contiguous."""
    R, D = x_RD.shape
    unit_RD = torch.empty(R, D, dtype=dtype, device=x_RD.device)
    _unit[(triton.cdiv(R, 16),)](x_RD, unit_RD, R, x_RD.stride(0), D=D, BD=triton.next_power_of_2(D), BR=16)
    return unit_RD


def group_size(n_tokens: int, k: int) -> int:
    """Tokens of a group: a power of two; of so many groups few have two of the best tokens."""
    size = 2 << max(0, round(math.log2(max(1.0, n_tokens / k)) / 2))
    while size > 1 and n_tokens // size < k:
        size //= 2
    return min(size, _LARGEST)


def n_groups(n_tokens: int, size: int) -> int:
    """Groups of that size, all of them with a token; in sixteens where it can be, for aligned reads."""
    exact = -(-n_tokens // size)
    return min(n_tokens, -(-exact // 16) * 16)


def _best_tile(P: int, G: int, k: int) -> dict[str, int]:
    power = triton.next_power_of_2
    BP, BX, BK = power(P), power(k + G * k), power(k)
    few, num_warps = min(BX, max(512, 2 * BK)), max(1, min(8, BP // 256))
    return {"G": G, "BP": BP, "BX_FEW": few, "BX": BX, "BK": BK, "num_warps": num_warps}


@kernel
def _maxima(
    query_ptr,
    token_ptr,
    noise_ptr,
    scale_ptr,
    best_ptr,
    second_ptr,
    winner_ptr,
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
    """Of each query and group the best score, its token's place in the group, and the second best."""
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    query_MD = normed_rows(query_ptr, m, m < M, query_stride, D, BD).to(token_ptr.dtype.element_ty)
    scale, place_M, i = tl.load(scale_ptr), (first + m) % n_places * STEP, tl.arange(0, BM)
    minus_one_MM = tl.where(i[:, None] == i[None, :], -1.0, 0.0).to(tl.float16)
    best_MP = tl.full([BM, BP], float("-inf"), tl.float32)
    second_MP, winner_MP = best_MP, tl.zeros([BM, BP], tl.int32)
    n_full = V // P
    for g in range(n_full):
        score_MP = _scores(
            query_MD, minus_one_MM, token_ptr, noise_ptr, place_M, scale, g * P + p, p < P, token_stride,
            D, BD, STEP,
        )  # fmt: skip
        best_MP, second_MP, winner_MP = _better(best_MP, second_MP, winner_MP, score_MP, g)
    for g in range(n_full, G):
        v = g * P + p
        is_token = (p < P) & (v < V)
        score_MP = _scores(
            query_MD, minus_one_MM, token_ptr, noise_ptr, place_M, scale, v, is_token, token_stride,
            D, BD, STEP,
        )  # fmt: skip
        score_MP = tl.where(is_token[None, :], score_MP, float("-inf"))
        best_MP, second_MP, winner_MP = _better(best_MP, second_MP, winner_MP, score_MP, g)
    at_MP, is_there_MP = m[:, None].to(tl.int64) * P + p[None, :], (m < M)[:, None] & (p < P)[None, :]
    tl.store(best_ptr + at_MP, best_MP, is_there_MP)
    tl.store(second_ptr + at_MP, second_MP, is_there_MP)
    tl.store(winner_ptr + at_MP, winner_MP.to(tl.uint8), is_there_MP)


@kernel
def _better(best, second, winner, score, g):
    """What is known of groups, and the scores of one more token of each."""
    second = tl.maximum(second, tl.minimum(best, score))
    return tl.maximum(best, score), second, tl.where(score > best, g, winner)


@kernel
def _scores(
    query_MD,
    minus_one_MM,
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
        # Of long vectors more draws stand behind the last token, so an aligned read need not ask.
        log_MP = tl.load(noise_at_MP, is_token[None, :], 0.0) if STEP == 1 else tl.load(noise_at_MP)
        # Added by a product: operands of products are read ahead, and lie where sums do.
        score_MP = tl.dot(minus_one_MM, log_MP, score_MP)
    return score_MP


@kernel
def _draw(seed_ptr, log_ptr, V, B: tl.constexpr):
    v = tl.program_id(0) * B + tl.arange(0, B)
    # -log of a uniform number is an exponential one. Below -4 there is nothing to be chosen: no infinity.
    log_V = tl.minimum(tl.log(-tl.log(tl.rand(tl.load(seed_ptr), v))), 4.0)
    for i in tl.static_range(3):
        tl.store(log_ptr + i * V + v, log_V, v < V)


@kernel
def _unit(x_ptr, unit_ptr, R, stride, D: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr):
    r, d = tl.program_id(0) * BR + tl.arange(0, BR), tl.arange(0, BD)
    unit_RD = normed_rows(x_ptr, r, r < R, stride, D, BD)
    tl.store(unit_ptr + r[:, None] * D + d[None, :], unit_RD, (r < R)[:, None] & (d < D)[None, :])
