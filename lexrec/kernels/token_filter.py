"""Choosing the tokens nearest to an interest: exact top-K over a vocabulary, a chunk of rows at a time.

    score[m, v] = scale * cos(interest_m, aligned_v) + gumbel[row(m), v]
    chosen[m]   = the K best v

Nothing of size [M, V] outlives a chunk. The choice itself has no gradient; the estimators that give it one
work on the chosen tokens (item_encoders/_expert.py).

Dimension key: M queries, V tokens, K chosen tokens, D width, P groups of G tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK_CELLS = 16 * 1024 * 1024
"""Scores held at once: 64 MiB in fp32."""
_GROUP = 32
"""Tokens of a group in the two-stage top-K."""


@torch.no_grad()
def choose_tokens(
    query_MD: Tensor, token_VD: Tensor, k: int, *, scale: Tensor | float = 1.0, noise: bool = False
) -> Tensor:
    """Indexes of the K best tokens of each query, best first, int64 [M, K].

    Args:
        query_MD: interests; normalised here.
        token_VD: token vectors, already L2-normalised.
        k: tokens to choose, at most V.
        scale: multiplies the cosine; how firmly a score stands against the noise.
        noise: add Gumbel noise, which samples K tokens without replacement from softmax(scale * cos).
    """
    query_MD = F.normalize(query_MD, dim=-1) * scale
    M, V = len(query_MD), len(token_VD)
    step = max(1, _CHUNK_CELLS // V)
    draw = ShiftedGumbel(M, V, query_MD.device) if noise else None
    chosen = []
    for first in range(0, M, step):
        score_MV = query_MD[first : first + step] @ token_VD.T
        if draw is not None:
            score_MV = score_MV + draw.rows(first, first + step)
        chosen.append(top_k(score_MV, k))
    return torch.cat(chosen) if chosen else query_MD.new_zeros((0, k), dtype=torch.int64)


class ShiftedGumbel:
    """Gumbel(0, 1) noise for M rows of V tokens at the price of V draws.

    Each row reads one circular vector of V independent draws from its own random place, so every row is
    a vector of independent Gumbel draws; only different rows share values, at different tokens. A CPU
    draws 30 million numbers a second, and M x V independent ones cost several times the scores themselves.
    """

    def __init__(self, n_rows: int, n_tokens: int, device: torch.device) -> None:
        # float32 always: bf16 has too few bits for the tail that decides a maximum over V.
        draw_V = torch.empty(n_tokens, device=device).exponential_().log_().neg_()
        self._window_VV = torch.cat([draw_V, draw_V]).unfold(0, n_tokens, 1)
        self._shift_M = torch.randint(n_tokens, (n_rows,), device=device)

    def rows(self, first: int, last: int) -> Tensor:
        """Noise of rows first..last-1, [last - first, V]."""
        noise_MV: Tensor = self._window_VV[self._shift_M[first:last]]
        return noise_MV


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
