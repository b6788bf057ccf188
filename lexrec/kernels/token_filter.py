"""Choosing the tokens nearest to an interest: exact top-K over a vocabulary that is streamed, never held.

    score[m, v] = scale * cos(interest_m, token_v) + gumbel[row(m), v]
    chosen[m]   = the K best v

Nothing of size [M, V] is made: off a GPU a chunk of rows is scored at a time, on a GPU two kernels
(`_token_filter_triton.py`) keep the best score of each group of tokens. The choice has no gradient; the
estimators that give it one work on the chosen tokens (token_attention.py, token_probability.py).

Interests are rounded to the type of the token vectors, and scores are float32 sums (float64 for float64):
a choice is exact but for scores that differ by the rounding of those sums.

Dimension key: M queries, V tokens, K chosen tokens, D width, P groups of G tokens, C rows of a chunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lexrec.kernels.gpu import has_kernels, on_gpu
from lexrec.kernels.short_tokens import ShortTokens

_CHUNK_CELLS = 2**20
"""Scores held at once: 4 MiB in fp32, which a processor's cache holds."""
_GROUP = 32
"""Tokens of a group of scores."""
_LONG = 1024
"""Tokens from which on noise is read in steps."""
_WIDEST, _LONGEST = 512, 512
"""Bytes of a row, and K, up to which a tile and a list fit a multiprocessor."""
_GPU_CHUNK = 16
"""Chunks on a GPU, where they are not kept in a cache, in those of a processor."""


class ShiftedGumbel:
    """Gumbel(0, 1) noise for any number of rows of V tokens at the price of V draws.

    Each row reads one circular vector of V independent draws, beginning a step behind the row before it, so
    every row is a vector of independent Gumbel draws; only different rows share values, at different tokens.
    A CPU draws 30 million numbers a second, and M x V independent ones cost several times the scores
    themselves. That rows begin side by side lets a GPU's tile of rows share what it has read.
    """

    def __init__(self, n_tokens: int, device: torch.device) -> None:
        self.n_tokens = n_tokens
        self.step = 4 if n_tokens >= _LONG else 1
        """Rows of long vectors begin at multiples of this: a GPU then reads 16 bytes at once."""
        self.n_places = n_tokens // self.step
        """Rows that begin at places of their own; the next ones begin where the first did."""
        self.log_3V = _drawn(n_tokens, device)
        """Minus the draws, thrice, so that none who reads on has to turn back; numbers that fit float16."""

    def rows(self, first: int, last: int) -> Tensor:
        """Noise of rows first..last-1, [last - first, V]."""
        window_PV = self.log_3V.unfold(0, self.n_tokens, self.step)
        if last <= self.n_places:
            return -window_PV[first:last]
        place_R = torch.arange(first, last, device=window_PV.device) % self.n_places
        return window_PV[place_R].neg_()

    def of(self, token_MK: Tensor) -> Tensor:
        """Noise of some tokens of rows 0..M-1, [M, K]."""
        place_M = torch.arange(len(token_MK), device=token_MK.device) % self.n_places * self.step
        return -self.log_3V[place_M[:, None] + token_MK]


def _drawn(n_tokens: int, device: torch.device) -> Tensor:
    """Minus V draws of Gumbel noise, thrice."""
    if has_kernels(device):
        from lexrec.kernels import _token_filter_triton

        return _token_filter_triton.drawn_noise(n_tokens, device)
    # bf16 would have too few bits for the tail that decides a maximum over V.
    return torch.empty(n_tokens, device=device).exponential_().log_().half().float().repeat(3)


@torch.no_grad()
def choose_tokens(
    query_MD: Tensor,
    token_VD: Tensor,
    k: int,
    *,
    scale: Tensor | float = 1.0,
    noise: ShiftedGumbel | None = None,
    rough: ShortTokens | None = None,
    in_order: bool = True,
) -> Tensor:
    """Indexes of the K best tokens of each query, int64 [M, K].

    Args:
        query_MD: interests; normalised here.
        token_VD: token vectors, already L2-normalised.
        k: tokens to choose, at most V.
        scale: multiplies the cosine; how firmly a score stands against the noise.
        noise: Gumbel noise of these queries: K tokens are then sampled without replacement from
            softmax(scale * cos).
        rough: these tokens in 8 bits; without noise they spare most of the arithmetic.
        in_order: best first; else in any order, where that is cheaper.
    """
    if fits(token_VD) and k <= _LONGEST and len(query_MD):
        from lexrec.kernels import _token_filter_triton

        if not isinstance(scale, Tensor):
            # Filled, not copied from the host, which no captured step may do.
            scale = torch.full((), scale, device=token_VD.device)
        factor = scale.to(token_VD.device, torch.float32)
        return _token_filter_triton.choose(query_MD, token_VD, k, factor, noise, in_order)
    unit_MD = F.normalize(query_MD, dim=-1)
    if noise is None and rough is not None and rough.serves(k) and len(query_MD):
        return rough.choose(unit_MD * torch.as_tensor(scale).sign(), k)[0]
    score = Scores(unit_MD, token_VD, scale, noise)
    chosen = [top_k(score.of(part), k) for part in score.chunks()]
    return torch.cat(chosen) if chosen else torch.zeros(0, k, dtype=torch.int64, device=query_MD.device)


def unit_rows(x_RD: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Rows scaled to length 1, without gradient, in one pass and in that type; rows of zeros stay."""
    dtype = dtype or x_RD.dtype
    if fits(x_RD):
        from lexrec.kernels import _token_filter_triton

        return _token_filter_triton.unit_rows(x_RD, dtype)
    return F.normalize(x_RD.detach(), dim=-1).to(dtype)


def fits(x_RD: Tensor) -> bool:
    """True where kernels take rows of this width."""
    return on_gpu(x_RD) and x_RD.shape[1] * x_RD.element_size() <= _WIDEST


class Scores:
    """Scores of a chunk of queries at a time."""

    def __init__(
        self, unit_MD: Tensor, token_VD: Tensor, scale: Tensor | float, noise: ShiftedGumbel | None
    ) -> None:
        dtype = torch.promote_types(token_VD.dtype, torch.float32)
        self.unit_MD, self.token_VD = unit_MD.to(token_VD.dtype).to(dtype), token_VD.to(dtype)
        self._scale, self._noise = scale, noise

    def chunks(self) -> list[slice]:
        n_cells = _CHUNK_CELLS * (_GPU_CHUNK if self.unit_MD.is_cuda else 1)
        step = max(1, n_cells // len(self.token_VD))
        M = len(self.unit_MD)
        return [slice(first, min(first + step, M)) for first in range(0, M, step)]

    def of(self, part: slice) -> Tensor:
        # Autocast would round the sums.
        with torch.autocast(self.token_VD.device.type, enabled=False):
            score_CV = (self.unit_MD[part] * self._scale) @ self.token_VD.T
        return score_CV if self._noise is None else score_CV.add_(self._noise.rows(part.start, part.stop))


def top_k(score_MV: Tensor, k: int) -> Tensor:
    """Indexes of the k largest of each row, largest first.

    The k largest lie in the k groups with the largest maxima, so only those groups are searched: exact, and
    several times faster than one search over V.
    """
    M, V = score_MV.shape
    n_groups = -(-V // _GROUP)
    if n_groups <= 2 * k:
        return score_MV.topk(k, dim=1).indices
    if n_groups * _GROUP != V:
        score_MV = F.pad(score_MV, (0, n_groups * _GROUP - V), value=-torch.inf)
    score_MPG = score_MV.view(M, n_groups, _GROUP)
    group_MK = score_MPG.amax(2).topk(k, dim=1, sorted=False).indices
    best_MX = score_MPG.gather(1, group_MK[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
    place_MK = best_MX.topk(k, dim=1).indices
    return group_MK.gather(1, place_MK // _GROUP) * _GROUP + place_MK % _GROUP
