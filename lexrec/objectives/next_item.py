"""Predict each next item of a history: the objective of causal models.

Every position of a window is trained at once, so an epoch reads each user once. Needs a model in which
no position sees a later one; `allow_leak` trains one that does (MLTFR's published form), and every result
says so.

Dimension key: B rows, L positions, N slots, D width.
"""

from typing import Literal

import torch
from torch import Tensor

from lexrec.data.batch import PAD, Batch, with_slots
from lexrec.errors import ConfigError
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
        item_BL = batch.item_BL
        has_target_BL = (item_BL[:, :-1] != PAD) & (item_BL[:, 1:] != PAD)
        B, L = has_target_BL.shape
        time_BL = None if batch.time_BL is None else batch.time_BL[:, :-1]
        # A lone event has no predecessor: it is a target without input, and the row stays empty.
        inputs = Batch(item_BL[:, :-1] * has_target_BL, has_target_BL.sum(1), batch.user_B, time_BL)
        inputs = with_slots(inputs, B * L if batch.capacity is None else batch.capacity)
        assert inputs.slot_N is not None
        is_used_N = inputs.slot_N < B * L
        target_N = item_BL[:, 1:].flatten()[inputs.slot_N.clamp(max=B * L - 1)]
        target_N = torch.where(is_used_N, target_N, 1)
        negative_NK = draw_negatives(target_N, self.n_items, self.config, generator)
        return Targets(inputs, inputs.slot_N, target_N, is_used_N.float(), negative_NK)

    def loss(self, model: SequenceModel, batch: Batch, targets: Targets) -> dict[str, Tensor]:
        return loss_at_positions(model, targets, self.config)
