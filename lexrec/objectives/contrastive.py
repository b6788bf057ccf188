"""CL4SRec: next-item training plus a contrast between two distorted views of each history.

Paper: Xie et al. 2022, Contrastive Learning for Sequential Recommendation, https://arxiv.org/abs/2010.14395

    crop      keeps a run of floor(eta n) items                                             eq. 5
    mask      hides floor(gamma n) items behind [MASK]                                      eq. 6
    reorder   shuffles a run of floor(beta n) items                                         eq. 7
    L_cl      = -log exp(s(z, z+)) / (exp(s(z, z+)) + sum over 2 (B - 1) views of others)   eq. 8
    L         = L_main + weight * L_cl                                                      eq. 12

The backbone is SASRec's (recipe cl4srec); any model that next_item can train will do. A view's vector z is
the state of its newest position, s the dot product over `temperature`.

Differences from the official code: the two operators of a row always differ; a row keeps at least one
item, whatever its length; nothing is edited in place.

Dimension key: B rows, L positions, V = 2 B views, D width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lexrec.data.batch import PAD, Batch, with_slots
from lexrec.models.base import SequenceModel
from lexrec.objectives._losses import LossConfig
from lexrec.objectives.base import Objective, Targets
from lexrec.objectives.next_item import NextItem, NextItemConfig


class ContrastiveConfig(LossConfig):
    """The main loss, the three operators and the weight of the contrast."""

    name: Literal["contrastive"] = "contrastive"
    weight: float = Field(0.1, ge=0)
    """lambda of the paper."""
    temperature: float = Field(1.0, gt=0)
    crop: float = Field(0.6, gt=0, le=1)
    """Share of the items that stays (eta)."""
    mask: float = Field(0.3, ge=0, le=1)
    """Share of the items that is hidden (gamma)."""
    reorder: float = Field(0.6, ge=0, le=1)
    """Share of the items that is shuffled (beta)."""
    allow_leak: bool = False
    """As in next_item: train a model whose earlier positions see later ones all the same."""


class Contrastive(Objective):
    """next_item, and two views of each row that should be nearer to each other than to other rows'."""

    sampling = "history"

    config: ContrastiveConfig

    def __init__(self, config: ContrastiveConfig, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.mask_index = n_items + 1
        shared = {key: getattr(config, key) for key in LossConfig.model_fields}
        self.main = NextItem(NextItemConfig(allow_leak=config.allow_leak, **shared), n_items)

    def check(self, model: SequenceModel) -> None:
        self.main.check(model)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Targets:
        targets = self.main.prepare(batch, generator)
        first_B = _randint(3, batch, generator)
        second_B = (first_B + 1 + _randint(2, batch, generator)) % 3
        views = tuple(self._view(targets.inputs, which_B, generator) for which_B in (first_B, second_B))
        return targets._replace(views=views)

    def loss(self, model: SequenceModel, batch: Batch, targets: Targets) -> dict[str, Tensor]:
        losses = self.main.loss(model, batch, targets)
        encoded = [model.encode_next(view) for view in targets.views]
        z_VD = torch.cat([one.hidden_BLD[:, -1] for one in encoded])
        has_items_B = targets.inputs.length_B > 0
        contrast = self.config.weight * nt_xent(z_VD, has_items_B.repeat(2), self.config.temperature)
        auxiliary = sum(value for one in encoded for value in one.aux.values())
        return {**losses, "loss": losses["loss"] + contrast + auxiliary, "contrast": contrast}

    def _view(self, inputs: Batch, which_B: Tensor, generator: torch.Generator) -> Batch:
        """Each row under its operator: 0 crop, 1 mask, 2 reorder."""
        place_BL = self._crop(inputs, generator)
        cropped_BL = _take(inputs.item_BL, place_BL)
        made_OBL = torch.stack([cropped_BL, self._mask(inputs, generator), self._reorder(inputs, generator)])
        item_BL = made_OBL[which_B, torch.arange(len(which_B), device=which_B.device)]
        time_BL = inputs.time_BL
        if time_BL is not None:
            # Hidden and shuffled items leave the times where they are; a crop moves them along.
            time_BL = torch.where((which_B == 0)[:, None], _take(time_BL, place_BL), time_BL)
        view = Batch(item_BL, (item_BL != PAD).sum(1), inputs.user_B, time_BL)
        return view if inputs.slot_N is None else with_slots(view, len(inputs.slot_N))

    def _crop(self, inputs: Batch, generator: torch.Generator) -> Tensor:
        """The place each place of the view comes from, -1 where the view has none, [B, L]."""
        item_BL, length_B = inputs.item_BL, inputs.length_B
        kept_B = (self.config.crop * length_B).long().clamp(min=1)
        left_off_B = _randint(length_B - kept_B + 1, inputs, generator)
        L = item_BL.shape[1]
        age_L = torch.arange(L - 1, -1, -1, device=item_BL.device)
        place_BL = L - 1 - age_L - left_off_B[:, None]
        return torch.where(age_L < kept_B[:, None], place_BL, -1)

    def _mask(self, inputs: Batch, generator: torch.Generator) -> Tensor:
        item_BL = inputs.item_BL
        key_BL = _rand_like(item_BL, generator).masked_fill(~inputs.is_item_BL, 2.0)
        n_hidden_B = (self.config.mask * inputs.length_B).long()
        is_hidden_BL = key_BL.argsort(1).argsort(1) < n_hidden_B[:, None]
        return item_BL.masked_fill(is_hidden_BL, self.mask_index)

    def _reorder(self, inputs: Batch, generator: torch.Generator) -> Tensor:
        item_BL, length_B = inputs.item_BL, inputs.length_B
        n_moved_B = (self.config.reorder * length_B).long()
        start_B = _randint(length_B - n_moved_B + 1, inputs, generator)
        L = item_BL.shape[1]
        order_BL = torch.arange(L, device=item_BL.device) - (L - length_B[:, None])
        is_moved_BL = (order_BL >= start_B[:, None]) & (order_BL < (start_B + n_moved_B)[:, None])
        # Keys of the run stay between those of its neighbours, so a sort shuffles the run alone.
        shuffled_BL = start_B[:, None] + _rand_like(item_BL, generator) * n_moved_B[:, None]
        key_BL = torch.where(is_moved_BL, shuffled_BL, order_BL.float())
        return item_BL.gather(1, key_BL.argsort(stable=True, dim=1))


def nt_xent(z_VD: Tensor, is_view_V: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean NT-Xent over the views of rows that have any; view v's partner is v + B modulo 2 B.

    Args:
        z_VD: vectors of the first views, then of the second.
        is_view_V: True where the row has items; other views are neither asked nor compared with.
        temperature: divides the dot products.
    """
    V = len(z_VD)
    similarity_VV = (z_VD @ z_VD.T).float() / temperature
    itself_VV = torch.eye(V, dtype=torch.bool, device=z_VD.device)
    similarity_VV = similarity_VV.masked_fill(itself_VV | ~is_view_V[None, :], -torch.inf)
    # A row without items compares with nothing; zeros keep its unused loss finite.
    similarity_VV = torch.where(is_view_V[:, None], similarity_VV, 0.0)
    partner_V = torch.arange(V, device=z_VD.device).roll(V // 2)
    loss_V = F.cross_entropy(similarity_VV, partner_V, reduction="none")
    return (loss_V * is_view_V).sum() / is_view_V.sum().clamp(min=1)


def _take(value_BL: Tensor, place_BL: Tensor) -> Tensor:
    """Values from their places, 0 where the place is -1."""
    return value_BL.gather(1, place_BL.clamp(min=0)) * (place_BL >= 0)


def _rand_like(item_BL: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(item_BL.shape, generator=generator, device=item_BL.device)


def _randint(high: int | Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
    """One draw a row from 0..high-1."""
    draw_B = torch.rand(len(batch.user_B), generator=generator, device=batch.user_B.device)
    return (draw_B * high).long()
