"""How well questions are answered: each held-out event is asked for by a value of its item.

"I am looking for nail polish", after the user's history; right is the item that was taken next, out of the
whole catalogue. The honest opponent reads no words: a next-item model whose list is filtered by that value.

Dimension key: E events, R events of one batch, I item indexes 0..n + 1, K list length.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lexrec.data.batch import PAD
from lexrec.data.dataset import Dataset
from lexrec.errors import ConfigError
from lexrec.evaluation import metrics
from lexrec.evaluation.evaluate import EvaluationConfig, protocol_of, questions
from lexrec.evaluation.events import Asked as AskedBatch
from lexrec.evaluation.events import Events, Pairs, Split, batches
from lexrec.evaluation.protocol import Protocol
from lexrec.evaluation.ranks import Aside, ranks_and_lists
from lexrec.evaluation.scorer import ModelScorer, Scorer
from lexrec.lm.questions import WORDINGS, Text, item_labels
from lexrec.models.idiomoe import Idiomoe

TRAINED, NEW = "question", "question, new wording"


class Way(NamedTuple):
    """A way to answer."""

    scorer: Scorer
    wording: int | None
    """Which of WORDINGS is asked; None: the history alone is read."""
    filters: bool
    """Only items that have the value compete."""


class Answers(NamedTuple):
    """What each way of answering found."""

    protocol: Protocol
    column: str
    n_values: int
    n_without: int
    """Events of the split whose target has no value: they are not asked."""
    ways: dict[str, dict[str, float]]
    """By name: hr@k, ndcg@k ..., and fits@k: of the first k items shown, the share that has the value."""

    def json(self) -> dict[str, Any]:
        """What `lexrec evaluate --queries --json` prints."""
        asked = {
            "column": self.column,
            "values": self.n_values,
            "events_without_value": self.n_without,
            "wordings": {TRAINED: WORDINGS[0], NEW: WORDINGS[-1]},
        }
        return {
            "protocol": {**self.protocol.model_dump(mode="json"), "queries": asked},
            "ways": self.ways,
        }


def require_asked(scorer: Scorer) -> tuple[ModelScorer, Idiomoe]:
    """A scorer whose model was trained on questions.

    Raises:
        ConfigError: it was not.
    """
    model = scorer.model if isinstance(scorer, ModelScorer) else scorer
    if not isinstance(scorer, ModelScorer) or not isinstance(model, Idiomoe) or model.questions is None:
        raise ConfigError(
            f"{type(model).__name__} was not trained on questions; train one with recipe idiomoe_ask"
        )
    return scorer, model


def ways_of(asked: Scorer, others: Mapping[str, Scorer]) -> dict[str, Way]:
    """What is compared: a model that is asked, with and without words and filter, and models that are not.

    Raises:
        ConfigError: the first one was not trained on questions.
    """
    require_asked(asked)
    ways = {
        TRAINED: Way(asked, 0, False),
        NEW: Way(asked, len(WORDINGS) - 1, False),
        "question and filter": Way(asked, 0, True),
        "no question": Way(asked, None, False),
        "no question, filter": Way(asked, None, True),
    }
    for name, scorer in others.items():
        ways |= {name: Way(scorer, None, False), f"{name}, filter": Way(scorer, None, True)}
    return ways


@torch.inference_mode()
def evaluate_queries(
    ways: Mapping[str, Way], dataset: Dataset, column: str, settings: EvaluationConfig, split: Split = "test"
) -> Answers:
    """Ask for every event of a split whose target has a value in `column`.

    Args:
        ways: of answering, by name.
        dataset: what all were trained on.
        column: of its item table; of a path such as A > B > C its end is asked for.
        settings: k, seen, ties and sample; the whole catalogue competes.
        split: the part to measure.

    Raises:
        ConfigError: there is no such column, or settings have a pool.
        DataError: the data set has no such events, or none of their targets has a value.
    """
    if settings.pool is not None or settings.seen == "zero":
        raise ConfigError("questions are answered from the whole catalogue; leave out pool and seen=zero")
    label_I = np.array(["", *item_labels(dataset.item_table, column), ""])
    asks = questions(dataset, split, settings)
    label_E = label_I[asks.events.target_E]
    has_label_E = label_E != ""
    if not has_label_E.any():
        raise ConfigError(f"no {split} event's item has a value in {column}; there is nothing to ask for")
    labels = sorted(set(label_E[has_label_E].tolist()))
    found: dict[str, list[_Found]] = {name: [] for name in ways}
    for label in labels:
        asked = _Asked(_some(asks.events, label_E == label), label, label_I == label, asks.is_candidate_I)
        for name, one in _answers(ways, asked, dataset, settings):
            found[name].append(one)
    asks = asks._replace(events=_some(asks.events, has_label_E))
    protocol = protocol_of(dataset, split, settings, asks)
    values = {name: _values(found[name], settings.k) for name in ways}
    return Answers(protocol, column, len(labels), int((~has_label_E).sum()), values)


class _Asked(NamedTuple):
    """Events that are asked for by one value."""

    events: Events
    label: str
    has_label_I: NDArray[np.bool_]
    is_candidate_I: NDArray[np.bool_]


class _Found(NamedTuple):
    """Ranks of some events, and which of the items shown have the value."""

    rank_R: NDArray[np.float64]
    fits_RK: NDArray[np.bool_]
    is_shown_RK: NDArray[np.bool_]


def _answers(
    ways: Mapping[str, Way], asked: _Asked, dataset: Dataset, settings: EvaluationConfig
) -> Iterator[tuple[str, _Found]]:
    """What each way finds; what is read is read once for ways that differ in the filter alone."""
    reads = dict.fromkeys((way.scorer, way.wording) for way in ways.values())
    for scorer, wording in reads:
        those = {name: way.filters for name, way in ways.items() if way[:2] == (scorer, wording)}
        size, longest = settings.batch_size, scorer.max_len
        for part in batches(dataset, asked.events, size, longest, trims=scorer.trims):
            query = _query(scorer, wording, part, asked.label)
            for name, filters in those.items():
                yield name, _ranked(scorer, query, part, asked, settings, filters=filters)


def _query(scorer: Scorer, wording: int | None, part: AskedBatch, label: str) -> Any:
    if wording is None:
        return scorer.encode(part.batch)
    scorer, model = require_asked(scorer)
    texts = [WORDINGS[wording].format(label)] * len(part.target_R)
    text = Text.of(texts, model.lm.tokenizer).to(scorer.device)
    return scorer.query(model.answer(part.batch.to(scorer.device), text))


def _ranked(
    scorer: Scorer, query: Any, part: AskedBatch, asked: _Asked, settings: EvaluationConfig, *, filters: bool
) -> _Found:
    is_allowed_I = asked.is_candidate_I & asked.has_label_I if filters else asked.is_candidate_I
    seen = part.seen if settings.seen == "remove" else Pairs.of([])
    aside = Aside.of(seen, torch.from_numpy(is_allowed_I))
    rank_R, top = ranks_and_lists(scorer, query, part.target_R, settings.k[-1], aside, ties=settings.ties)
    item_RK = top.item_BK.cpu().numpy()
    return _Found(rank_R.numpy(), asked.has_label_I[item_RK], item_RK != PAD)


def _values(found: list[_Found], ks: tuple[int, ...]) -> dict[str, float]:
    rank_E, fits_EK, is_shown_EK = (np.concatenate(column) for column in zip(*found, strict=True))
    values = metrics.accuracy(rank_E, ks)
    for k in ks:
        n_shown = max(int(is_shown_EK[:, :k].sum()), 1)
        values[f"fits@{k}"] = int((fits_EK & is_shown_EK)[:, :k].sum()) / n_shown
    return values


def _some(events: Events, is_in_E: NDArray[np.bool_]) -> Events:
    return Events(*(values_E[is_in_E] for values_E in vars(events).values()))
