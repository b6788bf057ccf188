"""Item text as a learned mixture of its tokens' vectors: each head asks every token the same question.

    a_ht  = softmax over t of <q_h, table_p[token_t]>
    text  = sum over parts p of [sum_t a_1t V_1 table_p[token_t], ..., sum_t a_Ht V_H table_p[token_t]]

Questions and values are taken of a table's rows once, of those that some item has, and gathered by token.

Dimension key: I item indexes 0..n + 1, T tokens of a text, R rows of a table that occur, W width of a table,
D width, H heads, C head width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexrec.errors import ConfigError
from lexrec.item_encoders._item_text import Part, Text, TextTokens
from lexrec.item_encoders._text_config import TextTokensConfig

_NEVER = -1e4
"""Logit of a place without a token: its share is zero, and a row of nothing else has no NaN."""


class AttendedText(nn.Module):
    """Sum over parts of attention over their tokens."""

    def __init__(self, parts: Sequence[Part], texts: Sequence[Text], dim: int, config: TextTokensConfig):
        super().__init__()
        if dim % config.n_heads:
            raise ConfigError(f"text_tokens: n_heads {config.n_heads} does not divide model.dim {dim}")
        self.parts = nn.ModuleList(_AttendedPart(part, texts, dim, config) for part in parts)
        self.map = _map(dim, config.hidden)

    def last_maps(self) -> list[nn.Linear]:
        """The linear maps that set the size of the text vector."""
        if isinstance(self.map, nn.Sequential):
            return [m for m in self.map if isinstance(m, nn.Linear)][-1:]
        return [part.value for part in self.parts]  # type: ignore[misc]

    def forward(self, item: Tensor | slice) -> Tensor:
        """Text vectors of some items, [*item.shape, D]; zero where there is no text."""
        mapped: Tensor = self.map(sum(part(item) for part in self.parts))
        return mapped

    def of_texts(self, parts: Sequence[Part], texts: Sequence[Text]) -> Tensor:
        """Text vectors of texts that no item had, [N, D]."""
        found = [mine.of_texts(part, texts) for mine, part in zip(self.parts, parts, strict=True)]  # type: ignore[operator]
        mapped: Tensor = self.map(sum(found))
        return mapped


class _AttendedPart(nn.Module):
    row_RW: Tensor
    token_IT: Tensor
    is_token_IT: Tensor

    def __init__(self, part: Part, texts: Sequence[Text], dim: int, config: TextTokensConfig) -> None:
        super().__init__()
        self.config = config
        tokens = part.read(texts, config)
        row_RW, token_NT = _used_rows(part, tokens)
        self.register_buffer("row_RW", row_RW, persistent=False)
        # Item 1 stands in row 1; padding and MASK have no text.
        self.register_buffer("token_IT", F.pad(token_NT, (0, 0, 1, 1)), persistent=False)
        self.register_buffer("is_token_IT", F.pad(tokens.is_token_NT, (0, 0, 1, 1)), persistent=False)
        self.question = nn.Linear(part.table.width, config.n_heads, bias=False)
        self.value = nn.Linear(part.table.width, dim, bias=False)
        nn.init.normal_(self.value.weight)
        nn.init.zeros_(self.question.weight)  # starts as the mean

    def forward(self, item: Tensor | slice) -> Tensor:
        return self._mix(self.row_RW, self.token_IT[item], self.is_token_IT[item])

    def of_texts(self, part: Part, texts: Sequence[Text]) -> Tensor:
        tokens = part.read(texts, self.config)
        row_RW, token_NT = _used_rows(part, tokens)
        device = self.row_RW.device
        return self._mix(row_RW.to(device), token_NT.to(device), tokens.is_token_NT.to(device))

    def _mix(self, row_RW: Tensor, token: Tensor, is_token: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(row_RW.device.type):  # autocast would only cast it back
            row_RW = row_RW.to(self.value.weight.dtype)
        # Not by indexing: its backward pass adds up in any order.
        value = F.embedding(token, self.value(row_RW)).view(*token.shape, self.config.n_heads, -1)
        logit = F.embedding(token, self.question(row_RW))
        if self.training and self.config.dropout:
            is_token = is_token & (torch.rand(token.shape, device=token.device) >= self.config.dropout)
        share = logit.masked_fill(~is_token[..., None], _NEVER).softmax(dim=-2) * is_token[..., None]
        mixed: Tensor = (share[..., None] * value).sum(dim=-3).flatten(-2)
        return mixed


def _map(dim: int, hidden: int) -> nn.Module:
    """From the mixture to item vectors. Without biases, so that no text is no vector."""
    if not hidden:
        return nn.Identity()
    first = nn.Linear(dim, hidden, bias=False)
    nn.init.normal_(first.weight, std=dim**-0.5)
    return nn.Sequential(first, nn.GELU(), nn.Linear(hidden, dim, bias=False))


def _used_rows(part: Part, tokens: TextTokens) -> tuple[Tensor, Tensor]:
    """The rows of a table that occur, and the tokens as numbers of those."""
    used_R, token_NT = torch.unique(tokens.token_NT, return_inverse=True)
    return part.table.weight_VW[used_R], token_NT
