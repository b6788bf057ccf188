"""What turns an item index into a vector. Every backbone is given one.

Dimension key: B batch, L positions, N flat, I items (rows 1..n, so row 0 of a scoring table is item 1),
J items of one block, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexrec.config import Config
from lexrec.data.batch import Batch
from lexrec.kernels.rows import dot_rows, score_rows

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from lexrec.tokens.table import TokenTable


class ItemEncoderConfig(Config):
    """Base of every item encoder's config."""

    tables: tuple[str, ...] = ()
    """Token tables to load: catalogue names, `hf:`, `pypi:` or `file:` sources."""

    @property
    def table_names(self) -> tuple[str, ...]:
        """Every table that is to be loaded, in the order `Catalogue.tables` has them.

        An encoder that holds another one adds that one's tables after its own.
        """
        return self.tables


@dataclass(frozen=True)
class Catalogue:
    """What an item encoder is built from: the items, and the token tables its config names."""

    n_items: int
    dim: int
    """Width of item vectors and hidden states."""
    tables: "tuple[TokenTable, ...]" = ()
    item_table: "pa.Table | None" = None
    """item_id, and title, category, ... where known; row i is item index i + 1."""
    train_count_I: "NDArray[np.int64] | None" = None
    """Training events of each item index, 0..n_items + 1; None: not known."""


class Embedded(NamedTuple):
    """What an item encoder returns. Auxiliary losses travel here, never on `self`."""

    x_BLD: Tensor
    """Input of the backbone; zero at padding."""
    aux: dict[str, Tensor]
    """Named auxiliary losses, already weighted."""
    after_block0_BLD: Tensor | None = None
    """Added after the backbone's first block, for encoders that inject there."""


@dataclass(frozen=True)
class ScoringTable:
    """What hidden states are scored against: rows of items 1..n, made block by block.

    logit[i] = scale * <h, row_i> + bias_i, with h and row_i L2-normalised first if `normalise`.
    """

    n_items: int
    rows: Callable[[int, int], Tensor]
    """rows(first, last): vectors of items first..last-1 (indexes, from 1), shape [last - first, D]."""
    take: Callable[[Tensor], Tensor]
    """take(item): vectors of any tensor of item indexes, shape [*item.shape, D]."""
    bias_I: Tensor | None = None
    scale: float | Tensor = 1.0
    normalise: bool = False
    table_RD: Tensor | None = None
    """The rows where they are stored, row i of item i, if they are: chosen ones need not be copied."""

    @property
    def stored_RD(self) -> Tensor | None:
        """`table_RD` if a logit is nothing but the product of a query with its row, else None."""
        return self.table_RD if self.bias_I is None and not self.normalise else None

    def with_(
        self, *, bias_I: Tensor | None = None, scale: float | Tensor = 1.0, normalise: bool = False
    ) -> "ScoringTable":
        """The same rows under another head; what is not named is that of the plain dot product.

        A bias joins this table's own, by which an encoder keeps items out of a softmax.
        """
        if bias_I is None or self.bias_I is None:
            bias_I = self.bias_I if bias_I is None else bias_I
        else:
            bias_I = self.bias_I + bias_I
        return replace(self, bias_I=bias_I, scale=scale, normalise=normalise)

    def query(self, hidden_ND: Tensor) -> Tensor:
        """Hidden states ready for a dot product with `block` rows."""
        if self.normalise:
            hidden_ND = F.normalize(hidden_ND, dim=-1)
        return hidden_ND if isinstance(self.scale, float) and self.scale == 1 else self.scale * hidden_ND

    def block(self, first: int, last: int) -> Tensor:
        """Rows of items first..last-1, normalised if this table is, [last - first, D]."""
        row_JD = self.rows(first, last)
        return F.normalize(row_JD, dim=-1) if self.normalise else row_JD

    def score(self, hidden_ND: Tensor, first: int = 1, last: int | None = None) -> Tensor:
        """Logits of items first..last-1 (default all), [N, last - first]; column 0 is item `first`."""
        last = self.n_items + 1 if last is None else last
        logit_NJ = self.query(hidden_ND) @ self.block(first, last).T
        return logit_NJ if self.bias_I is None else logit_NJ + self.bias_I[first - 1 : last - 1]

    def score_items(self, hidden_ND: Tensor, item_NK: Tensor) -> Tensor:
        """Logits of chosen items, [N, K]; index 0 (padding) must not occur."""
        query_ND = self.query(hidden_ND)
        # Where more are chosen than there are rows, each is normalised once and not each time it is chosen.
        if self.table_RD is not None and not (self.normalise and item_NK.numel() < len(self.table_RD)):
            table_RD = F.normalize(self.table_RD, dim=-1) if self.normalise else self.table_RD
            logit_NK = score_rows(query_ND, table_RD, item_NK)
        else:
            row_NKD = self.take(item_NK)
            logit_NK = dot_rows(query_ND, F.normalize(row_NKD, dim=-1) if self.normalise else row_NKD)
        return logit_NK if self.bias_I is None else logit_NK + self.bias_I[item_NK - 1]


class ItemEncoder(nn.Module, ABC):
    """Base of every item encoder. Row 0 is PAD, rows 1..n items, row n + 1 MASK."""

    causal: bool = True
    """False if the vector at a position depends on later positions (MLTFR over a whole sequence)."""

    n_items: int

    @property
    def mask_index(self) -> int:
        return self.n_items + 1

    @abstractmethod
    def lookup(self, item: Tensor) -> Tensor:
        """Plain vectors without context, [*item.shape, D]; zero at PAD."""

    @abstractmethod
    def forward(self, batch: Batch) -> Embedded:
        """Vectors in the context of their row, [B, L, D]."""

    @abstractmethod
    def scoring(self) -> ScoringTable:
        """The table that hidden states are scored against."""

    def freeze(self) -> None:
        """Precompute what no longer changes, for inference; training again calls `thaw`."""

    def thaw(self) -> None:
        """Drop what `freeze` computed."""

    @torch.no_grad()
    def inspect(self, batch: Batch) -> "list[ExpertView]":
        """For `explain`: what each expert chose for the newest position; empty where there is none."""
        return []


class ExpertView(NamedTuple):
    """What one token expert did for the newest position of each row."""

    table: str
    gate_B: Tensor
    """Share of the gate, in [0, 1]."""
    token_BK: Tensor
    """Chosen token indexes of this expert's table."""
    weight_BK: Tensor
    """Attention paid to each chosen token, averaged over heads; rows sum to 1."""


COMPONENT_BASE = ItemEncoder
