"""A ranker over any `Scorer`: a trained model or a counted baseline, in torch.

Dimension key: B histories, R histories of one batch, K list length, S pairs set aside, I item indexes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lexrec.data.batch import Batch, collate
from lexrec.evaluation.cores import one_thread, side_by_side
from lexrec.evaluation.events import Pairs
from lexrec.evaluation.ranks import Aside, TopK, top_k
from lexrec.evaluation.scorer import ModelScorer, Scorer, may_share
from lexrec.item_encoders.base import ExpertView
from lexrec.serving.ranker import Items, Ranked

_BATCH = 256
"""Histories ranked at once."""
_FEWEST = 16
"""Histories of a batch that is worth a core of its own."""
_LIST_COST = 8
"""What scoring the catalogue and listing the best costs, in items that are encoded."""
_KEPT_MASKS = 8
_ALONE = 2**18
"""Scores up to which one thread does the work: handing it to others costs more than they save, and where
they are busy with something else, as in a server, waiting for them costs a hundred times more."""

T = TypeVar("T")


class ScorerRanker:
    """Fits `Ranker`. What does not depend on the history is made once and kept."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.n_items = scorer.n_items
        # Shops ask with the same allow list again and again.
        self._mask = lru_cache(_KEPT_MASKS)(self._make_mask)

    @torch.inference_mode()
    def rank(
        self,
        histories: Sequence[Items],
        k: int,
        exclude: Sequence[Items] | None = None,
        allow: NDArray[np.int64] | None = None,
    ) -> Ranked:
        k = min(k, self.n_items)
        item_BK = np.empty((len(histories), k), dtype=np.int64)
        score_BK = np.empty((len(histories), k), dtype=np.float32)
        is_allowed_I = None if allow is None else self._mask(allow.tobytes())
        given = [np.asarray(history, dtype=np.int64) for history in histories]
        if exclude is not None:
            exclude = given if exclude is histories else [np.asarray(one, dtype=np.int64) for one in exclude]

        def best_of(pick_R: NDArray[np.int64]) -> tuple[NDArray[np.int64], TopK]:
            query = self.scorer.encode(self._batch([given[i] for i in pick_R]))
            hidden = None if exclude is None else _pairs([exclude[i] for i in pick_R])
            return pick_R, top_k(self.scorer, query, k, Aside.of(hidden, is_allowed_I))

        for pick_R, best in self._each(best_of, given):
            item_BK[pick_R], score_BK[pick_R] = best.item_BK.cpu().numpy(), best.score_BK.cpu().numpy()
        return Ranked(item_BK, score_BK)

    def inspect(self, history: Items) -> list[ExpertView]:
        """What each token expert chose for one history; empty where the model has none."""
        if not isinstance(self.scorer, ModelScorer) or len(history) == 0:
            return []
        return self.scorer.model.items.inspect(self._batch([history]).to(self.scorer.device))

    def _each(self, work: Callable[[NDArray[np.int64]], T], histories: Sequence[Items]) -> Iterator[T]:
        """`work` of the places of the histories of each batch; short ones go together, in short rows."""
        n = len(histories)
        length_B = np.array([len(history) for history in histories], dtype=np.int64)
        order_B = np.argsort(length_B, kind="stable") if self.scorer.trims else np.arange(n)
        is_little = n * self.n_items <= _ALONE
        if not is_little and may_share(self.scorer):
            # The longest first: the last batches, which cores wait for, are short.
            yield from side_by_side(work, _shared(order_B[::-1], np.minimum(length_B, self.scorer.max_len)))
            return
        with one_thread() if is_little else nullcontext():
            yield from map(work, (order_B[first : first + _BATCH] for first in range(0, n, _BATCH)))

    def _batch(self, histories: list[Items]) -> Batch:
        longest = max(1, *(len(history) for history in histories))
        length = min(longest, self.scorer.max_len) if self.scorer.trims else self.scorer.max_len
        return collate(histories, length)  # type: ignore[arg-type]

    def _make_mask(self, allow: bytes) -> Tensor:
        is_allowed_I = np.zeros(self.n_items + 2, dtype=np.bool_)
        is_allowed_I[np.frombuffer(allow, dtype=np.int64)] = True
        return torch.from_numpy(is_allowed_I)


def _shared(order_B: NDArray[np.int64], length_B: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Batches of at most `_BATCH` histories, each as much work as the others, at least one for each core."""
    cost_B = (length_B[order_B] + _LIST_COST).cumsum()
    n = max(-(-len(order_B) // _BATCH), min(torch.get_num_threads(), len(order_B) // _FEWEST), 1)
    while True:
        parts = np.split(order_B, np.searchsorted(cost_B, cost_B[-1] * np.arange(1, n) / n))
        if max(map(len, parts)) <= _BATCH:
            return [part for part in parts if len(part)]
        n += 1


def _pairs(items_R: list[Items]) -> Pairs:
    length_R = [len(items) for items in items_R]
    row_S = np.repeat(np.arange(len(items_R)), length_R)
    item_S = np.concatenate([np.asarray(items, dtype=np.int64) for items in items_R])
    return Pairs(torch.from_numpy(row_S), torch.from_numpy(item_S))
