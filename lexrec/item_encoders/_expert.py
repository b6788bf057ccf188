"""One MLTFR expert: filters one language model's vocabulary by an interest and attends to what is left.

    A     = table W_align + b                                   [V, d]     eq. 4-5
    s     = scale * cos(A, interest), noise in training         [M, V]     eq. 6
    I     = top-K of s                                          [M, K]
    out   = O softmax(Q K^T / sqrt(d/h) + bias) V               [U, Q, d]  eq. 7-10
            with Q from the item vectors, K and V from the table's rows I

How the choice gets a gradient (`estimator`):
    log_bias  bias = s_I - stop(s_I): zero in the forward pass, the gradient of log p up to a constant
    paper     rows times 1 + p_I - stop(p_I), p = softmax((s + noise) / tau) over the vocabulary
    release   the same weights, renormalised by their sum over K

Dimension key: M interests, U attending units of Q queries each, V tokens, W LLM width, K chosen tokens,
D width, H heads, C head width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexrec.item_encoders._mltfr_config import MltfrConfig
from lexrec.kernels.token_filter import ShiftedGumbel, choose_tokens, top_k


class Chosen(NamedTuple):
    """Tokens chosen for each interest, and what carries the gradient of the choice."""

    token_MK: Tensor
    bias_MK: Tensor | None
    """Added to the attention logits; zero in value."""
    weight_MK: Tensor | None
    """Multiplies the rows; one in value (paper) or 1 / K (release)."""

    def at(self, unit_U: Tensor | None) -> "Chosen":
        """What each unit reads, where several units share an interest."""
        if unit_U is None:
            return self
        return Chosen(*(None if t is None else t.index_select(0, unit_U) for t in self))  # type: ignore[arg-type]

    def pooled(self, n_units: int) -> "Chosen":
        """Every unit reads all chosen tokens of the batch (the release's pooling)."""
        return Chosen(*(None if t is None else t.view(1, -1).expand(n_units, -1) for t in self))  # type: ignore[arg-type]


class _Constants(NamedTuple):
    """What no longer changes once training is over."""

    aligned_VD: Tensor
    key_VD: Tensor
    value_VD: Tensor


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
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale))
        self.query, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key, self.value = nn.Linear(width, dim), nn.Linear(width, dim)
        self.dropout = nn.Dropout(config.dropout)
        if config.filter == "frozen":
            self.align.requires_grad_(False)
            self.logit_scale.requires_grad_(False)
        self._constants: _Constants | None = None
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
            query_UQD: item vectors that ask, grouped by unit.
            interest_MD: what tokens are chosen by.
            unit_U: which interest each unit reads; None: unit u reads interest u.

        Returns:
            out_UQD, what was chosen for each unit, and the attention it got, [U, H, Q, K].
        """
        chosen = self.choose(interest_MD)
        chosen = chosen.pooled(len(query_UQD)) if self.config.pool == "batch" else chosen.at(unit_U)
        attention_UHQK, out_UQD = self._attend(query_UQD, chosen)
        return self.dropout(self.out(out_UQD)), chosen, attention_UHQK

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
            # A frozen filter chooses without gradient; what its rows weigh stays the estimator's.
            is_shared = self.config.estimator == "release"
            weight_MK = torch.full(token_MK.shape, 1 / self.k, device=token_MK.device) if is_shared else None
            return Chosen(token_MK, None, weight_MK)
        if aligns_all:
            row_MKD = F.embedding(token_MK, aligned_VD)
        else:
            row_MKD = F.normalize(self.align(self._rows(token_MK)), dim=-1)
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

    def _attend(self, query_UQD: Tensor, chosen: Chosen) -> tuple[Tensor, Tensor]:
        """Multi-head attention of each unit's queries over its tokens: weights and mixed values."""
        H = self.config.n_heads
        key_UKD, value_UKD = self._project(chosen)
        q_UHQC, k_UHKC, v_UHKC = (
            x.view(*x.shape[:2], H, -1).transpose(1, 2) for x in (self.query(query_UQD), key_UKD, value_UKD)
        )
        logit_UHQK = q_UHQC @ k_UHKC.transpose(-1, -2) * q_UHQC.shape[-1] ** -0.5
        if chosen.bias_MK is not None:
            logit_UHQK = logit_UHQK + chosen.bias_MK[:, None, None, :]
        attention_UHQK = logit_UHQK.softmax(dim=-1)
        mixed_UHQC = self.dropout(attention_UHQK) @ v_UHKC
        return attention_UHQK, mixed_UHQC.transpose(1, 2).flatten(2)

    def _project(self, chosen: Chosen) -> tuple[Tensor, Tensor]:
        """Keys and values of the chosen tokens, [U, K, D]: the cheaper of table-first and rows-first."""
        token_UK = chosen.token_MK
        if self._constants is not None:
            key_UKD, value_UKD = self._constants.key_VD[token_UK], self._constants.value_VD[token_UK]
        elif token_UK.numel() > len(self.table_VW):
            table_VW = self._rows(None)
            # Not by indexing: its backward pass adds up in any order, and more slowly.
            key_UKD, value_UKD = (F.embedding(token_UK, of(table_VW)) for of in (self.key, self.value))
        else:
            row_UKW = self._rows(token_UK)
            key_UKD, value_UKD = self.key(row_UKW), self.value(row_UKW)
        if chosen.weight_MK is None:
            return key_UKD, value_UKD
        # A weight on the rows commutes with the projection, not with its bias.
        weight_UK1 = chosen.weight_MK[:, :, None]
        key_UKD = (key_UKD - self.key.bias) * weight_UK1 + self.key.bias
        return key_UKD, (value_UKD - self.value.bias) * weight_UK1 + self.value.bias

    def _aligned(self) -> Tensor:
        """The table in the space of item vectors, L2-normalised, [V, D]."""
        if self._constants is not None:
            return self._constants.aligned_VD
        return F.normalize(self.align(self._rows(None)), dim=-1)

    def _rows(self, token: Tensor | None) -> Tensor:
        """Table rows in the arithmetic of the weights."""
        table = self.table_VW if token is None else self.table_VW[token]
        if torch.is_autocast_enabled(table.device.type):
            return table  # autocast would only cast it back
        return table.to(self.align.weight.dtype)

    @torch.no_grad()
    def freeze(self) -> None:
        """Project the table once: at inference it is never read again."""
        self._constants = None
        table_VW = self._rows(None)
        self._constants = _Constants(self._aligned(), self.key(table_VW), self.value(table_VW))

    def thaw(self) -> None:
        """Drop the constants: the weights are about to change."""
        self._constants = None
