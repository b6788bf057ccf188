"""One MLTFR expert: filters one language model's vocabulary by an interest and attends to what is left.

    A     = table W_align + b                                   [V, d]     eq. 4-5
    s     = scale * cos(A, interest), noise in training         [M, V]     eq. 6
    I     = top-K of s                                          [M, K]
    out   = cross-attention to the table's rows I               [U, Q, d]  eq. 7-10 (_attention.py)

How the choice gets a gradient (`estimator`):
    log_bias  bias = s_I - stop(s_I): zero in the forward pass, the gradient of log p up to a constant
    paper     rows times 1 + p_I - stop(p_I), p = softmax((s + noise) / tau) over the vocabulary
    release   the same weights, renormalised by their sum over K

There are two ways to the same numbers. The plain one reads the table twice: aligned, to choose, and for
the chosen rows. On a GPU, where reading a table costs more than multiplying it, alignment, keys and values
are one product, and attention reads its rows by token (kernels/token_attention.py).

Dimension key: M interests, U attending units of Q queries each, V tokens, W LLM width, K chosen tokens,
D width, H heads.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexrec.item_encoders._attention import Answers, Chosen, CrossAttention
from lexrec.item_encoders._mltfr_config import MltfrConfig
from lexrec.kernels.gpu import is_transformed, on_gpu
from lexrec.kernels.short_tokens import ShortTokens
from lexrec.kernels.token_attention import Choice, Dropout, Projection, attend, project, serves
from lexrec.kernels.token_filter import ShiftedGumbel, choose_tokens, unit_rows
from lexrec.kernels.token_probability import choice_probability


class Ready(NamedTuple):
    """What an expert can make before it knows its batch."""

    projection: Projection
    aligned_VD: Tensor
    """Its alignment, rows of length 1."""


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
        self.eval_noise = config.eval_noise
        if config.filter == "frozen":
            self.align.requires_grad_(False)
            self.logit_scale.requires_grad_(False)
        self._never_changes = config.filter == "frozen" and not config.tune_tables
        self._aligned_VD: Tensor | None = None
        self._rough: ShortTokens | None = None
        self._projected: Projection | None = None
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

    def ahead(self) -> Ready:
        """What the one-product way can make before there is a batch."""
        projection, aligned_VD = self._projected or self._project(), self._aligned_VD
        if aligned_VD is None:
            aligned_VD = unit_rows(projection.projected_VX[:, : self.align.out_features])
        return Ready(projection, aligned_VD)

    def forward(
        self, query_UQD: Tensor, interest_MD: Tensor, unit_U: Tensor | None, ready: Ready | None
    ) -> tuple[Tensor, Chosen]:
        """What the expert adds to each query, [U, Q, D], and what was chosen for each unit.

        Args:
            query_UQD: item vectors that ask, grouped by unit; with pool=batch all belong to one unit.
            interest_MD: what tokens are chosen by.
            unit_U: which interest each unit reads; None: unit u reads interest u.
            ready: what `ahead` made; None: go the plain way.
        """
        if ready is not None:
            return self._read_once(query_UQD, interest_MD, unit_U, ready)
        chosen = self._chosen(interest_MD, unit_U)
        return self.attention.answer(query_UQD, self._answers(chosen)), chosen

    def explained(
        self, query_UQD: Tensor, interest_MD: Tensor, unit_U: Tensor | None
    ) -> tuple[Tensor, Chosen, Tensor]:
        """As `forward`, with the attention that each chosen token got, [U, H, Q, K]."""
        chosen = self._chosen(interest_MD, unit_U)
        out_UQD, attention_UHQK = self.attention(query_UQD, self._answers(chosen))
        return out_UQD, chosen, attention_UHQK

    def _chosen(self, interest_MD: Tensor, unit_U: Tensor | None) -> Chosen:
        """What each unit attends to."""
        chosen = self.choose(interest_MD)
        return chosen.pooled() if self.config.pool == "batch" else chosen.at(unit_U)

    def _answers(self, chosen: Chosen) -> Answers:
        projected_VX = self._projected.projected_VX if self._projected else None
        return self.attention.read(self.table_VW, chosen, projected_VX)

    def choose(self, interest_MD: Tensor) -> Chosen:
        """The K tokens of each interest."""
        is_learning = torch.is_grad_enabled() and self.config.filter == "learned"
        by_probability = self.config.estimator != "log_bias" and self.config.filter == "learned"
        # Aligning the table with gradient pays once more rows are chosen than it has.
        aligns_all = is_learning and (by_probability or len(interest_MD) * self.k > len(self.table_VW))
        with torch.set_grad_enabled(aligns_all):
            aligned_VD = self._aligned()
        scale, noise = self.logit_scale, self._noise()
        token_MK = choose_tokens(
            interest_MD, aligned_VD, self.k, scale=scale.detach(), noise=noise, rough=self._rough
        )
        # Through 1 / |interest| the choice would pull at small item vectors a hundred times too hard.
        asked_MD = interest_MD if self.config.bends_items else interest_MD.detach()
        if by_probability:
            p_MK = choice_probability(
                asked_MD, aligned_VD, token_MK, scale=scale, tau=self.config.tau, noise=noise
            )
            return self._weighted(token_MK, p_MK)
        if not is_learning:
            return without_gradient(token_MK, self.config)
        if aligns_all:
            row_MKD = F.embedding(token_MK, aligned_VD)
        else:
            row_MKD = F.normalize(self.align(self.attention.rows(self.table_VW[token_MK])), dim=-1)
        cosine_MK = (row_MKD @ F.normalize(asked_MD, dim=-1)[:, :, None])[..., 0]
        score_MK = scale * cosine_MK
        return Chosen(token_MK, score_MK - score_MK.detach(), None)

    def _weighted(self, token_MK: Tensor, p_MK: Tensor) -> Chosen:
        """The straight-through weights of the paper, or the release's."""
        weight_MK = 1 + p_MK - p_MK.detach()
        if self.config.estimator == "release":
            weight_MK = weight_MK / weight_MK.sum(dim=1, keepdim=True)
        return Chosen(token_MK, None, weight_MK)

    def _noise(self) -> ShiftedGumbel | None:
        if not (self.training or self.eval_noise):
            return None
        return ShiftedGumbel(len(self.table_VW), self.table_VW.device)

    def _aligned(self) -> Tensor:
        """The table in the space of item vectors, L2-normalised, [V, D]; made once where nobody trains it."""
        if self._aligned_VD is None and self._never_changes and not is_transformed():
            # While serving too, and in float32: what is kept must do for training and every arithmetic.
            device = self.table_VW.device.type
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
                self._aligned_VD = self._align()
        return self._align() if self._aligned_VD is None else self._aligned_VD

    def _align(self) -> Tensor:
        return F.normalize(self.align(self.attention.rows(self.table_VW)), dim=-1)

    def reads_once(self) -> bool:
        """True where the one-product way serves: on a GPU, with our own estimator of the choice."""
        config = self.config
        # A consensus that goes by what its experts chose sends a gradient through that choice.
        asks_none = config.consensus is None or config.consensus.average == "all"
        is_ours = config.estimator == "log_bias" and config.pool == "user" and asks_none
        is_served = is_on_gpu(self.table_VW) and serves(self.k, self.align.out_features)
        return is_served and is_ours and not (config.bends_items or config.tune_tables)

    def _read_once(
        self, query_UQD: Tensor, interest_MD: Tensor, unit_U: Tensor | None, ready: Ready
    ) -> tuple[Tensor, Chosen]:
        attention, (projection, aligned_VD), scale = self.attention, ready, self.logit_scale
        dropout = Dropout.drawn(attention.dropout.p if self.training else 0.0, interest_MD.device)
        # What needs no table is made while the table is being projected.
        asked_UQD, noise = attention.asked(query_UQD), self._noise()
        projection.wait(aligned_VD)
        token_MK = choose_tokens(
            interest_MD, aligned_VD, self.k, scale=scale.detach(), noise=noise, in_order=False
        )
        chosen = Chosen(token_MK, None, None).at(unit_U)
        interest_UD = interest_MD.detach() if unit_U is None else interest_MD.detach().index_select(0, unit_U)
        choice = Choice(chosen.token_MK, interest_UD, scale if self.config.filter == "learned" else None)
        mixed_UQD = attend(asked_UQD, choice, projection, attention.n_heads, dropout)
        return attention.answered(mixed_UQD), chosen

    def _project(self) -> Projection:
        """Alignment, keys and values of every token."""
        return project(self.attention.rows(self.table_VW), *self.attention.stacked(self.align))

    @torch.no_grad()
    def freeze(self) -> None:
        """Project the table once: at inference it is never read again."""
        self.thaw()
        # Kept without the table, which `rows` may have copied, and made when it is read.
        self._projected = self._project()._replace(table_VW=self.table_VW, stream=None)
        self._aligned_VD = unit_rows(self._projected.projected_VX[:, : self.align.out_features])

    def shorten(self) -> None:
        """Once frozen: have what makes the choice quick on a CPU."""
        if self._aligned_VD is not None:
            self._rough = ShortTokens.of([self._aligned_VD])

    def chooses_plainly(self) -> bool:
        """True if a frozen expert's choice is each user's own, without noise, and weighs nothing."""
        config = self.config
        is_ours = config.estimator == "log_bias" and config.pool == "user" and config.consensus is None
        return is_ours and not self.eval_noise and self.is_frozen

    def directed_VD(self) -> Tensor:
        """Aligned tokens, those turned round that a negative scale prefers far away."""
        return self._aligned() * self.logit_scale.detach().sign()

    @property
    def is_frozen(self) -> bool:
        """True from `freeze` until the weights change."""
        return self._projected is not None

    @property
    def projected_VX(self) -> Tensor:
        """Alignment, key and value of each token, once frozen."""
        assert self._projected is not None
        return self._projected.projected_VX

    def thaw(self) -> None:
        """Drop the constants: the weights are about to change."""
        self._aligned_VD = self._rough = self._projected = None


def is_on_gpu(x: Tensor) -> bool:
    """Where the one-product way is the faster one."""
    return on_gpu(x)


def without_gradient(token_MK: Tensor, config: MltfrConfig) -> Chosen:
    """A choice that nothing is learnt from; what its rows weigh stays the estimator's."""
    if config.estimator != "release":
        return Chosen(token_MK, None, None)
    return Chosen(token_MK, None, torch.full(token_MK.shape, 1 / token_MK.shape[1], device=token_MK.device))
