"""The plain id embedding: one free vector for each item.

Dimension key: B batch, L positions, D width, I items.
"""

from typing import Literal

from torch import Tensor, nn

from lexrec.data.batch import PAD, Batch
from lexrec.item_encoders.base import (
    Catalogue,
    Embedded,
    ItemEncoder,
    ItemEncoderConfig,
    ScoringTable,
)
from lexrec.kernels.rows import take_rows

STD = 0.02
"""Of the entries of an item's vector at the start."""


class IdEmbeddingConfig(ItemEncoderConfig):
    """The plain id embedding has nothing to choose."""

    name: Literal["id_embedding"] = "id_embedding"


class IdEmbedding(ItemEncoder):
    """One trainable vector for each item, for PAD (zero) and for MASK."""

    config: IdEmbeddingConfig

    def __init__(self, config: IdEmbeddingConfig, catalogue: Catalogue) -> None:
        super().__init__()
        self.config = config
        self.n_items = catalogue.n_items
        self.embedding = id_table(catalogue)

    def lookup(self, item: Tensor) -> Tensor:
        return take_rows(self.embedding.weight, item, PAD)

    def forward(self, batch: Batch) -> Embedded:
        return Embedded(self.lookup(batch.item_BL), {})

    def scoring(self) -> ScoringTable:
        return table_scoring(self.embedding, self.n_items)


def id_table(catalogue: Catalogue) -> nn.Embedding:
    """n_items + 2 rows drawn from N(0, STD), with a zero row for padding."""
    embedding = nn.Embedding(catalogue.n_items + 2, catalogue.dim, padding_idx=PAD)
    nn.init.normal_(embedding.weight[1:], std=STD)
    return embedding


def table_scoring(embedding: nn.Embedding, n_items: int) -> ScoringTable:
    """Scores against the plain table (eq. 17 of MLTFR)."""
    weight_ID = embedding.weight
    return ScoringTable(
        n_items,
        lambda first, last: weight_ID[first:last],
        lambda item: take_rows(weight_ID, item, PAD),
        table_RD=weight_ID,
    )
