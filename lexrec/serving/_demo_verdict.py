"""Did the tokens help? What one run of each model can say about that, and what it cannot.

Dimension key: E events, one a user; S draws of users.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lexrec.evaluation.metrics import per_event

METRIC = "ndcg@10"
_DRAWS = 10_000
_BLOCK = 500
"""Draws made at once: memory stays at some megabytes."""


class Difference(NamedTuple):
    """Mean difference of a metric between two models on the same events."""

    mean: float
    low: float
    high: float
    """Where 95 % of the differences lie when the same number of users is drawn again and again."""

    @property
    def sign(self) -> int:
        """1 or -1 where the interval excludes zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def paired_difference(
    rank_E: NDArray[np.float32], other_E: NDArray[np.float32], metric: str = METRIC, seed: int = 0
) -> Difference:
    """How much better the first ranks are, with a percentile bootstrap over users.

    Args:
        rank_E: ranks of the true items under one model.
        other_E: ranks of the same events under the other.
        metric: an accuracy metric such as ndcg@10.
        seed: of the draws, so that one result has one interval.
    """
    gain_E = per_event(rank_E, metric) - per_event(other_E, metric)
    generator = np.random.default_rng(seed)
    n_events = len(gain_E)
    means = [
        gain_E[generator.integers(0, n_events, (_BLOCK, n_events))].mean(axis=1)
        for _ in range(_DRAWS // _BLOCK)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Difference(float(gain_E.mean()), float(low), float(high))


def verdict(over_plain: Difference, over_random: Difference) -> str:
    """One sentence on whether the tokens helped, as far as these users can tell."""
    plain, random = over_plain.sign, over_random.sign
    if plain > 0 and random > 0:
        return "The tokens helped in this run: more than no tokens, and more than random ones."
    if plain > 0 and random < 0:
        return "The plug-in helped in this run, but random tokens helped more: not by what words mean."
    if plain > 0:
        return (
            "The plug-in helped in this run, but random tokens did about as well: "
            "nothing shows that what the words mean had a part in it."
        )
    if plain < 0:
        return "The tokens did harm in this run: the plain model is better."
    if random > 0:
        return "Real tokens beat random ones in this run, but no gain over the plain model shows."
    if random < 0:
        return "No gain over the plain model shows in this run, and random tokens did better than real ones."
    return (
        "Nothing shows that the tokens helped in this run: what they differ by, from no tokens and from "
        "random ones, may be chance."
    )
