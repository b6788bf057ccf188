"""Losses of scored states: pure functions of hidden states, a scoring table, targets and negatives.

`mean_loss` is what objectives call; the parts return one loss per target, [N].

Dimension key: N scored states, K negatives, I items (column 0 is item 1), D width.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lexrec.item_encoders.base import ScoringTable
from lexrec.kernels.binary_cross_entropy import binary_cross_entropy, losses
from lexrec.kernels.cross_entropy import cross_entropy
from lexrec.kernels.rows import pick_rows
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
    if targets.position_N is targets.inputs.slot_N:
        hidden_ND, aux = model.encode_slots(targets.inputs)
    else:
        hidden_BLD, aux = model(targets.inputs)
        hidden_MD = hidden_BLD.flatten(0, 1)
        hidden_ND = pick_rows(hidden_MD, targets.position_N.clamp(max=len(hidden_MD) - 1))
    loss = mean_loss(hidden_ND, model.scoring(), targets, config)
    return {"loss": loss + sum(aux.values()) if aux else loss, config.loss: loss, **aux}


def mean_loss(hidden_ND: Tensor, table: ScoringTable, targets: Targets, config: LossConfig) -> Tensor:
    """Mean loss over targets of weight > 0, 0 where there is none; float32 whatever the arithmetic before."""
    target_N, negative_NK = targets.target_N, targets.negative_NK
    weight_N = targets.weight_N / targets.weight_N.sum().clamp(min=1e-9)
    if config.loss == "ce" or negative_NK is None:
        row_ID = table.block(1, table.n_items + 1)
        return cross_entropy(table.query(hidden_ND), row_ID, target_N - 1, weight_N, table.bias_I)
    if len(negative_NK) == len(target_N):
        # In one go: the table's rows are gathered, and their gradients summed, once.
        index_NX = torch.cat([target_N[:, None], negative_NK], dim=1)
        if config.loss != "sampled_softmax" and table.stored_RD is not None:
            beta = positive_power(config, table.n_items)
            prior = prior_log_odds(beta, negative_NK.shape[1])
            query_ND = table.query(hidden_ND)
            return binary_cross_entropy(query_ND, table.stored_RD, index_NX, weight_N, beta, prior)
        logit_NX = table.score_items(hidden_ND, index_NX).float()
        positive_N, logit_NK = logit_NX[:, 0], logit_NX[:, 1:]
    else:
        positive_N = table.score_items(hidden_ND, target_N[:, None])[:, 0].float()
        logit_NK = _shared_logits(hidden_ND, table, negative_NK[0])
    is_wrong_NK = negative_NK != target_N[:, None]
    if config.loss == "sampled_softmax":
        loss_N = sampled_softmax(positive_N, logit_NK, is_wrong_NK, table.n_items)
    else:
        loss_N = bce(positive_N, logit_NK, is_wrong_NK, positive_power(config, table.n_items))
    return (loss_N * weight_N).sum()


def sampled_softmax(positive_N: Tensor, negative_NK: Tensor, is_wrong_NK: Tensor, n_items: int) -> Tensor:
    """-log of the target's share, each negative standing for (n - 1) / K items.

    Uniform sampling makes the logQ correction one constant: log((n - 1) / K).
    """
    correction = math.log(max(n_items - 1, 1) / negative_NK.shape[1])
    negative_NK = (negative_NK + correction).masked_fill(~is_wrong_NK, -torch.inf)
    return torch.cat([positive_N[:, None], negative_NK], dim=1).logsumexp(1) - positive_N


def bce(positive_N: Tensor, negative_NK: Tensor, is_wrong_NK: Tensor, beta: float = 1.0) -> Tensor:
    """-beta log sigmoid(positive) - sum over negatives of log(1 - sigmoid(negative)); beta 1 is plain BCE.

    Scores are log-odds over those of a model that knows nothing, log(beta / K), which shifts all of them
    alike and changes no ranking. Without that start the item vectors first have to learn one large common
    vector that says no to everything, in which what tells them apart is lost: on ml-100k gBCE with 256
    negatives had HR@10 .07 after 12 epochs without it and .17 with it. With one negative and beta 1 it is 0.
    """
    return losses(positive_N, negative_NK, is_wrong_NK, beta, prior_log_odds(beta, negative_NK.shape[1]))


def prior_log_odds(beta: float, n_negatives: int) -> float:
    """Log-odds of a yes where one in n_negatives + 1 is one and counts beta times."""
    return math.log(beta / n_negatives)


def positive_power(config: LossConfig, n_items: int) -> float:
    """The `beta` of `bce` under a config."""
    return gbce_beta(config.n_negatives, n_items, config.gbce_t) if config.loss == "gbce" else 1.0


def gbce_beta(n_negatives: int, n_items: int, t: float) -> float:
    """Power of the positive's sigmoid in gBCE (Petrov & Macdonald 2023, gSASRec, eq. 9)."""
    alpha = n_negatives / max(n_items - 1, 1)
    return alpha * (t * (1 - 1 / alpha) + 1 / alpha)


def _shared_logits(hidden_ND: Tensor, table: ScoringTable, item_K: Tensor) -> Tensor:
    """Logits of the same items for every state, [N, K]: one matrix product, no [N, K, D]."""
    row_KD = table.take(item_K)
    row_KD = F.normalize(row_KD, dim=-1) if table.normalise else row_KD
    logit_NK = table.query(hidden_ND) @ row_KD.T
    if table.bias_I is not None:
        logit_NK = logit_NK + table.bias_I[item_K - 1]
    return logit_NK.float()
