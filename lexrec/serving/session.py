"""A history that grows while its user is here: one more event, and the next list.

Where a model is incremental an event costs one position; elsewhere its window is read again. Either way
the list is the one that `Recommender.recommend` makes of the whole history.
"""

from collections.abc import Sequence

import torch

from lexrec.data.batch import PAD, collate
from lexrec.data.vocabulary import Id
from lexrec.errors import ConfigError, DataError
from lexrec.evaluation.events import Pairs
from lexrec.evaluation.ranks import Aside, top_k
from lexrec.evaluation.scorer import ModelScorer
from lexrec.models.base import State
from lexrec.serving.recommender import Recommender
from lexrec.serving.scorer_ranker import ScorerRanker


class Session:
    """One user's visit to a trained model.

    Args:
        recommender: what recommends.
        history: external item ids so far, oldest first; unknown ones are left out and kept in `unknown`.

    Raises:
        ConfigError: a counted baseline, which has no state to carry on.
    """

    def __init__(self, recommender: Recommender, history: Sequence[Id] = ()) -> None:
        ranker = recommender.ranker
        if not isinstance(ranker, ScorerRanker) or not isinstance(ranker.scorer, ModelScorer):
            raise ConfigError("a session needs a trained model; for a baseline use Recommender.recommend")
        self._recommender, self._scorer = recommender, ranker.scorer
        self._items, self.unknown = recommender.items.split_known(history)
        batch = collate([self._items], self._scorer.max_len).to(self._scorer.device)
        with torch.inference_mode():
            self._state: State = self._scorer.model.begin(batch)

    def add(self, item_id: Id) -> bool:
        """One more event; False, and nothing changes, if the item is unknown."""
        item = self._recommender.items.find(item_id)
        if item is None:
            self.unknown.append(item_id)
            return False
        self._items.append(item)
        with torch.inference_mode():
            item_B = torch.tensor([item], device=self._scorer.device)
            self._state = self._scorer.model.step(self._state, item_B)
        return True

    def recommend(self, k: int = 10, *, keep_seen: bool = False) -> list[tuple[Id, float]]:
        """The k best items now with their scores, best first; fewer where fewer are left.

        Raises:
            DataError: k is below 1.
        """
        if k < 1:
            raise DataError(f"k is at least 1, got {k}")
        if not self._items:
            found = self._recommender.recommend([[]], k)
            return list(zip(found.item_ids[0], found.scores[0], strict=True))
        seen = None if keep_seen else Pairs.of([self._items])
        k = min(k, self._scorer.n_items)
        best = top_k(self._scorer, self._scorer.query(self._state.hidden_BD), k, Aside.of(seen))
        rows = zip(best.item_BK[0].tolist(), best.score_BK[0].tolist(), strict=True)
        return [(self._recommender.items.id(item), score) for item, score in rows if item != PAD]
