"""Full-rank evaluation of anything that scores, under one protocol, with the ranks kept.

Dimension key: E events, R events of one batch, I item indexes 0..n + 1.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from lexrec import __version__
from lexrec.config import Config
from lexrec.data.dataset import Dataset
from lexrec.errors import ConfigError, RunError
from lexrec.evaluation import metrics
from lexrec.evaluation.cores import side_by_side
from lexrec.evaluation.events import Asked, Events, Pairs, Split, batches, evaluation_events
from lexrec.evaluation.pool import draw_pools, pool_ranks, sampled
from lexrec.evaluation.protocol import Candidates, Protocol, Seen, SelectedOn
from lexrec.evaluation.ranks import (
    BLOCK,
    Aside,
    NanScoreError,
    Ties,
    TopK,
    ranks_and_lists,
    target_ranks,
)
from lexrec.evaluation.scorer import ModelScorer, Scorer, may_share

HISTORY_EDGES = (0, 1, 5, 10, 20, 50)
"""Groups by events in the history: from each edge to below the next."""
POPULARITY_EDGES = (0, 1, 5, 20, 100)
"""Groups by training events of the target."""


class EvaluationConfig(Config):
    """How to measure."""

    k: tuple[int, ...] = Field((5, 10, 20), min_length=1)
    """Lengths at which every metric is cut."""
    seen: Seen = "remove"
    ties: Ties = "expected"
    candidates: Candidates = "all"
    batch_size: int = Field(256, ge=1)
    """Histories encoded at once."""
    block: int | None = Field(None, ge=1)
    """Items scored at once; null: as many as suit the device. No result depends on it."""
    pool: int | None = Field(None, ge=1)
    """Rank each target among so many random items its user has not met, not among the whole catalogue. Easier
    by far: such figures compare with nothing but figures of the same pools."""
    pool_seed: int = Field(0, ge=0)
    """Draws the pools and the sample."""
    sample: int | None = Field(None, ge=1)
    """Measure only so many events, drawn at random; all where there are fewer."""

    @field_validator("k")
    @classmethod
    def _ascending(cls, k: tuple[int, ...]) -> tuple[int, ...]:
        if min(k) < 1:
            raise ConfigError(f"k: every k is at least 1, got {list(k)}")
        return tuple(sorted(set(k)))

    @model_validator(mode="after")
    def _pools_are_unseen(self) -> "EvaluationConfig":
        if self.pool is not None and self.seen != "remove":
            raise ConfigError(f"pool: its candidates are unseen items; seen={self.seen} has no meaning there")
        return self


@dataclass(frozen=True)
class Evaluation:
    """A result: its protocol, its metrics, and one rank an event to compute anything else from."""

    protocol: Protocol
    metrics: dict[str, float]
    """{"hr@10": ...}: accuracy, averaged over events, and variety of the lists."""
    groups: dict[str, dict[str, dict[str, Any]]]
    """By history length, by popularity of the target and by novelty of the target:
    {"history": {"1-4": {"events": 12, "metrics": {...}}}}; a group without events is left out."""
    rank_E: NDArray[np.float32]
    """Events in the order of the data set, so two results of one protocol pair up."""

    def json(self) -> dict[str, Any]:
        """What `lexrec evaluate --json` prints."""
        protocol = self.protocol.model_dump(mode="json")
        return {"protocol": protocol, "metrics": self.metrics, "groups": self.groups}

    def save(self, folder: str | Path) -> None:
        """Write protocol.json, metrics.json (metrics and groups) and ranks_<split>.npy into a folder."""
        path, tree = Path(folder), self.json()
        path.mkdir(parents=True, exist_ok=True)
        with (path / f"ranks_{self.protocol.split}.npy").open("wb") as file:
            np.save(file, self.rank_E, allow_pickle=False)
        _write_json(path / "protocol.json", tree.pop("protocol"))
        _write_json(path / "metrics.json", tree)

    @staticmethod
    def load(folder: str | Path) -> "Evaluation":
        """Read what `save` wrote.

        Raises:
            RunError: it is missing or damaged, or the ranks are not those of the protocol.
        """
        path = Path(folder)
        try:
            protocol = Protocol.model_validate_json((path / "protocol.json").read_bytes())
            tree = json.loads((path / "metrics.json").read_bytes())
            rank_E = np.load(path / f"ranks_{protocol.split}.npy", allow_pickle=False)
            found = Evaluation(protocol, tree["metrics"], tree["groups"], rank_E)
        except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
            why = " ".join(str(error).split())
            raise RunError(f"{path} holds no readable evaluation ({why}); evaluate again") from error
        if len(rank_E) != protocol.n_events:
            raise RunError(
                f"{path}/ranks_{protocol.split}.npy has {len(rank_E)} ranks, its protocol names "
                f"{protocol.n_events} events; evaluate again"
            )
        return found


def evaluate(
    scorer: Scorer,
    dataset: Dataset,
    settings: EvaluationConfig | None = None,
    *,
    split: Split = "test",
    selected_on: SelectedOn = "nothing",
    allow_leak: bool = False,
    light: bool = False,
) -> Evaluation:
    """Rank every event of a split against the whole catalogue.

    Args:
        scorer: a fitted baseline, or a model in a `ModelScorer`.
        dataset: what it was fitted on.
        settings: how to measure; the defaults are the project's protocol.
        split: the part to measure.
        selected_on: the part that chose the model, for the protocol.
        allow_leak: whether its training was allowed to see its targets, for the protocol.
        light: accuracy only, without groups and without lists.

    Raises:
        DataError: the data set has no such events.
        RunError: a score is NaN.
    """
    settings = settings or EvaluationConfig()
    asks = questions(dataset, split, settings)
    events, is_candidate_I, item_EP = asks
    asked = batches(dataset, events, settings.batch_size, scorer.max_len, trims=scorer.trims)
    # A pool is no list that a user would be shown: variety has no meaning there.
    with_lists = not light and item_EP is None
    rank_E, shown = _rank_all(scorer, dataset, asked, settings, asks, with_lists=with_lists)
    protocol = protocol_of(dataset, split, settings, asks)
    protocol = protocol.model_copy(update={"selected_on": selected_on, "allow_leak": allow_leak})
    if light:
        values = metrics.accuracy(rank_E, settings.k)
        return Evaluation(protocol, values, {}, rank_E.astype(np.float32))
    result = of_ranks(protocol, rank_E, dataset, events)
    return replace(result, metrics=result.metrics | _variety(shown, dataset, is_candidate_I))


def accuracy(
    scorer: Scorer, dataset: Dataset, asked: Iterable[Asked], settings: EvaluationConfig, split: Split
) -> dict[str, float]:
    """The accuracy that `evaluate` finds, for events that are kept from one call to the next.

    Args:
        asked: all events of the split, as `batches` cuts them.
        scorer, dataset, settings, split: as for `evaluate`.
    """
    asks = questions(dataset, split, settings)
    rank_E, _ = _rank_all(scorer, dataset, asked, settings, asks, with_lists=False)
    return metrics.accuracy(rank_E, settings.k)


class Questions(NamedTuple):
    """What is asked: the events, what competes, and with pools what competes with each."""

    events: Events
    is_candidate_I: NDArray[np.bool_]
    item_EP: NDArray[np.int64] | None


def questions(dataset: Dataset, split: Split, settings: EvaluationConfig) -> Questions:
    """What an evaluation asks.

    Raises:
        DataError: the data set has no such events, or a user has met too much for a pool.
    """
    events = sampled(evaluation_events(dataset, split), settings.sample, settings.pool_seed)
    is_candidate_I = _candidates(dataset, settings.candidates)
    if settings.pool is None:
        return Questions(events, is_candidate_I, None)
    item_EP = draw_pools(dataset, events, settings.pool, settings.pool_seed, is_candidate_I)
    return Questions(events, is_candidate_I, item_EP)


def protocol_of(dataset: Dataset, split: Split, settings: EvaluationConfig, asks: Questions) -> Protocol:
    """The manifest of an evaluation whose model nothing has selected."""
    events, is_candidate_I, _ = asks
    is_drawn = settings.pool is not None or settings.sample is not None
    return Protocol(
        lexrec=__version__,
        data=dataset.fingerprint,
        split_rule=str(dataset.manifest["split"]),
        split=split,
        seen=settings.seen,
        ties=settings.ties,
        candidates=settings.candidates,
        n_candidates=int(is_candidate_I.sum()),
        n_events=len(events),
        n_unreachable=int((~is_candidate_I[events.target_E]).sum()),
        pool=settings.pool,
        pool_seed=settings.pool_seed if is_drawn else None,
        sample=settings.sample,
        k=settings.k,
    )


def of_ranks(protocol: Protocol, rank_E: NDArray[np.float64], dataset: Dataset, events: Events) -> Evaluation:
    """The accuracy of ranks, over all events and by group."""
    values = metrics.accuracy(rank_E, protocol.k)
    return Evaluation(
        protocol, values, _groups(rank_E, dataset, events, protocol.k), rank_E.astype(np.float32)
    )


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


Shown = dict[int, NDArray[np.int64]]
"""For each k, how often each item index stood among the first k of a list."""


def _rank_all(
    scorer: Scorer,
    dataset: Dataset,
    all_asked: Iterable[Asked],
    settings: EvaluationConfig,
    asks: Questions,
    *,
    with_lists: bool,
) -> tuple[NDArray[np.float64], Shown]:
    """Ranks in the order of the events, and what the lists showed."""
    ranks: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
    shown = {k: np.zeros(dataset.n_items + 2, dtype=np.int64) for k in settings.k if with_lists}

    def rank(asked: Asked) -> tuple[NDArray[np.int64], torch.Tensor, TopK | None]:
        query = scorer.encode(asked.batch)
        try:
            return asked.pick_R, *_ranks(scorer, query, asked, asks, settings, with_lists=with_lists)
        except NanScoreError as error:
            raise _nan_error(scorer, dataset, int(asked.batch.user_B[error.row])) from error

    for pick_R, rank_R, top in side_by_side(rank, all_asked) if may_share(scorer) else map(rank, all_asked):
        ranks.append((pick_R, rank_R.numpy()))
        if top is not None:
            item_RK = top.item_BK.cpu().numpy()
            for k, shown_I in shown.items():
                shown_I += np.bincount(item_RK[:, :k].ravel(), minlength=len(shown_I))
    for shown_I in shown.values():
        shown_I[0] = 0  # PAD fills lists that end early
    rank_E = np.empty(sum(len(pick_R) for pick_R, _ in ranks))
    for pick_R, found_R in ranks:
        rank_E[pick_R] = found_R
    return rank_E, shown


def _aside(asked: Asked, settings: EvaluationConfig, asks: Questions) -> Aside:
    nothing = Pairs.of([])
    excluded = asked.seen if settings.seen == "remove" else nothing
    zeroed = asked.seen if settings.seen == "zero" else nothing
    allowed = None if settings.candidates == "all" else torch.from_numpy(asks.is_candidate_I)
    return Aside(excluded, zeroed, allowed)


def _ranks(
    scorer: Scorer, query: Any, asked: Asked, asks: Questions, settings: EvaluationConfig, *, with_lists: bool
) -> tuple[torch.Tensor, TopK | None]:
    """Ranks of one batch, and its lists where they are wanted."""
    ties, block, k = settings.ties, settings.block, settings.k[-1]
    if asks.item_EP is None:
        aside = _aside(asked, settings, asks)
        if with_lists:
            return ranks_and_lists(scorer, query, asked.target_R, k, aside, ties=ties, block=block)
        return target_ranks(scorer, query, asked.target_R, aside, ties=ties, block=block), None
    pool_RP = torch.from_numpy(asks.item_EP[asked.pick_R])
    rank_R = pool_ranks(scorer, query, asked.target_R.cpu(), pool_RP, ties=ties, block=block or BLOCK)
    rank_R[torch.from_numpy(~asks.is_candidate_I[asked.target_R.cpu().numpy()])] = torch.inf
    return rank_R, None


def _candidates(dataset: Dataset, rule: Candidates) -> NDArray[np.bool_]:
    is_candidate_I = np.ones(dataset.n_items + 2, dtype=np.bool_)
    if rule == "train":
        is_candidate_I = dataset.train_count_I > 0
    is_candidate_I[[0, -1]] = False
    return is_candidate_I


def _variety(shown: Shown, dataset: Dataset, is_candidate_I: NDArray[np.bool_]) -> dict[str, float]:
    values = {}
    count_I, n_candidates = dataset.train_count_I, int(is_candidate_I.sum())
    for k, shown_I in shown.items():
        values[f"coverage@{k}"] = metrics.coverage(shown_I, n_candidates)
        values[f"gini@{k}"] = metrics.gini(shown_I, is_candidate_I)
        values[f"mean_popularity@{k}"] = metrics.mean_popularity(shown_I, count_I)
        values[f"popularity_bias@{k}"] = metrics.popularity_bias(shown_I, count_I, is_candidate_I)
    return values


def _groups(
    rank_E: NDArray[np.float64], dataset: Dataset, events: Events, ks: tuple[int, ...]
) -> dict[str, dict[str, dict[str, Any]]]:
    count_E = dataset.train_count_I[events.target_E]
    by_key = {
        "history": _buckets(events.length_E, HISTORY_EDGES),
        "popularity": _buckets(count_E, POPULARITY_EDGES),
        "item": {"new": count_E == 0, "known": count_E > 0},
    }
    return {
        key: {
            name: {"events": int(is_in_E.sum()), "metrics": metrics.accuracy(rank_E[is_in_E], ks)}
            for name, is_in_E in groups.items()
            if is_in_E.any()
        }
        for key, groups in by_key.items()
    }


def _buckets(value_E: NDArray[np.int64], edges: tuple[int, ...]) -> dict[str, NDArray[np.bool_]]:
    """Events whose value lies from each edge to below the next, by a name such as "5-9" or "50+"."""
    found = {}
    for low, high in pairwise(edges):
        name = str(low) if high == low + 1 else f"{low}-{high - 1}"
        found[name] = (value_E >= low) & (value_E < high)
    return found | {f"{edges[-1]}+": value_E >= edges[-1]}


def _nan_error(scorer: Scorer, dataset: Dataset, user: int) -> RunError:
    of = scorer.model if isinstance(scorer, ModelScorer) else scorer
    return RunError(
        f"{type(of).__name__} gives NaN scores for user {dataset.users.id(user)!r}; a model that has "
        "diverged cannot be ranked: train again with a lower train.lr or with train.clip_norm"
    )
