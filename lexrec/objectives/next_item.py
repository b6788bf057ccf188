"""Predict each next item of a history: the objective of causal models.

Every position of a window is trained at once, so an epoch reads each user once. Needs a model in which
no position sees a later one; `allow_leak` trains one that does (MLTFR's published form), and every result
says so.

Dimension key: B rows, L positions, W = L + 1 of a window, N slots, D width.
"""

from typing import Literal

import torch
from torch import Tensor

from lexrec.data.batch import Batch
from lexrec.errors import ConfigError
from lexrec.kernels.shift import shift
from lexrec.models.base import SequenceModel
from lexrec.objectives._losses import LossConfig, draw_negatives, loss_at_positions
from lexrec.objectives.base import Objective, Targets


class NextItemConfig(LossConfig):
    """Loss at every position."""

    name: Literal["next_item"] = "next_item"
    allow_leak: bool = False
    """Train a model whose earlier positions see later ones, at every position all the same."""


class NextItem(Objective):
    """Shifted-sequence training over all positions."""

    sampling = "history"

    config: NextItemConfig

    def __init__(self, config: NextItemConfig, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.n_items = n_items

    def check(self, model: SequenceModel) -> None:
        if model.is_causal or self.config.allow_leak:
            return
        culprit = model if not model.causal else model.items
        raise ConfigError(
            f"objective next_item trains every position at once, and {type(culprit).__name__} lets a "
            "position see later ones, which leaks its target; use objective.name=last_item, or accept "
            "the leak with objective.allow_leak=true"
        )

    def prepare(self, batch: Batch, generator: torch.Generator) -> Targets:
        B, W = batch.item_BL.shape
        shifted = shift(batch, B * (W - 1) if batch.capacity is None else batch.capacity)
        time_BL = None if batch.time_BL is None else batch.time_BL[:, :-1]
        # A lone event has no predecessor: it is a target without input, and the row stays empty.
        inputs = Batch(shifted.item_BL, shifted.length_B, batch.user_B, time_BL, shifted.slot_N)
        target_N = shifted.target_N
        negative_NK = draw_negatives(target_N, self.n_items, self.config, generator)
        return Targets(inputs, shifted.slot_N, target_N, shifted.weight_N, negative_NK)

    def loss(self, model: SequenceModel, batch: Batch, targets: Targets) -> dict[str, Tensor]:
        return loss_at_positions(model, targets, self.config)
