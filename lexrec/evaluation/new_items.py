"""Items without a training event: rows predicted from their texts, measured beside what needs no training.

Each event whose item was never trained is ranked twice: among all such items, and among the whole catalogue.

Dimension key: E events, B rows, L positions, I item indexes 0..n + 1, J items of one block, W width of texts.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lexrec.data.batch import Batch
from lexrec.data.dataset import Dataset
from lexrec.errors import ConfigError, DataError
from lexrec.evaluation import metrics
from lexrec.evaluation.evaluate import EvaluationConfig, protocol_of, questions
from lexrec.evaluation.events import Events, Pairs, Split, batches
from lexrec.evaluation.protocol import Protocol
from lexrec.evaluation.ranks import Aside, target_ranks
from lexrec.evaluation.scorer import ModelScorer, Scorer
from lexrec.kernels.products import ScoredRows
from lexrec.lm.prompt import read_texts
from lexrec.lm.row_map import Predicted, predict_rows, text_features
from lexrec.models.idiomoe import Idiomoe

if TYPE_CHECKING:
    import pyarrow as pa

_TEXT_LEN = 32
"""Tokens of each column's text that a row is predicted from."""
AMONG = ("new", "all")
"""What competes: items without a training event, or every item."""


class NewItems(NamedTuple):
    """What was found for items that were never trained."""

    protocol: Protocol
    n_new: int
    """Items without a training event."""
    r2: float
    """Of the map from texts to rows, on items held out from it."""
    ways: dict[str, dict[str, dict[str, float]]]
    """ways[name][among]: {"hr@10": ...}."""

    def json(self) -> dict[str, Any]:
        """What `lexrec evaluate --new-items --json` prints."""
        protocol = {**self.protocol.model_dump(mode="json"), "new_items": self.n_new}
        return {"protocol": protocol, "r2": self.r2, "ways": self.ways}


def features(model: Idiomoe, item_table: "pa.Table") -> Tensor:
    """`text_features` of all items, of every column of their table but the id, [I, W]."""
    columns = [name for name in item_table.column_names if name != "item_id"]
    texts = read_texts(item_table, columns, _TEXT_LEN, model.lm.tokenizer)
    table_VW = model.lm.causal.get_input_embeddings().weight.detach().cpu()
    return text_features(texts, table_VW)


def rows_from_texts(model: Idiomoe, item_table: "pa.Table", count_I: NDArray[np.int64]) -> Predicted:
    """Rows of all items of a table, from a map learned on those that were trained.

    Args:
        model: whose rows they are to be.
        item_table: the model's own items, and behind them whatever else.
        count_I: training events of the model's own item indexes.
    """
    known_N = torch.from_numpy(np.flatnonzero(count_I))
    row_ID = model.scoring().block(0, model.items.n_items + 1).detach().float().cpu()
    count_N = torch.from_numpy(count_I)[known_N]
    return predict_rows(features(model, item_table), row_ID[known_N], known_N, count_N)


@torch.inference_mode()
def evaluate_new_items(
    scorer: Scorer, dataset: Dataset, settings: EvaluationConfig, split: Split = "test"
) -> NewItems:
    """Rank the events of a split whose item has no training event.

    Args:
        scorer: of a model over a language model.
        dataset: what it was trained on, with item titles.
        settings: k, seen, ties and sample.
        split: the part to measure.

    Raises:
        ConfigError: the model has no language model.
        DataError: no event of the split has such an item.
    """
    if not isinstance(scorer, ModelScorer) or not isinstance(scorer.model, Idiomoe):
        raise ConfigError("rows are predicted by a model over a language model, such as recipe idiomoe")
    count_I = dataset.train_count_I
    asks = questions(dataset, split, settings)
    is_new_I = count_I == 0
    is_new_I[[0, -1]] = False
    is_asked_E = is_new_I[asks.events.target_E]
    if not is_asked_E.any():
        raise DataError(
            f"no {split} event has an item without a training event; hold some out "
            "(lexrec.data.held_items.hold_out_items) and train on what is left"
        )
    asks = asks._replace(events=Events(*(v[is_asked_E] for v in vars(asks.events).values())))
    found = rows_from_texts(scorer.model, dataset.item_table, count_I)
    row_ID = torch.cat([torch.zeros_like(scorer.rows.row_ED[:1]), scorer.rows.row_ED])
    new_I = torch.from_numpy(np.flatnonzero(is_new_I))
    row_ID[new_I] = found.row_ID[new_I].to(row_ID)
    scorers: dict[str, Scorer] = {
        "rows from texts": _Rows(scorer, row_ID),
        "rows as they started": scorer,
        "similar texts": _Similar(features(scorer.model, dataset.item_table), scorer.max_len),
    }
    candidates = {"new": is_new_I, "all": asks.is_candidate_I}
    ways = {
        name: {
            among: metrics.accuracy(_ranks(one, dataset, asks.events, allowed, settings), settings.k)
            for among, allowed in candidates.items()
        }
        for name, one in scorers.items()
    }
    n_new, n_all = int(is_new_I.sum()), int(asks.is_candidate_I.sum())
    # No item of these was ever taken: popularity ties them all, behind every other one.
    ways["popularity"] = {
        "new": _by_chance(0, n_new, settings.k),
        "all": _by_chance(n_all - n_new, n_all, settings.k),
    }
    ways["random"] = {"new": _by_chance(0, n_new, settings.k), "all": _by_chance(0, n_all, settings.k)}
    return NewItems(protocol_of(dataset, split, settings, asks), n_new, found.r2, ways)


def _by_chance(first: int, last: int, ks: tuple[int, ...]) -> dict[str, float]:
    """The mean of metrics over all orders of items first + 1..last of a list."""
    return metrics.accuracy(np.arange(first + 1, last + 1), ks)


def _ranks(
    scorer: Scorer, dataset: Dataset, events: Events, allowed_I: NDArray[np.bool_], settings: EvaluationConfig
) -> NDArray[np.float64]:
    ranks = []
    for part in batches(dataset, events, settings.batch_size, scorer.max_len, trims=scorer.trims):
        seen = part.seen if settings.seen == "remove" else Pairs.of([])
        aside = Aside.of(seen, torch.from_numpy(allowed_I))
        query = scorer.encode(part.batch)
        ranks.append(target_ranks(scorer, query, part.target_R, aside, ties=settings.ties).numpy())
    return np.concatenate(ranks)


class _Rows(ModelScorer):
    """A model's scorer over other rows, [I - 1, D]: PAD's, then those of the items."""

    def __init__(self, plain: ModelScorer, row_ID: Tensor) -> None:
        self.__dict__.update(plain.__dict__)
        self.rows = ScoredRows(row_ID[1:])


class _Similar:
    """Cosine of an item's text and the mean of the history's."""

    trims = True

    def __init__(self, x_IW: Tensor, max_len: int) -> None:
        x_IW = x_IW - x_IW[x_IW.any(1)].mean(0)
        self.x_IW = F.normalize(x_IW, dim=1)
        self.x_IW[[0, -1]] = 0
        self.n_items, self.max_len = len(x_IW) - 2, max_len

    def encode(self, batch: Batch) -> Tensor:
        return F.normalize(self.x_IW[batch.item_BL.cpu()].sum(1), dim=1)

    def score(self, query: Tensor, first: int, last: int) -> Tensor:
        return query @ self.x_IW[first:last].T
