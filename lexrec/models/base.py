"""The one interface between a backbone and the rest of the package.

Dimension key: B batch, L positions, D width, N flat.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from lexrec.config import Config
from lexrec.data.batch import Batch
from lexrec.item_encoders.base import Catalogue, ItemEncoder, ScoringTable
from lexrec.kernels.rows import pick_rows


class ModelConfig(Config):
    """What every backbone has."""

    dim: int = Field(64, ge=1)
    """Width of item vectors and hidden states."""
    max_len: int = Field(50, ge=1)
    """Longest history the model sees, in items."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        n_heads = getattr(self, "n_heads", 1)
        if self.dim % n_heads:
            raise ValueError(f"n_heads {n_heads} does not divide dim {self.dim}")
        return self


class Encoded(NamedTuple):
    """What a backbone returns. Auxiliary losses travel in the return value, never on `self`."""

    hidden_BLD: Tensor
    aux: dict[str, Tensor]


@dataclass(frozen=True)
class State:
    """What `begin` and `step` hand on: the newest `max_len` events and, where incremental, a cache."""

    batch: Batch
    hidden_BD: Tensor
    """The state that predicts the next item."""
    cache: Any = None


class SequenceModel(nn.Module, ABC):
    """Encodes left-padded histories; items are scored against its item encoder's table."""

    causal: ClassVar[bool]
    """True if this backbone's position l never sees a position after l."""
    layout: ClassVar[Literal["packed", "fixed"]]
    """packed: skips padding where a batch has slots; fixed: needs rows of exactly max_len (FFT)."""
    incremental: ClassVar[bool] = False
    """True if `step` costs one position instead of a whole row."""

    reads_mask: ClassVar[bool] = False
    """True if the next item is read at a [MASK] that `encode_next` puts after the newest item."""

    tokens_per_event: float = 1.0
    """Places that an event takes on average, where its text is read beside it."""

    items: ItemEncoder
    blocks: nn.ModuleList
    max_len: int

    @classmethod
    def width(cls, config: ModelConfig) -> int:
        """Width of item vectors and hidden states under a config."""
        return config.dim

    def describe(self, catalogue: Catalogue) -> None:
        """What is known of the items beyond their vectors, given once the model is built; unused by most."""

    def pretrained(self) -> Sequence[nn.Parameter]:
        """Trained parameters that started from what another model knows, at `train.pretrained_lr`."""
        return ()

    @property
    def is_causal(self) -> bool:
        """True if the whole model, item encoder included, never sees a later position."""
        return self.causal and self.items.causal

    @abstractmethod
    def forward(self, batch: Batch) -> Encoded:
        """Hidden states of each position, [B, L, D]; padding positions are finite but meaningless."""

    def encode_slots(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """States of the batch's slots, [N, D], without meaning where a slot is unused; auxiliary losses."""
        assert batch.slot_N is not None
        hidden_BLD, aux = self(batch)
        hidden_MD = hidden_BLD.flatten(0, 1)
        return pick_rows(hidden_MD, batch.slot_N.clamp(max=len(hidden_MD) - 1)), aux

    def encode_next(self, batch: Batch) -> Encoded:
        """The one state that predicts the item after each history, [B, 1, D]."""
        hidden_BLD, aux = self(batch)
        return Encoded(hidden_BLD[:, -1:], aux)

    def scoring(self) -> ScoringTable:
        """What hidden states are scored against."""
        return self.items.scoring()

    def begin(self, batch: Batch) -> State:
        """Read histories once, to continue them event by event."""
        return State(batch, self.encode_next(batch).hidden_BLD[:, -1])

    def step(self, state: State, item_B: Tensor, time_B: Tensor | None = None) -> State:
        """The state after one more event a row, never padding. Equal to `begin` on the longer history."""
        return self.begin(append(state.batch, item_B, time_B, self.max_len))

    def freeze(self) -> "SequenceModel":
        """Evaluation mode with constants precomputed (aligned tables, projected keys and values)."""
        self.eval()
        self.items.freeze()
        return self


def append(batch: Batch, item_B: Tensor, time_B: Tensor | None, max_len: int) -> Batch:
    """Each row one event longer; of a row that then exceeds `max_len` the oldest falls out.

    Raises:
        ValueError: the batch has times and the event has none, or the reverse.
    """
    if (batch.time_BL is None) != (time_B is None):
        raise ValueError("an event needs a time exactly where the history has times")
    item_BL = torch.cat([batch.item_BL, item_B[:, None]], dim=1)[:, -max_len:]
    time_BL = None
    if batch.time_BL is not None and time_B is not None:
        time_BL = torch.cat([batch.time_BL, time_B[:, None]], dim=1)[:, -max_len:]
    length_B = (batch.length_B + 1).clamp(max=max_len)
    return Batch(item_BL, length_B, batch.user_B, time_BL)


COMPONENT_BASE = SequenceModel
