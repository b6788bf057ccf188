"""One MLTFR expert: filters one language model's vocabulary by an interest and attends to what is left.

    A     = table W_align + b                                   [V, d]     eq. 4-5
    s     = scale * cos(A, interest), noise in training         [M, V]     eq. 6
    I     = top-K of s                                          [M, K]
    out   = cross-attention to the table's rows I               [U, Q, d]  eq. 7-10 (_attention.py)

How the choice gets a gradient (`estimator`):
    log_bias  bias = s_I - stop(s_I): zero in the forward pass, the gradient of log p up to a constant
    paper     rows times 1 + p_I - stop(p_I), p = softmax((s + noise) / tau) over the vocabulary
    release   the same weights, renormalised by their sum over K

Dimension key: M interests, U attending units of Q queries each, V tokens, W LLM width, K chosen tokens,
D width, H heads.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexrec.item_encoders._attention import Chosen, CrossAttention, Projected
from lexrec.item_encoders._mltfr_config import MltfrConfig
from lexrec.kernels.token_filter import ShiftedGumbel, choose_tokens, top_k


class TokenExpert(nn.Module):
    """Filter and cross-attention over one frozen token table."""

    table_VW: Tensor

    def __init__(self, table_VW: Tensor, dim: int, config: MltfrConfig) -> None:
        super().__init__()
        self.config = config
        if config.tune_tables:
            self.table_VW = nn.Parameter(table_VW.float())
        else:
            self.register_buffer("table_VW", table_VW, persistent=False)
        width = table_VW.shape[1]
        self.k = min(config.k, len(table_VW))
        self.align = nn.Linear(width, dim)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale), requires_grad=config.learn_scale)
        self.attention = CrossAttention(width, dim, config)
        self.dropout = self.attention.dropout
        if config.filter == "frozen":
            self.align.requires_grad_(False)
            self.logit_scale.requires_grad_(False)
        self._aligned_VD: Tensor | None = None
        self._projected: Projected | None = None
        # Whatever changes the weights makes the constants lies: loading, moving, training.
        self.register_load_state_dict_pre_hook(lambda *_: self.thaw())  # type: ignore[no-untyped-call]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TokenExpert":
        self.thaw()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def train(self, mode: bool = True) -> "TokenExpert":
        """Training changes the weights, so it drops what `freeze` computed."""
        if mode:
            self.thaw()
        super().train(mode)
        return self

    def forward(
        self, query_UQD: Tensor, interest_MD: Tensor, unit_U: Tensor | None
    ) -> tuple[Tensor, Chosen, Tensor]:
        """What the expert adds to each query.

        Args:
            query_UQD: item vectors that ask, grouped by unit; with pool=batch all belong to one unit.
            interest_MD: what tokens are chosen by.
            unit_U: which interest each unit reads; None: unit u reads interest u.

        Returns:
            out_UQD, what was chosen for each unit, and the attention it got, [U, H, Q, K].
        """
        chosen = self.choose(interest_MD)
        chosen = chosen.pooled() if self.config.pool == "batch" else chosen.at(unit_U)
        answers = self.attention.read(self.table_VW, chosen, self._projected)
        out_UQD, attention_UHQK = self.attention(query_UQD, answers)
        return out_UQD, chosen, attention_UHQK

    def choose(self, interest_MD: Tensor) -> Chosen:
        """The K tokens of each interest."""
        noise = self.training or self.config.eval_noise
        if self.config.estimator != "log_bias" and self.config.filter == "learned":
            return self._choose_dense(interest_MD, noise)
        is_learning = torch.is_grad_enabled() and self.config.filter == "learned"
        # Aligning the table with gradient pays once more rows are chosen than it has.
        aligns_all = is_learning and len(interest_MD) * self.k > len(self.table_VW)
        with torch.set_grad_enabled(aligns_all):
            aligned_VD = self._aligned()
        scale = self.logit_scale.detach()
        token_MK = choose_tokens(interest_MD.detach(), aligned_VD.detach(), self.k, scale=scale, noise=noise)
        if not is_learning:
            return without_gradient(token_MK, self.config)
        if aligns_all:
            row_MKD = F.embedding(token_MK, aligned_VD)
        else:
            row_MKD = F.normalize(self.align(self.attention.rows(self.table_VW[token_MK])), dim=-1)
        # Through 1 / |interest| the choice would pull at small item vectors a hundred times too hard.
        asked_MD = interest_MD if self.config.bends_items else interest_MD.detach()
        cosine_MK = (row_MKD @ F.normalize(asked_MD, dim=-1)[:, :, None])[..., 0]
        score_MK = self.logit_scale * cosine_MK
        return Chosen(token_MK, score_MK - score_MK.detach(), None)

    def _choose_dense(self, interest_MD: Tensor, noise: bool) -> Chosen:
        """The paper's straight-through weights need the softmax over the whole vocabulary."""
        asked_MD = interest_MD if self.config.bends_items else interest_MD.detach()
        cosine_MV = F.normalize(asked_MD, dim=-1) @ self._aligned().T
        score_MV = self.logit_scale * cosine_MV
        # A softmax over a vocabulary needs more than bf16.
        score_MV = score_MV.to(torch.promote_types(score_MV.dtype, torch.float32))
        if noise:
            M, V = score_MV.shape
            score_MV = score_MV + ShiftedGumbel(M, V, score_MV.device).rows(0, M)
        token_MK = top_k(score_MV.detach(), self.k)
        p_MK = (score_MV / self.config.tau).softmax(dim=1).gather(1, token_MK)
        weight_MK = 1 + p_MK - p_MK.detach()
        if self.config.estimator == "release":
            weight_MK = weight_MK / weight_MK.sum(dim=1, keepdim=True)
        return Chosen(token_MK, None, weight_MK)

    def _aligned(self) -> Tensor:
        """The table in the space of item vectors, L2-normalised, [V, D]."""
        if self._aligned_VD is not None:
            return self._aligned_VD
        return F.normalize(self.align(self.attention.rows(self.table_VW)), dim=-1)

    @torch.no_grad()
    def freeze(self) -> None:
        """Project the table once: at inference it is never read again."""
        self.thaw()
        self._aligned_VD, self._projected = self._aligned(), self.attention.project(self.table_VW)

    def thaw(self) -> None:
        """Drop the constants: the weights are about to change."""
        self._aligned_VD = self._projected = None


def without_gradient(token_MK: Tensor, config: MltfrConfig) -> Chosen:
    """A choice that nothing is learnt from; what its rows weigh stays the estimator's."""
    if config.estimator != "release":
        return Chosen(token_MK, None, None)
    return Chosen(token_MK, None, torch.full(token_MK.shape, 1 / token_MK.shape[1], device=token_MK.device))
