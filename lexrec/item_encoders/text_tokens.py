"""Item text: an id vector plus a learned map of the tokens of an item's title and category.

    x_i = E_i + text_i,     text_i = sum over tables and columns of map(pool over tokens t of table[t])

The tables are those of language models and stay frozen; no language model is run. Scores are taken against
the same vectors, text included. Pooling is a mean taken once (`_pooled_text.py`) or attention
(`_attended_text.py`).

An item without a training event has no id vector: what would stand there is the noise it started with. It is
its text alone, takes no part in the softmax while training (which would push it down for never being a
target), and competes at evaluation. `rows_for_new` gives the vectors of items that are not in the data set.

Dimension key: B batch, L positions, I item indexes 0..n + 1, N texts, D width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexrec.data.batch import PAD, Batch
from lexrec.errors import ConfigError
from lexrec.item_encoders._attended_text import AttendedText
from lexrec.item_encoders._item_text import Text, item_texts, parts
from lexrec.item_encoders._pooled_text import PooledText
from lexrec.item_encoders._text_config import TextTokensConfig
from lexrec.item_encoders.base import Catalogue, Embedded, ItemEncoder, ScoringTable
from lexrec.item_encoders.id_embedding import id_table
from lexrec.tokens.table import TokenTable

_STD = 0.02
"""Of the entries of an id vector at the start; those of a text vector start alike."""
_NEVER = -1e4
"""Logit of an item that takes no part in a softmax."""


class TextTokens(ItemEncoder):
    """Id vector plus text vector, for input and for scoring."""

    config: TextTokensConfig
    has_id_I1: Tensor
    never_I: Tensor

    def __init__(self, config: TextTokensConfig, catalogue: Catalogue) -> None:
        super().__init__()
        if len(catalogue.tables) != len(config.tables):
            raise ConfigError(
                f"text_tokens: {len(config.tables)} tables named, {len(catalogue.tables)} given"
            )
        self.config = config
        self.n_items = catalogue.n_items
        texts = item_texts(catalogue.item_table, config)
        pooling = PooledText if config.pool == "mean" else AttendedText
        self.text: PooledText | AttendedText = pooling(
            parts(catalogue.tables, config), texts, catalogue.dim, config
        )
        self.embedding = id_table(catalogue) if config.use_id else None
        self.mask_D = None if config.use_id else nn.Parameter(torch.randn(catalogue.dim) * _STD)
        self.norm = nn.Identity() if config.norm == "none" else nn.LayerNorm(catalogue.dim, bias=False)
        self._mark_new(catalogue)
        self._start()
        self._constant_ID: Tensor | None = None
        # Whatever changes the weights makes the constants lies: loading, moving, training.
        self.register_load_state_dict_pre_hook(lambda *_: self.thaw())  # type: ignore[no-untyped-call]

    def lookup(self, item: Tensor) -> Tensor:
        # Mapping the catalogue's features once beats mapping those of as many places.
        if self._constant_ID is not None or item.numel() >= self.n_items:
            return F.embedding(item, self._vectors(slice(None)), padding_idx=PAD)
        return self._vectors(item)

    def forward(self, batch: Batch) -> Embedded:
        return Embedded(self.lookup(batch.item_BL), {})

    def scoring(self) -> ScoringTable:
        bias_I = self.never_I if self.training and len(self.never_I) else None
        return ScoringTable(
            self.n_items, lambda first, last: self._vectors(slice(first, last)), self.lookup, bias_I
        )

    @torch.no_grad()
    def rows_for_new(self, texts: Sequence[Text], tables: Sequence[TokenTable]) -> Tensor:
        """Vectors of items that are not in the data set, from their text alone.

        Args:
            texts: what is known of each item, by column: {"title": "Red Nail Polish", "category": None}.
            tables: the tables this encoder was built from (`RunDir.tables`); it keeps no whole table itself.

        Returns:
            One row a text, [N, D]: scored against hidden states as the rows of `scoring` are. Zero where
            no token of a text is known.
        """
        was_training = self.training
        self.text.eval()
        text_ND = self.text.of_texts(parts(tables, self.config), texts)
        self.text.train(was_training)
        return self._normed(text_ND, None)

    def freeze(self) -> None:
        """Compute every item's vector once."""
        self.thaw()
        with torch.no_grad():
            self._constant_ID = self._vectors(slice(None))

    def thaw(self) -> None:
        self._constant_ID = None

    def train(self, mode: bool = True) -> "TextTokens":
        if mode:
            self.thaw()
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TextTokens":
        self.thaw()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _vectors(self, item: Tensor | slice) -> Tensor:
        """Item vectors, [*item.shape, D], or those of a range of indexes."""
        if self._constant_ID is not None:
            return self._constant_ID[item]
        return self._normed(self.text(item), self._ids(item))

    def _ids(self, item: Tensor | slice) -> Tensor:
        """Id vectors; without ids only MASK has one."""
        if self.embedding is None:
            assert self.mask_D is not None
            index = torch.arange(self.n_items + 2, device=self.has_id_I1.device)[item]
            return (index == self.mask_index)[..., None] * self.mask_D
        weight_ID = self.embedding.weight
        id_ = weight_ID[item] if isinstance(item, slice) else F.embedding(item, weight_ID, padding_idx=PAD)
        is_kept = self.has_id_I1[item]
        if self.training and self.config.id_dropout:
            is_kept = is_kept * (torch.rand_like(is_kept) >= self.config.id_dropout)
        return id_ * is_kept

    def _normed(self, text: Tensor, id_: Tensor | None) -> Tensor:
        if self.config.norm == "text":
            text = self.norm(text)
        vector = text if id_ is None else text + id_
        return self.norm(vector) if self.config.norm == "sum" else vector

    def _mark_new(self, catalogue: Catalogue) -> None:
        is_new_I = torch.zeros(self.n_items + 2, dtype=torch.bool)
        if catalogue.train_count_I is not None:
            is_new_I = torch.from_numpy(catalogue.train_count_I == 0)
        is_new_I[self.mask_index] = False
        never_I = is_new_I[1:-1] * _NEVER if is_new_I[1:-1].any() else torch.zeros(0)
        self.register_buffer("has_id_I1", (~is_new_I).float()[:, None], persistent=False)
        self.register_buffer("never_I", never_I, persistent=False)

    @torch.no_grad()
    def _start(self) -> None:
        """Text vectors start at the size of id vectors, whatever the tables and the map."""
        std = _STD * self.config.text_scale
        if isinstance(self.norm, nn.LayerNorm):
            self.norm.weight.fill_(std)
        self.text.eval()
        text_ID = self.text(slice(1, -1))
        has_text_I = text_ID.any(dim=1)
        size = float(text_ID[has_text_I].square().mean().sqrt())
        for last in self.text.last_maps():
            last.weight.mul_(std / max(size, 1e-12))
        self.text.train()
