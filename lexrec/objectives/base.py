"""What turns (model, batch) into a loss. The only place where targets and negatives are made.

Dimension key: B rows, L positions, N scored states (a fixed capacity), K negatives.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lexrec.config import Config
from lexrec.data.batch import Batch
from lexrec.models.base import SequenceModel


class ObjectiveConfig(Config):
    """Base of every objective's config."""


class Targets(NamedTuple):
    """What an objective prepares from a batch, on the batch's device, at static shapes."""

    inputs: Batch
    """What the model reads."""
    position_N: Tensor
    """int64 flat places (row * L + position) of the states to score; B * L where unused."""
    target_N: Tensor
    """int64 item each state should predict; 1 where unused (its weight is 0)."""
    weight_N: Tensor
    """float32 weight of each target in the mean; 0 where unused."""
    negative_NK: Tensor | None = None
    """int64 sampled wrong items of each target."""
    views: tuple[Batch, ...] = ()
    """Augmented copies of the rows, for contrastive objectives."""


class Objective(nn.Module, ABC):
    """Base of every objective."""

    sampling: ClassVar[Literal["history", "prefix"]]
    """history: a sample is a user's newest window, an epoch is every user once.
    prefix: a sample is the window before one event, an epoch is every training event once."""

    extra_events: ClassVar[int] = 1
    """Events a sample holds beyond the model's max_len (1: the target of the newest position)."""

    def check(self, model: SequenceModel) -> None:
        """Refuse a model this objective cannot train.

        Raises:
            ConfigError: naming the model and the objectives that fit it.
        """

    @abstractmethod
    def prepare(self, batch: Batch, generator: torch.Generator) -> Targets:
        """Inputs, targets and negatives of a batch; every draw comes from `generator`."""

    @abstractmethod
    def loss(self, model: SequenceModel, batch: Batch, targets: Targets) -> dict[str, Tensor]:
        """Named scalar losses; the total is under "loss"."""


COMPONENT_BASE = Objective
