"""The one interface between a backbone and the rest of the package.

Dimension key: B batch, L positions, D width, N flat.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lexrec.config import Config
from lexrec.data.batch import PAD, Batch
from lexrec.item_encoders.base import ItemEncoder, ScoringTable


class ModelConfig(Config):
    """What every backbone has."""

    dim: int = 64
    """Width of item vectors and hidden states."""
    max_len: int = 50
    """Longest history the model sees, in items."""


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

    items: ItemEncoder
    blocks: nn.ModuleList
    max_len: int

    @property
    def is_causal(self) -> bool:
        """True if the whole model, item encoder included, never sees a later position."""
        return self.causal and self.items.causal

    @abstractmethod
    def forward(self, batch: Batch) -> Encoded:
        """Hidden states of each position, [B, L, D]; padding positions are finite but meaningless."""

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
        """The state after one more event a row. Equal to `begin` on the longer history."""
        return self.begin(append(state.batch, item_B, time_B))

    def freeze(self) -> "SequenceModel":
        """Evaluation mode with constants precomputed (aligned tables, projected keys and values)."""
        self.eval()
        self.items.freeze()
        return self

    def train(self, mode: bool = True) -> "SequenceModel":
        if mode:
            self.items.thaw()
        super().train(mode)
        return self


def append(batch: Batch, item_B: Tensor, time_B: Tensor | None = None) -> Batch:
    """Each row one event longer; the oldest falls out of a full row."""
    item_BL = torch.cat([batch.item_BL[:, 1:], item_B[:, None]], dim=1)
    time_BL = batch.time_BL
    if time_BL is not None and time_B is not None:
        time_BL = torch.cat([time_BL[:, 1:], time_B[:, None]], dim=1)
    length_B = (batch.length_B + (item_B != PAD)).clamp(max=batch.item_BL.shape[1])
    return Batch(item_BL, length_B, batch.user_B, time_BL)


COMPONENT_BASE = SequenceModel
