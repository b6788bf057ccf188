"""The softmax over a vocabulary on a GPU: its normaliser, and what of its gradient falls on all tokens.

    z[m, v] = (scale * <unit_m, token_v> + noise[m, v]) / tau
    log_sum = log sum_v exp(z)
    slope   = -pull_m exp(z - log_sum) / tau              what every token gets of a pull at the chosen ones

Tiles of z are made three times, once for each result, and kept nowhere.

Dimension key: M queries, V tokens, D width, S parts of a sum over V; BM, BV, BD: of one tile.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lexrec.kernels._jit import kernel

if TYPE_CHECKING:
    from lexrec.kernels.token_filter import ShiftedGumbel

_PROGRAMS = 264
"""Programs that keep a large GPU busy."""


class Asked(NamedTuple):
    """One call."""

    unit_MD: Tensor
    """Interests of length 1, rounded to the type of the tokens."""
    token_VD: Tensor
    scale: Tensor
    """float32, one number on the device."""
    tau: float
    noise: "ShiftedGumbel | None"


def log_sums(asked: Asked) -> Tensor:
    """The normaliser of each query, float32 [M]."""
    M, n_parts, part = len(asked.unit_MD), *_parts(asked)
    log_sum_MS = torch.empty(M, n_parts, dtype=torch.float32, device=asked.unit_MD.device)
    grid = (n_parts, triton.cdiv(M, _BM))
    _log_sums[grid](*_pointers(asked), log_sum_MS, *_numbers(asked), part, **_blocks(asked))
    return log_sum_MS.logsumexp(1)


def slopes(asked: Asked, log_sum_M: Tensor, pull_M: Tensor) -> tuple[Tensor, Tensor]:
    """The products slope token, [M, D], and slope^T unit, [V, D], in float32."""
    (M, D), V, (n_parts, part) = asked.unit_MD.shape, len(asked.token_VD), _parts(asked)
    of_unit_SMD = torch.empty(n_parts, M, D, dtype=torch.float32, device=asked.unit_MD.device)
    of_token_VD = of_unit_SMD.new_empty(V, D)
    given, blocks = (*_pointers(asked), log_sum_M, pull_M), _blocks(asked)
    _of_units[(n_parts, triton.cdiv(M, _BM))](*given, of_unit_SMD, *_numbers(asked), part, **blocks)
    _of_tokens[(triton.cdiv(V, _BV),)](*given, of_token_VD, *_numbers(asked), **blocks)
    return of_unit_SMD.sum(0), of_token_VD


_BM, _BV = 32, 64


def _parts(asked: Asked) -> tuple[int, int]:
    """Parts of the vocabulary that work at once, and tokens of each."""
    n_tiles = triton.cdiv(len(asked.token_VD), _BV)
    n_parts = max(1, min(n_tiles, _PROGRAMS // triton.cdiv(len(asked.unit_MD), _BM)))
    part = triton.cdiv(n_tiles, n_parts) * _BV
    return triton.cdiv(len(asked.token_VD), part), part


def _pointers(asked: Asked) -> tuple[Tensor, ...]:
    noise = asked.noise
    # Where there is no noise, what is given for it is not read.
    return asked.unit_MD, asked.token_VD, asked.scale if noise is None else noise.log_3V, asked.scale


def _numbers(asked: Asked) -> tuple[Any, ...]:
    n_places = 1 if asked.noise is None else asked.noise.n_places
    return len(asked.unit_MD), len(asked.token_VD), 1 / asked.tau, n_places


def _blocks(asked: Asked) -> dict[str, Any]:
    D = asked.unit_MD.shape[1]
    step = 0 if asked.noise is None else asked.noise.step
    return {"D": D, "BD": max(16, triton.next_power_of_2(D)), "STEP": step, "BM": _BM, "BV": _BV}


@kernel
def _rows(ptr, r, R, D: tl.constexpr, BD: tl.constexpr):
    d = tl.arange(0, BD)
    at_RD = r[:, None].to(tl.int64) * D + d[None, :]
    return tl.load(ptr + at_RD, (r < R)[:, None] & (d < D)[None, :], 0.0)


@kernel
def _logits(unit_MD, token_VD, log_ptr, scale, m, v, M, V, inverse_tau, n_places, STEP: tl.constexpr):
    """A tile of z; -inf beyond the last token."""
    score_MV = tl.dot(unit_MD, tl.trans(token_VD), input_precision="ieee") * scale
    if STEP > 0:
        place_M = (m % n_places) * STEP
        is_there_MV = (m < M)[:, None] & (v < V)[None, :]
        score_MV -= tl.load(log_ptr + (place_M[:, None] + v[None, :]), is_there_MV, 0.0)
    return tl.where((v < V)[None, :], score_MV * inverse_tau, float("-inf"))


@kernel
def _log_sums(
    unit_ptr,
    token_ptr,
    log_ptr,
    scale_ptr,
    log_sum_ptr,
    M,
    V,
    inverse_tau,
    n_places,
    part,
    D: tl.constexpr,
    BD: tl.constexpr,
    STEP: tl.constexpr,
    BM: tl.constexpr,
    BV: tl.constexpr,
):
    """The normaliser of each query over one part of the vocabulary."""
    s, m, scale = tl.program_id(0), tl.program_id(1) * BM + tl.arange(0, BM), tl.load(scale_ptr)
    unit_MD = _rows(unit_ptr, m, M, D, BD)
    most_M, sum_M = tl.full([BM], float("-inf"), tl.float32), tl.zeros([BM], tl.float32)
    for first in range(s * part, tl.minimum(s * part + part, V), BV):
        v = first + tl.arange(0, BV)
        token_VD = _rows(token_ptr, v, V, D, BD)
        z_MV = _logits(unit_MD, token_VD, log_ptr, scale, m, v, M, V, inverse_tau, n_places, STEP)
        more_M = tl.maximum(most_M, tl.max(z_MV, 1))
        sum_M = sum_M * tl.exp(most_M - more_M) + tl.sum(tl.exp(z_MV - more_M[:, None]), 1)
        most_M = more_M
    tl.store(log_sum_ptr + m * tl.num_programs(0) + s, most_M + tl.log(sum_M), m < M)


@kernel
def _of_units(
    unit_ptr,
    token_ptr,
    log_ptr,
    scale_ptr,
    log_sum_ptr,
    pull_ptr,
    of_unit_ptr,
    M,
    V,
    inverse_tau,
    n_places,
    part,
    D: tl.constexpr,
    BD: tl.constexpr,
    STEP: tl.constexpr,
    BM: tl.constexpr,
    BV: tl.constexpr,
):
    """The product slope token over one part of the vocabulary, [S, M, D]."""
    s, m, scale = tl.program_id(0), tl.program_id(1) * BM + tl.arange(0, BM), tl.load(scale_ptr)
    unit_MD = _rows(unit_ptr, m, M, D, BD)
    log_sum_M, pull_M = tl.load(log_sum_ptr + m, m < M, 0.0), tl.load(pull_ptr + m, m < M, 0.0)
    of_unit_MD = tl.zeros([BM, BD], tl.float32)
    for first in range(s * part, tl.minimum(s * part + part, V), BV):
        v = first + tl.arange(0, BV)
        token_VD = _rows(token_ptr, v, V, D, BD)
        z_MV = _logits(unit_MD, token_VD, log_ptr, scale, m, v, M, V, inverse_tau, n_places, STEP)
        p_MV = tl.exp(z_MV - log_sum_M[:, None])
        of_unit_MD += tl.dot(p_MV.to(token_VD.dtype), token_VD, input_precision="ieee")
    of_unit_MD *= (-pull_M * inverse_tau)[:, None]
    d = tl.arange(0, BD)
    at_MD = (s.to(tl.int64) * M + m)[:, None] * D + d[None, :]
    tl.store(of_unit_ptr + at_MD, of_unit_MD, (m < M)[:, None] & (d < D)[None, :])


@kernel
def _of_tokens(
    unit_ptr,
    token_ptr,
    log_ptr,
    scale_ptr,
    log_sum_ptr,
    pull_ptr,
    of_token_ptr,
    M,
    V,
    inverse_tau,
    n_places,
    D: tl.constexpr,
    BD: tl.constexpr,
    STEP: tl.constexpr,
    BM: tl.constexpr,
    BV: tl.constexpr,
):
    """The product slope^T unit, [V, D]."""
    v, scale = tl.program_id(0) * BV + tl.arange(0, BV), tl.load(scale_ptr)
    token_VD = _rows(token_ptr, v, V, D, BD)
    of_token_VD = tl.zeros([BV, BD], tl.float32)
    for first in range(0, M, BM):
        m = first + tl.arange(0, BM)
        unit_MD = _rows(unit_ptr, m, M, D, BD)
        log_sum_M, pull_M = tl.load(log_sum_ptr + m, m < M, 0.0), tl.load(pull_ptr + m, m < M, 0.0)
        z_MV = _logits(unit_MD, token_VD, log_ptr, scale, m, v, M, V, inverse_tau, n_places, STEP)
        slope_MV = tl.exp(z_MV - log_sum_M[:, None]) * (-pull_M * inverse_tau)[:, None]
        of_token_VD += tl.dot(tl.trans(slope_MV.to(unit_MD.dtype)), unit_MD, input_precision="ieee")
    d = tl.arange(0, BD)
    at_VD = v[:, None].to(tl.int64) * D + d[None, :]
    tl.store(of_token_ptr + at_VD, of_token_VD, (v < V)[:, None] & (d < D)[None, :])
