"""Guess masked items from both sides: the objective of bidirectional models.

Paper: Sun et al. 2019, BERT4Rec, https://arxiv.org/abs/1904.06690, section 3.6

Of each row max(1, round(mask_rate * length)) items, drawn without replacement, become [MASK], always
(BERT keeps or swaps a fifth of them); in a share `mask_last` of the rows it is the newest item alone, which
is the task at inference. The official code cuts long histories into overlapping windows and writes ten
masked copies of each to disk, and one of the second kind; here the newest window is masked anew each epoch.

Dimension key: B rows, L positions, N targets (a fixed capacity), D width.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lexrec.data.batch import Batch, with_slots
from lexrec.errors import ConfigError
from lexrec.models.base import SequenceModel
from lexrec.objectives._losses import LossConfig, draw_negatives, loss_at_positions
from lexrec.objectives.base import Objective, Targets


class ClozeConfig(LossConfig):
    """Loss at masked positions."""

    name: Literal["cloze"] = "cloze"
    mask_rate: float = Field(0.2, gt=0, lt=1)
    """Share of a row's items that are masked, one at least (the paper: .2 on ML-1M, .6 on Beauty)."""
    mask_last: float = Field(0.1, ge=0, le=1)
    """Share of rows in which the newest item alone is masked, as when the next item is predicted."""


class Cloze(Objective):
    """Masked items given what is left of their row."""

    sampling = "history"
    extra_events = 0

    config: ClozeConfig

    def __init__(self, config: ClozeConfig, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.n_items = n_items

    def check(self, model: SequenceModel) -> None:
        if model.reads_mask and not model.causal:
            return
        why, fits = "reads the next item at the newest one and puts no [MASK] after it", "last_item"
        if model.causal:
            why, fits = "is causal: at a masked item it cannot see what follows", "next_item or last_item"
        raise ConfigError(
            f"objective cloze trains the states of masked items, and {type(model).__name__} {why}; "
            f"use objective.name={fits}"
        )

    def prepare(self, batch: Batch, generator: torch.Generator) -> Targets:
        item_BL, n_places = batch.item_BL, batch.item_BL.numel()
        capacity = n_places if batch.capacity is None else batch.capacity
        is_masked_BL = self._masked(batch.is_item_BL, generator)
        mask_index = self.n_items + 1
        inputs = batch._replace(item_BL=item_BL.masked_fill(is_masked_BL, mask_index), capacity=None)
        inputs = with_slots(inputs, capacity)
        # A row of n items has max(1, round(rate * n)) targets, which is at most rate * n + 1.
        n_targets = min(math.ceil(self.config.mask_rate * capacity) + len(item_BL), n_places)
        position_N = with_slots(batch._replace(item_BL=item_BL * is_masked_BL), n_targets).slot_N
        assert position_N is not None
        is_used_N = position_N < n_places
        target_N = item_BL.flatten()[position_N.clamp(max=n_places - 1)]
        target_N = torch.where(is_used_N, target_N, 1)
        negative_NK = draw_negatives(target_N, self.n_items, self.config, generator)
        return Targets(inputs, position_N, target_N, is_used_N.float(), negative_NK)

    def loss(self, model: SequenceModel, batch: Batch, targets: Targets) -> dict[str, Tensor]:
        return loss_at_positions(model, targets, self.config)

    def _masked(self, is_item_BL: Tensor, generator: torch.Generator) -> Tensor:
        """True at the items to mask, [B, L]."""
        B, L = is_item_BL.shape
        device = is_item_BL.device
        lot_BL = torch.rand(B, L, generator=generator, device=device).masked_fill(~is_item_BL, 2)
        rank_BL = lot_BL.argsort(dim=1).argsort(dim=1)
        n_masked_B1 = (self.config.mask_rate * is_item_BL.sum(1, keepdim=True)).round().clamp(min=1)
        is_last_B1 = torch.rand(B, 1, generator=generator, device=device) < self.config.mask_last
        is_newest_L = torch.arange(L, device=device) == L - 1
        return torch.where(is_last_B1, is_newest_L, rank_BL < n_masked_B1) & is_item_BL
