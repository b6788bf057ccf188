"""Fisher importance of a model's parameters: how sharply its predictions depend on each of them.

    F_i = mean over samples of (d log p(y | x) / d theta_i)^2        eq. 13 of MLTFR

A sample is a row of a training batch, and log p(y | x) the sum over its scored states. Under a softmax
objective (ce, sampled_softmax) y is an item and p the softmax over the whole catalogue; under bce and gbce
y is one answer for each scored pair, the target and its negatives, and p the product of
Bernoulli(sigmoid(s + prior)), the prior being that of the loss. Auxiliary losses and the contrast of views
are no prediction and take no part.

`labels=model` draws y from the model's own prediction, which makes F the Fisher information; `labels=data`
takes the targets (the "empirical" Fisher, the release). Gradients are those of single samples, by torch.func,
with dropout and the filter's noise off; `gradients=batch` squares those of whole batches with both on, as the
release does, which mixes samples before squaring.

Dimension key: B rows, L positions, P scored states of a row, K negatives, I items, D width, S samples.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends import cudnn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from lexrec.config import FisherConfig
from lexrec.data.batch import Batch
from lexrec.item_encoders.base import ItemEncoder, ScoringTable
from lexrec.objectives._losses import LossConfig, positive_power, prior_log_odds
from lexrec.objectives.base import Targets
from lexrec.training.step import Step

_CELLS = 2**24
"""Numbers a chunk of samples may hold, as logits or as gradients: 64 MiB."""
_TABLE_CELLS = 2**25
"""As much for a token table in the space of items: eight tensors of that size are held, 1 GiB."""
_ASKED = ("candidate_BPK", "answer_BPK", "is_scored_BP")


@dataclass(frozen=True)
class Rows:
    """What is asked of each row, and the answers whose probability is differentiated."""

    inputs: Batch
    candidate_BPK: Tensor | None
    """int64 items of the scored pairs, the target first; None: the whole catalogue is scored."""
    answer_BPK: Tensor
    """Softmax: the item, [B, P, 1]; pairs: 1.0 for yes and 0.0 for no, [B, P, K]."""
    is_scored_BP: Tensor

    def __len__(self) -> int:
        return len(self.answer_BPK)

    def at(self, row: Tensor | slice) -> "Rows":
        """Some of the rows."""
        inputs = Batch(*(None if t is None else t[row] for t in self.inputs[:4]))  # type: ignore[arg-type]
        candidate = None if self.candidate_BPK is None else self.candidate_BPK[row]
        return Rows(inputs, candidate, self.answer_BPK[row], self.is_scored_BP[row])


def importance(
    step: Step,
    batches: Iterable[Batch],
    config: FisherConfig,
    names: Sequence[str],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Importance of each named parameter of the item encoder; the step is left as it was.

    Args:
        step: a trained model and its objective.
        batches: training batches on the model's device, read until `config.n_samples` rows were used.
        config: the form of the importance.
        names: parameters of `step.model.items`, as `experts.M.NAME`: what begins alike is one expert.
        generator: for masks, negatives and drawn answers.

    Returns:
        For each name, float64: kind=diag one number an element; kind=scalar one number, the mean over all
        named elements of its expert.
    """
    likelihood = LogLikelihood(step)
    parameters = _parameters(step, names)
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    n_samples, n_squares = 0, 0
    with _mode(step, training=config.gradients == "batch"):
        for batch in batches:
            rows = _asked(step, batch, generator)
            rows = rows.at(rows.is_scored_BP.any(1).nonzero()[: config.n_samples - n_samples, 0])
            n_samples += len(rows)
            for part in _parts(rows, likelihood, parameters, config):
                if config.labels == "model":
                    part = likelihood.answered(part, generator)
                found = _sample_squares if config.gradients == "sample" else _batch_square
                for name, value in found(likelihood, parameters, part).items():
                    sums[name] += value
                n_squares += len(part) if config.gradients == "sample" else 1
            if n_samples >= config.n_samples:
                break
    means = {name: value / max(n_squares, 1) for name, value in sums.items()}
    return means if config.kind == "diag" else _of_experts(means)


class LogLikelihood(nn.Module):
    """log p(y | x) of each row, the sum over its scored states, [B]."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.model = step.model
        loss: LossConfig = step.objective.config  # type: ignore[assignment]
        self.prior = prior_log_odds(positive_power(loss, self.model.items.n_items), loss.n_negatives)
        """What the loss adds to the score of a pair."""
        self.per_row = step.objective.sampling == "prefix"
        """True where a sample has one target, the item after it."""

    def forward(self, rows: Rows) -> Tensor:
        logit_BPK = self.logits(rows.inputs, rows.candidate_BPK)
        if rows.candidate_BPK is None:
            log_p_BP = logit_BPK.log_softmax(-1).gather(-1, rows.answer_BPK - 1)[..., 0]
        else:
            log_p_BP = -F.softplus(logit_BPK * (1 - 2 * rows.answer_BPK)).sum(-1)
        return (log_p_BP * rows.is_scored_BP).sum(1)

    @torch.no_grad()
    def answered(self, rows: Rows, generator: torch.Generator) -> Rows:
        """The same rows with answers drawn from the model's own prediction."""
        logit_BPK = self.logits(rows.inputs, rows.candidate_BPK)
        if rows.candidate_BPK is not None:
            return replace(rows, answer_BPK=torch.bernoulli(logit_BPK.sigmoid(), generator=generator))
        share_MI = logit_BPK.softmax(-1).flatten(0, 1)
        item_BPK = 1 + torch.multinomial(share_MI, 1, generator=generator).view_as(rows.answer_BPK)
        return replace(rows, answer_BPK=item_BPK)

    def logits(self, inputs: Batch, candidate_BPK: Tensor | None) -> Tensor:
        """Logits of the candidates, or of the whole catalogue, [B, P, K or I]."""
        hidden_BPD = (self.model.encode_next(inputs) if self.per_row else self.model(inputs)).hidden_BLD
        table: ScoringTable = self.model.scoring()
        if candidate_BPK is None:
            return _at_least_float(table.score(hidden_BPD))
        hidden_ND, candidate_NK = hidden_BPD.flatten(0, 1), candidate_BPK.flatten(0, 1)
        logit_NK = _at_least_float(table.score_items(hidden_ND, candidate_NK)) + self.prior
        return logit_NK.view(candidate_BPK.shape)


def _parts(
    rows: Rows, likelihood: LogLikelihood, parameters: dict[str, Tensor], config: FisherConfig
) -> Iterator[Rows]:
    """Rows whose gradients are taken at once: all of a batch, or as many as memory is for."""
    n_numbers = sum(p.numel() for p in parameters.values())
    n_logits = rows.is_scored_BP.shape[1] * likelihood.model.items.n_items
    n = max(1, len(rows))
    if config.gradients == "sample":
        n_aligned = _n_aligned(likelihood.model.items, parameters)
        n = max(1, min(_CELLS // max(n_numbers, n_logits), _TABLE_CELLS // n_aligned))
    for first in range(0, len(rows), n):
        yield rows.at(slice(first, first + n))


def _n_aligned(items: ItemEncoder, parameters: dict[str, Tensor]) -> int:
    """Numbers of the largest token table in the space of items, if its way there is asked about."""
    dim = max((len(p) for name, p in parameters.items() if name.endswith("align.weight")), default=0)
    tables: list[tuple[str, Tensor]] = [*items.named_buffers(), *items.named_parameters()]
    return max(1, dim * max((len(t) for name, t in tables if name.endswith("table_VW")), default=0))


def _batch_square(likelihood: LogLikelihood, parameters: dict[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    """The squared gradient of the mean over all scored states, which is what a training step descends."""

    def mean_of_all(given: dict[str, Tensor]) -> Tensor:
        return _call(likelihood, given, rows).sum() / rows.is_scored_BP.sum()

    return {name: g.double().square() for name, g in grad(mean_of_all)(parameters).items()}


def _sample_squares(
    likelihood: LogLikelihood, parameters: dict[str, Tensor], rows: Rows
) -> dict[str, Tensor]:
    """The sum over rows of each one's squared gradient."""
    gradients = _sample_gradients(likelihood, parameters, rows)
    return {name: g.double().square().sum(0) for name, g in gradients.items()}


def _sample_gradients(
    likelihood: LogLikelihood, parameters: dict[str, Tensor], rows: Rows
) -> dict[str, Tensor]:
    """Gradients of log p of each row, [B, *theta.shape]."""
    given = {name: value for name, value in _flat(rows).items() if value is not None}

    def of_one(parameters: dict[str, Tensor], row: dict[str, Tensor]) -> Tensor:
        return _call(likelihood, parameters, _unflat({name: t[None] for name, t in row.items()}))[0]

    # The fused attentions have no rule for a batch of batches.
    with sdpa_kernel(SDPBackend.MATH), cudnn.flags(enabled=False):
        if any(isinstance(part, nn.RNNBase) for part in likelihood.modules()):
            # Nor have recurrent layers, and cuDNN's know no gradient outside training.
            each = [grad(of_one)(parameters, {n: t[i] for n, t in given.items()}) for i in range(len(rows))]
            return {name: torch.stack([one[name] for one in each]) for name in parameters}
        gradients: dict[str, Tensor] = vmap(grad(of_one), (None, 0), randomness="different")(
            parameters, given
        )
    return gradients


def _flat(rows: Rows) -> dict[str, Tensor | None]:
    named = {name: getattr(rows.inputs, name) for name in Batch._fields[:4]}
    return {**named, **{name: getattr(rows, name) for name in _ASKED}}


def _unflat(given: dict[str, Tensor]) -> Rows:
    inputs = Batch(*(given.get(name) for name in Batch._fields[:4]))  # type: ignore[arg-type]
    return Rows(inputs, *(given.get(name) for name in _ASKED))  # type: ignore[arg-type]


def _call(likelihood: LogLikelihood, parameters: dict[str, Tensor], rows: Rows) -> Tensor:
    # All others detached, or autograd would keep a graph for them.
    others = {name: p.detach() for name, p in likelihood.named_parameters()}
    asked = {f"model.items.{name}": p for name, p in parameters.items()}
    log_p_B: Tensor = functional_call(likelihood, others | asked, (rows,))
    return log_p_B


@torch.no_grad()
def _asked(step: Step, batch: Batch, generator: torch.Generator) -> Rows:
    """A batch with the objective's targets as answers."""
    targets = step.objective.prepare(batch, generator)
    inputs = targets.inputs._replace(slot_N=None, capacity=None)
    per_row = step.objective.sampling == "prefix"
    target_BP, is_scored_BP, negative_BPK = _by_row(targets, per_row=per_row)
    if negative_BPK is None or getattr(step.objective.config, "loss", None) == "sampled_softmax":
        return Rows(inputs, None, target_BP[..., None], is_scored_BP)
    candidate_BPK = torch.cat([target_BP[..., None], negative_BPK], -1)
    is_target_K = torch.arange(candidate_BPK.shape[-1], device=candidate_BPK.device) == 0
    return Rows(inputs, candidate_BPK, is_target_K.float().expand(candidate_BPK.shape), is_scored_BP)


def _by_row(targets: Targets, *, per_row: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Targets, where there are any, and negatives, by row and position: [B, P], [B, P] and [B, P, K]."""
    B, L = targets.inputs.item_BL.shape
    negative_NK = targets.negative_NK
    if negative_NK is not None:
        negative_NK = negative_NK.expand(len(targets.target_N), -1)
    if per_row:
        negative_BPK = None if negative_NK is None else negative_NK[:, None]
        return targets.target_N[:, None], targets.weight_N[:, None] > 0, negative_BPK

    def placed(value: Tensor, empty: int) -> Tensor:
        # Unused targets all write the one place beyond the last, which is dropped.
        flat = value.new_full((B * L + 1, *value.shape[1:]), empty)
        return flat.index_copy(0, targets.position_N, value)[:-1].view(B, L, *value.shape[1:])

    negative_BPK = None if negative_NK is None else placed(negative_NK, 1)
    return placed(targets.target_N, 1), placed(targets.weight_N, 0) > 0, negative_BPK


def _at_least_float(logit: Tensor) -> Tensor:
    return logit.to(torch.promote_types(logit.dtype, torch.float32))


def _of_experts(means: dict[str, Tensor]) -> dict[str, Tensor]:
    """One number for all parameters of an expert: the mean over their elements."""
    owner = {name: ".".join(name.split(".")[:2]) for name in means}
    flat: dict[str, list[Tensor]] = {}
    for name, value in means.items():
        flat.setdefault(owner[name], []).append(value.flatten())
    mean = {expert: torch.cat(values).mean() for expert, values in flat.items()}
    return {name: mean[owner[name]] for name in means}


def _parameters(step: Step, names: Sequence[str]) -> dict[str, Tensor]:
    known = dict(step.model.items.named_parameters())
    return {name: known[name].detach() for name in names}


@contextmanager
def _mode(step: Step, *, training: bool) -> Iterator[None]:
    was_training = step.training
    # The release's filter is noisy outside training too.
    noisy: list[Any] = (
        [] if training else [part for part in step.modules() if getattr(part, "eval_noise", False)]
    )
    step.train(training)
    try:
        for part in noisy:
            part.eval_noise = False
        yield
    finally:
        for part in noisy:
            part.eval_noise = True
        step.train(was_training)
