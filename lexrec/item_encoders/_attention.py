"""The cross-attention of an MLTFR expert: item vectors ask, chosen rows of a token table answer.

    out = O softmax(Q K^T / sqrt(d/h) + bias) V        [U, Q, d]   eq. 7-10
          with Q from the item vectors, K and V from the table's rows

Dimension key: U attending units of Q queries each, M interests, V tokens, W LLM width, K chosen tokens,
D width, H heads, C head width, X = 2D: key and value side by side.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexrec.item_encoders._mltfr_config import MltfrConfig
from lexrec.kernels.dense import added_linear, drop
from lexrec.kernels.gpu import on_gpu


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

    def pooled(self) -> "Chosen":
        """All chosen tokens of the batch, for one unit that everybody belongs to (the release)."""
        return Chosen(*(None if t is None else t.view(1, -1) for t in self))  # type: ignore[arg-type]


class Answers(NamedTuple):
    """What each unit can attend to."""

    key_UKD: Tensor
    value_UKD: Tensor
    bias_UK: Tensor | None


class CrossAttention(nn.Module):
    """Multi-head attention from width D to rows of width W; no norm, no residual."""

    def __init__(self, width: int, dim: int, config: MltfrConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.query, self.out = (nn.Linear(dim, dim, bias=config.bias) for _ in range(2))
        self.key, self.value = (nn.Linear(width, dim, bias=config.bias) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, query_UQD: Tensor, answers: Answers) -> tuple[Tensor, Tensor]:
        """What attention gives each query, and its weights before dropout, [U, H, Q, K]."""
        q_UHQC, k_UHKC, v_UHKC = self._heads(query_UQD, answers)
        logit_UHQK = q_UHQC @ k_UHKC.transpose(-1, -2) * q_UHQC.shape[-1] ** -0.5
        if answers.bias_UK is not None:
            logit_UHQK = logit_UHQK + answers.bias_UK[:, None, None, :]
        attention_UHQK = logit_UHQK.softmax(dim=-1)
        mixed_UHQC = self.dropped(attention_UHQK) @ v_UHKC
        return self.answered(mixed_UHQC.transpose(1, 2).flatten(2)), attention_UHQK

    def answer(self, query_UQD: Tensor, answers: Answers) -> Tensor:
        """As `forward`, without the weights, which a GPU then never has to hold."""
        return self._fused(query_UQD, answers) if on_gpu(query_UQD) else self(query_UQD, answers)[0]

    def _fused(self, query_UQD: Tensor, answers: Answers) -> Tensor:
        q_UHQC, k_UHKC, v_UHKC = self._heads(query_UQD, answers)
        bias_UHQK = None
        if answers.bias_UK is not None:
            shape = *q_UHQC.shape[:3], answers.bias_UK.shape[1]
            bias_UHQK = answers.bias_UK[:, None, None].to(q_UHQC.dtype).expand(shape)
        dropout = self.dropout.p if self.training else 0.0
        mixed_UHQC = F.scaled_dot_product_attention(q_UHQC, k_UHKC, v_UHKC, bias_UHQK, dropout)
        return self.answered(mixed_UHQC.transpose(1, 2).flatten(2))

    def _heads(self, query_UQD: Tensor, answers: Answers) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of each head."""
        q_UHQC, k_UHKC, v_UHKC = (
            x.view(*x.shape[:2], self.n_heads, -1).transpose(1, 2)
            for x in (self.asked(query_UQD), answers.key_UKD, answers.value_UKD)
        )
        return q_UHQC, k_UHKC, v_UHKC

    def asked(self, query_UQD: Tensor) -> Tensor:
        """The queries of all heads, side by side."""
        return self._mapped(query_UQD, self.query, 0.0)

    def answered(self, mixed_UQD: Tensor) -> Tensor:
        """What goes out, given the mixed values of all heads."""
        return self._mapped(mixed_UQD, self.out, self.dropout.p if self.training else 0.0)

    def _mapped(self, x_UQD: Tensor, layer: nn.Linear, dropout: float) -> Tensor:
        y_ND = added_linear(x_UQD.flatten(0, 1), layer.weight, layer.bias, None, dropout)
        return y_ND.view_as(x_UQD)

    def dropped(self, x: Tensor) -> Tensor:
        return drop(x, self.dropout.p) if self.training else x

    def read(self, table_VW: Tensor, chosen: Chosen, projected_VX: Tensor | None = None) -> Answers:
        """Keys and values of the chosen tokens: the cheaper of table-first and rows-first."""
        token_UK = chosen.token_MK
        if projected_VX is not None:
            answer_VX = projected_VX[:, -2 * self.key.out_features :]
            key_UKD, value_UKD = F.embedding(token_UK, answer_VX).chunk(2, dim=-1)
        elif token_UK.numel() > len(table_VW):
            row_VW = self.rows(table_VW)
            # Not by indexing: its backward pass adds up in any order, and more slowly.
            key_UKD, value_UKD = (F.embedding(token_UK, of(row_VW)) for of in (self.key, self.value))
        else:
            row_UKW = self.rows(table_VW[token_UK])
            key_UKD, value_UKD = self.key(row_UKW), self.value(row_UKW)
        weight_UK = chosen.weight_MK
        if weight_UK is not None:
            key_UKD = _weighted(key_UKD, weight_UK, self.key.bias)
            value_UKD = _weighted(value_UKD, weight_UK, self.value.bias)
        return Answers(key_UKD, value_UKD, chosen.bias_MK)

    def project(self, table_VW: Tensor) -> Tensor:
        """Keys and values of every token, side by side, [V, 2D]: constants once the weights do not change."""
        return F.linear(self.rows(table_VW), *self.stacked())

    def stacked(self, *before: nn.Linear) -> tuple[Tensor, Tensor]:
        """The maps of keys and values as one, weight and bias, behind those of `before`."""
        maps = (*before, self.key, self.value)
        biases = [_bias(one) for one in maps]
        weights: list[Tensor] = []
        weights.extend(one.weight for one in maps)
        return torch.cat(weights), torch.cat(biases)

    def rows(self, table: Tensor) -> Tensor:
        """Table rows in the arithmetic of the weights."""
        if torch.is_autocast_enabled(table.device.type):
            return table  # autocast would only cast it back
        return table.to(self.key.weight.dtype)


def _bias(layer: nn.Linear) -> Tensor:
    bias_D: Tensor | None = layer.bias
    return layer.weight.new_zeros(len(layer.weight)) if bias_D is None else bias_D


def _weighted(x_UKD: Tensor, weight_UK: Tensor, bias_D: Tensor | None) -> Tensor:
    """A weight on the rows commutes with their projection, not with its bias."""
    weight_UK1 = weight_UK[:, :, None]
    return x_UKD * weight_UK1 if bias_D is None else (x_UKD - bias_D) * weight_UK1 + bias_D
