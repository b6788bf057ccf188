"""Metrics: of accuracy as functions of a rank, of variety as functions of what the lists showed.

One event has one relevant item, so every accuracy metric is a function of the rank of that item alone
and is averaged over events. A rank may be half a place (ties) or inf (a target that cannot be shown);
"in the first k" is rank <= k, and the formulas take the rank as it is.

    hr@k      1 if rank <= k, else 0
    recall@k  share of the relevant items in the first k; with one a event, the same number as hr@k
    ndcg@k    1 / log2(1 + rank) if rank <= k, else 0; the ideal DCG is 1
              (Jarvelin & Kekalainen 2002, doi.org/10.1145/582415.582418)
    mrr@k     1 / rank if rank <= k, else 0

Dimension key: E events, I item indexes 0..n + 1.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexrec.errors import ConfigError

Floats = NDArray[np.float64]
_NAME = re.compile(r"([a-z]+)@([1-9][0-9]*)")


def hit_rate(rank_E: Floats, k: int) -> Floats:
    """1 where the target is among the first k."""
    return np.asarray(rank_E <= k, dtype=np.float64)


def recall(rank_E: Floats, k: int) -> Floats:
    """Share of an event's one relevant item among the first k: equal to `hit_rate`."""
    return hit_rate(rank_E, k)


def ndcg(rank_E: Floats, k: int) -> Floats:
    """Discounted gain of the target, with the ideal being rank 1."""
    return hit_rate(rank_E, k) / np.log2(1.0 + rank_E)


def reciprocal_rank(rank_E: Floats, k: int) -> Floats:
    """Inverse of the rank, 0 beyond k."""
    return hit_rate(rank_E, k) / rank_E


ACCURACY: dict[str, Callable[[Floats, int], Floats]] = {
    "hr": hit_rate,
    "ndcg": ndcg,
    "mrr": reciprocal_rank,
    "recall": recall,
}


def accuracy(rank_E: NDArray[Any], ks: Iterable[int]) -> dict[str, float]:
    """Every accuracy metric at every k, averaged over events: {"hr@10": ...}."""
    rank_E = np.asarray(rank_E, dtype=np.float64)
    return {f"{name}@{k}": float(of(rank_E, k).mean()) for k in ks for name, of in ACCURACY.items()}


def per_event(rank_E: NDArray[Any], metric: str) -> Floats:
    """One value an event of a metric named like "ndcg@10".

    Raises:
        ConfigError: no such metric.
    """
    parts = _NAME.fullmatch(metric)
    if parts is None or parts[1] not in ACCURACY:
        raise ConfigError(f"no metric {metric!r}; known: {', '.join(ACCURACY)}, each with a k as in ndcg@10")
    return ACCURACY[parts[1]](np.asarray(rank_E, dtype=np.float64), int(parts[2]))


def coverage(shown_I: NDArray[Any], n_candidates: int) -> float:
    """Share of the candidate items that at least one list showed."""
    return float(np.count_nonzero(shown_I) / n_candidates)


def mean_popularity(shown_I: NDArray[Any], train_count_I: NDArray[Any]) -> float:
    """Mean number of training events of the items shown.

    The average recommendation popularity of Yin et al. 2012 (arXiv:1205.6700) and Abdollahpouri et al. 2019
    (arXiv:1901.07555), with every place of every list weighing the same.
    """
    return _mean_over_places(shown_I, train_count_I)


def popularity_bias(
    shown_I: NDArray[Any], train_count_I: NDArray[Any], is_candidate_I: NDArray[np.bool_]
) -> float:
    """Mean popularity percentile of the items shown: .5 for random lists, near 1 for the most popular items.

    An item's percentile is the share of candidates with fewer training events, equals counted half.
    """
    candidates = np.sort(train_count_I[is_candidate_I])
    below_I = np.searchsorted(candidates, train_count_I, side="left")
    not_above_I = np.searchsorted(candidates, train_count_I, side="right")
    return _mean_over_places(shown_I, (below_I + not_above_I) / (2 * len(candidates)))


def gini(shown_I: NDArray[Any], is_candidate_I: NDArray[np.bool_]) -> float:
    """Inequality of exposure among candidates: 0 if all are shown equally often, near 1 if one takes all."""
    shown_C = np.sort(shown_I[is_candidate_I])
    n, total = len(shown_C), shown_C.sum()
    if total == 0:
        return 0.0
    weight_C = 2 * np.arange(1, n + 1) - n - 1
    return float((weight_C * shown_C).sum() / (n * total))


def _mean_over_places(shown_I: NDArray[Any], value_I: NDArray[Any]) -> float:
    places = shown_I.sum()
    return float((shown_I * value_I).sum() / places) if places else 0.0
