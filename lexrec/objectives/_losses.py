"""Losses of scored states: pure functions of hidden states, a scoring table, targets and negatives.

Each returns one loss per target, [N]; the objective, or `loss_at_positions`, weighs and averages them.

Dimension key: N scored states, K negatives, I items (column 0 is item 1), D width.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lexrec.item_encoders.base import ScoringTable
from lexrec.models.base import SequenceModel
from lexrec.objectives.base import ObjectiveConfig, Targets


class LossConfig(ObjectiveConfig):
    """Which loss scores a target against its negatives."""

    loss: Literal["ce", "sampled_softmax", "bce", "gbce"] = "ce"
    """ce: softmax over the whole catalogue; the others draw `n_negatives` items a target."""
    n_negatives: int = Field(1, ge=1)
    """Negatives of each target, uniform over the catalogue without the target."""
    shared_negatives: bool = False
    """One draw of negatives for the whole batch: cheaper, and a target may be among them (masked out)."""
    gbce_t: float = Field(0.75, ge=0, le=1)
    """Calibration of gBCE: 0 is plain BCE, 1 undoes the bias of sampling (gSASRec, eq. 9)."""


def draw_negatives(
    target_N: Tensor, n_items: int, config: LossConfig, generator: torch.Generator
) -> Tensor | None:
    """Uniform negatives, [N, K], never the target; [1, K] where the batch shares them; None for ce."""
    if config.loss == "ce":
        return None
    shape = (1 if config.shared_negatives else len(target_N), config.n_negatives)
    if config.shared_negatives:
        return torch.randint(1, n_items + 1, shape, generator=generator, device=target_N.device)
    drawn_NK = torch.randint(1, max(n_items, 2), shape, generator=generator, device=target_N.device)
    return drawn_NK + (drawn_NK >= target_N[:, None])


def loss_at_positions(model: SequenceModel, targets: Targets, config: LossConfig) -> dict[str, Tensor]:
    """Named losses of the states at `targets.position_N`: their mean over targets and the model's own."""
    hidden_BLD, aux = model(targets.inputs)
    hidden_MD = hidden_BLD.flatten(0, 1)
    hidden_ND = hidden_MD[targets.position_N.clamp(max=len(hidden_MD) - 1)]
    loss_N = target_loss(hidden_ND, model.scoring(), targets, config)
    loss = weighted_mean(loss_N, targets.weight_N)
    return {"loss": loss + sum(aux.values()), config.loss: loss, **aux}


def target_loss(hidden_ND: Tensor, table: ScoringTable, targets: Targets, config: LossConfig) -> Tensor:
    """Loss of each target under the configured loss, [N]; float32 whatever the arithmetic before it."""
    target_N = targets.target_N
    if config.loss == "ce" or targets.negative_NK is None:
        return F.cross_entropy(table.score(hidden_ND).float(), target_N - 1, reduction="none")
    positive_N = table.score_items(hidden_ND, target_N[:, None])[:, 0].float()
    negative_NK, is_wrong_NK = _score_negatives(hidden_ND, table, target_N, targets.negative_NK)
    if config.loss == "sampled_softmax":
        return sampled_softmax(positive_N, negative_NK, is_wrong_NK, table.n_items)
    beta = gbce_beta(config.n_negatives, table.n_items, config.gbce_t) if config.loss == "gbce" else 1.0
    return bce(positive_N, negative_NK, is_wrong_NK, beta)


def sampled_softmax(positive_N: Tensor, negative_NK: Tensor, is_wrong_NK: Tensor, n_items: int) -> Tensor:
    """-log of the target's share, each negative standing for (n - 1) / K items.

    Uniform sampling makes the logQ correction one constant: log((n - 1) / K).
    """
    correction = math.log(max(n_items - 1, 1) / negative_NK.shape[1])
    negative_NK = (negative_NK + correction).masked_fill(~is_wrong_NK, -torch.inf)
    return torch.cat([positive_N[:, None], negative_NK], dim=1).logsumexp(1) - positive_N


def bce(positive_N: Tensor, negative_NK: Tensor, is_wrong_NK: Tensor, beta: float = 1.0) -> Tensor:
    """-beta log sigmoid(positive) - sum over negatives of log(1 - sigmoid(negative)); beta 1 is plain BCE."""
    negative_N = (F.softplus(negative_NK) * is_wrong_NK).sum(1)
    return beta * F.softplus(-positive_N) + negative_N


def gbce_beta(n_negatives: int, n_items: int, t: float) -> float:
    """Power of the positive's sigmoid in gBCE (Petrov & Macdonald 2023, gSASRec, eq. 9)."""
    alpha = n_negatives / max(n_items - 1, 1)
    return alpha * (t * (1 - 1 / alpha) + 1 / alpha)


def weighted_mean(loss_N: Tensor, weight_N: Tensor) -> Tensor:
    """Mean over targets of weight > 0; 0 where a batch has none."""
    return (loss_N * weight_N).sum() / weight_N.sum().clamp(min=1e-9)


def _score_negatives(
    hidden_ND: Tensor, table: ScoringTable, target_N: Tensor, negative_NK: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits of the negatives, [N, K], and where they differ from the target."""
    if negative_NK.shape[0] == len(target_N):
        logit_NK = table.score_items(hidden_ND, negative_NK)
    else:
        shared_K = negative_NK[0]
        row_KD = table.take(shared_K)
        row_KD = F.normalize(row_KD, dim=-1) if table.normalise else row_KD
        logit_NK = table.query(hidden_ND) @ row_KD.T
        if table.bias_I is not None:
            logit_NK = logit_NK + table.bias_I[shared_K - 1]
    return logit_NK.float(), negative_NK != target_N[:, None]
