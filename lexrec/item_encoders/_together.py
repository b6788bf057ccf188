"""Frozen experts asked as one, on a CPU.

One history is some ten small rows, and an expert some thirty operations on them: what those cost to begin is
most of what they cost. Experts that choose alike take each of them once. Constants are the experts' own.

Dimension key: E experts, U units of Q queries, M interests, K chosen tokens, D width, H heads of width C,
J = E * U, V tokens, X = 2D: key and value side by side.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexrec.item_encoders._expert import TokenExpert
from lexrec.item_encoders._interest import Interests
from lexrec.kernels.short_tokens import ShortTokens

_CHUNK_ROWS = 2**13
"""Chosen rows that are read at once: 4 MiB at width 64."""


class Together:
    """What frozen experts say, without gradient.

    Args:
        experts: frozen ones, whose constants stay as they are while this is used.
        tokens: their aligned vectors.
    """

    def __init__(self, experts: Sequence[TokenExpert], tokens: ShortTokens) -> None:
        attentions = [expert.attention for expert in experts]
        self.k, self.n_heads, self.tokens = experts[0].k, attentions[0].n_heads, tokens
        width = 2 * attentions[0].key.out_features
        self.answers = [expert.projected_VX[:, -width:] for expert in experts]
        weight_EDD, bias_ED = _stacked([attention.query for attention in attentions])
        self.query = weight_EDD.flatten(0, 1), bias_ED.flatten()
        weight_EDD, bias_ED = _stacked([attention.out for attention in attentions])
        self.out = bias_ED[:, None], weight_EDD.transpose(1, 2)

    @staticmethod
    def of(experts: Sequence[TokenExpert]) -> "Together | None":
        """None where experts choose differently, or a CPU has nothing to gain."""
        if not all(expert.chooses_plainly() for expert in experts) or len({e.k for e in experts}) > 1:
            return None
        tokens = ShortTokens.of([expert.directed_VD() for expert in experts])
        if tokens is None or not tokens.serves(experts[0].k):
            return None
        return Together(experts, tokens)

    def __call__(self, asked: Interests) -> Tensor:
        """What each expert adds to each query, [E, U, Q, D]."""
        query_UQD, interest_MD, unit_U = asked
        (U, Q, D), E = query_UQD.shape, len(self.answers)
        token_EMK = self.tokens.choose(F.normalize(interest_MD, dim=-1), self.k)
        token_EUK = token_EMK if unit_U is None else token_EMK.index_select(1, unit_U)
        asked_EUQD = F.linear(query_UQD, *self.query).view(U, Q, E, D).permute(2, 0, 1, 3)
        step = max(1, _CHUNK_ROWS // (E * self.k))
        parts = [slice(first, first + step) for first in range(0, U, step)]
        mixed = [self._mixed(asked_EUQD[:, part], token_EUK[:, part]) for part in parts]
        mixed_EUQD = mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=1)
        bias_E1D, weight_EDD = self.out
        return torch.baddbmm(bias_E1D, mixed_EUQD.flatten(1, 2), weight_EDD).view(E, U, Q, D)

    def _mixed(self, query_EUQD: Tensor, token_EUK: Tensor) -> Tensor:
        """Attention of all heads, side by side, [E, U, Q, D]."""
        E, U, Q, D = query_EUQD.shape
        answer_ENX = query_EUQD.new_empty(E, U * self.k, 2 * D)
        for token_UK, answer_VX, found_NX in zip(token_EUK, self.answers, answer_ENX, strict=True):
            # Straight into its place: another copy would cost half as much again.
            torch.index_select(answer_VX, 0, token_UK.reshape(-1), out=found_NX)
        q_JHQC = query_EUQD.reshape(E * U, Q, self.n_heads, -1).transpose(1, 2)
        k_JHKC, v_JHKC = answer_ENX.view(E * U, self.k, 2, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        mixed_JHQC = F.scaled_dot_product_attention(q_JHQC, k_JHKC, v_JHKC)
        return mixed_JHQC.transpose(1, 2).reshape(E, U, Q, D)


def _stacked(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """Weights, [E, D, D], and biases, [E, D], of one map of each expert."""
    weight_EDD = torch.stack([layer.weight.detach() for layer in layers])
    zero_D = torch.zeros(weight_EDD.shape[1])
    bias_ED = torch.stack([zero_D if layer.bias is None else layer.bias.detach() for layer in layers])
    return weight_EDD, bias_ED
