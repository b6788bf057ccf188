"""Why these items: which language model, which of its tokens, and which items of the history.

Dimension key: K recommended items, H items of the history, J item indexes, one a recommended item.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lexrec.data.vocabulary import Id
from lexrec.errors import ConfigError
from lexrec.item_encoders.base import ExpertView
from lexrec.serving.recommender import Recommender
from lexrec.serving.scorer_ranker import ScorerRanker
from lexrec.tokens.table import TokenTable


class Token(NamedTuple):
    """A token that an expert chose."""

    text: str
    weight: float
    """Share of the expert's attention, averaged over heads."""


class Expert(NamedTuple):
    """What one language model's table contributed at the newest item of the history."""

    table: str
    gate: float
    """Share of the gate; those of all experts sum to 1."""
    tokens: list[Token]
    """The most attended first."""


class Explanation(NamedTuple):
    """A recommendation and where it comes from."""

    item_ids: list[Id]
    scores: list[float]
    history: list[Id]
    """The items that the model reads, oldest first."""
    influence: list[list[float]]
    """influence[h][j]: score of recommended item j with the whole history, less its score without history
    item h. Above zero where the history item speaks for the recommended one."""
    experts: list[Expert]
    """Empty for a model without token tables."""
    unknown: list[Id]
    by_popularity: bool
    """True where no item of the history was known; then there is nothing more to explain."""

    def json(self) -> dict[str, Any]:
        """What `lexrec explain --json` prints."""
        pairs = zip(self.item_ids, self.scores, strict=True)
        rows = zip(self.history, self.influence, strict=True)
        tree: dict[str, Any] = {
            "items": [{"item_id": id_, "score": score} for id_, score in pairs],
            "influence": [{"item_id": id_, "on": row} for id_, row in rows],
            "experts": [
                {"table": table, "gate": gate, "tokens": [token._asdict() for token in tokens]}
                for table, gate, tokens in self.experts
            ],
            "unknown": self.unknown,
        }
        return tree | ({"fallback": "popularity"} if self.by_popularity else {})


def explain(recommender: Recommender, history: Sequence[Id], k: int = 3) -> Explanation:
    """Recommend for one history and say why.

    Influence is measured by leaving out one item of the history at a time. A history longer than the model
    reads is explained by its newest items: without one of them, the next older one moves in.

    Args:
        recommender: of a run.
        history: external item ids, oldest first.
        k: how many recommended items to explain.

    Raises:
        DataError: k is below 1.
        TokensError: a token table, wanted for the tokens' text, cannot be had any more.
    """
    ranker = recommender.ranker
    if not isinstance(ranker, ScorerRanker):
        raise ConfigError(f"{type(ranker).__name__} ranks only; explain needs the run itself")
    found = recommender.recommend([history], k)
    ids, unknown, by_popularity = found.item_ids[0], found.unknown[0], found.by_popularity[0]
    if by_popularity:
        return Explanation(ids, found.scores[0], [], [], [], unknown, by_popularity)
    known, _ = recommender.items.split_known(history)
    read = known[-ranker.scorer.max_len :]
    influence_HK = _influence(ranker, known, len(read), [recommender.items.index(id_) for id_ in ids])
    experts = _experts(ranker.inspect(known), recommender)
    read_ids = recommender.items.take(np.array(read))
    return Explanation(ids, found.scores[0], read_ids, influence_HK.tolist(), experts, unknown, by_popularity)


def _influence(ranker: ScorerRanker, known: list[int], n_read: int, items: list[int]) -> NDArray[np.float64]:
    """Change of each item's score by each of the newest `n_read` items of the history, [H, K]."""
    places = range(len(known) - n_read, len(known))
    without = [known[:place] + known[place + 1 :] for place in places]
    item_J = np.array(items, dtype=np.int64)
    # Among only these items every one of them is listed, with its score.
    item_BK, score_BK = ranker.rank([known, *without], len(items), allow=np.sort(item_J))
    score_of = [dict(zip(row, scores, strict=True)) for row, scores in zip(item_BK, score_BK, strict=True)]
    score_BJ = np.array([[row[item] for item in items] for row in score_of], dtype=np.float64)
    influence_HK: NDArray[np.float64] = score_BJ[0] - score_BJ[1:]
    return influence_HK


def _experts(views: list[ExpertView], recommender: Recommender) -> list[Expert]:
    if not views:
        return []
    # Experts come in the order of their tables; behind them may be tables that only text is read through.
    return [_expert(view, table) for view, table in zip(views, recommender.run.tables(), strict=False)]


def _expert(view: ExpertView, table: TokenTable) -> Expert:
    weight_K, token_K = view.weight_BK[0].tolist(), view.token_BK[0].tolist()
    pairs = sorted(zip(weight_K, token_K, strict=True), reverse=True)
    tokens = [Token(table.text(token), weight) for weight, token in pairs]
    # What follows a + is what was done to the table before training.
    return Expert(view.table.partition("+")[0], float(view.gate_B[0]), tokens)
