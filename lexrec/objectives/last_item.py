"""Predict one event from everything before it: fits any model, causal or not.

A sample is the window before one training event, drawn from the flat array: no prefix is materialised.

Dimension key: B rows, L positions, D width.
"""

from typing import Literal

import torch
from torch import Tensor

from lexrec.data.batch import PAD, Batch, with_slots
from lexrec.models.base import SequenceModel
from lexrec.objectives._losses import LossConfig, draw_negatives, mean_loss
from lexrec.objectives.base import Objective, Targets


class LastItemConfig(LossConfig):
    """Loss at the newest position of every prefix."""

    name: Literal["last_item"] = "last_item"


class LastItem(Objective):
    """The newest event of each window given those before it."""

    sampling = "prefix"

    config: LastItemConfig

    def __init__(self, config: LastItemConfig, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.n_items = n_items

    def prepare(self, batch: Batch, generator: torch.Generator) -> Targets:
        item_BL, target_B = batch.item_BL[:, :-1], batch.item_BL[:, -1]
        B, L = item_BL.shape
        time_BL = None if batch.time_BL is None else batch.time_BL[:, :-1]
        inputs = Batch(item_BL, (batch.length_B - 1).clamp(min=0), batch.user_B, time_BL)
        inputs = with_slots(inputs, B * L if batch.capacity is None else batch.capacity)
        has_target_B = (target_B != PAD) & (inputs.length_B > 0)
        target_B = torch.where(has_target_B, target_B, 1)
        newest_B = torch.arange(1, B + 1, device=item_BL.device) * L - 1
        negative_BK = draw_negatives(target_B, self.n_items, self.config, generator)
        return Targets(inputs, newest_B, target_B, has_target_B.float(), negative_BK)

    def loss(self, model: SequenceModel, batch: Batch, targets: Targets) -> dict[str, Tensor]:
        hidden_B1D, aux = model.encode_next(targets.inputs)
        loss = mean_loss(hidden_B1D[:, 0], model.scoring(), targets, self.config)
        return {"loss": loss + sum(aux.values()), self.config.loss: loss, **aux}
