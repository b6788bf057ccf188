"""What a difference between two arms is worth: intervals, a test, an effect size, a correction.

Two things vary that a figure hides: the seed of a run, and which users happened to be in the test part. The
bootstrap resamples both, users jointly for all arms, so that a difference keeps its pairing. Resampling users
alone calls two seeds of one arm different; testing over seeds alone says nothing about other users.

Dimension key: S seeds of an arm, U users, M metrics, R draws of the bootstrap.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lexrec.compare import student

Floats = NDArray[np.float64]

LEVEL = 0.95
"""Share of intervals that hold the truth."""
ALPHA = 1 - LEVEL
"""Share of true null hypotheses that a test rejects."""
POWER = 0.8
"""How surely the least detectable difference would have been found."""
_AT_ONCE = 2**22
"""Draws times users that are held in memory at a time."""


class Welch(NamedTuple):
    """A comparison of two means whose spreads may differ."""

    t: float
    df: float
    p: float
    """Two-sided."""
    least: float
    """The true difference that would have been found with 80 % power at 5 %, in units of the metric."""


def welch(one_S: Sequence[float], two_S: Sequence[float]) -> Welch | None:
    """Test of two means over seeds (Welch 1947, doi.org/10.1093/biomet/34.1-2.28).

    An arm of a single value without spread, as a counted baseline is, can be given as a sequence of one; the
    other is then tested against that number.

    Returns:
        None where neither side has two values, or there is no spread at all: then nothing can be tested.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (one_S, two_S)]
    shares = [(float(side.var(ddof=1)) / len(side), len(side) - 1) for side in sides if len(side) > 1]
    variance = sum(share for share, _ in shares)
    if variance == 0:
        return None
    df = variance**2 / sum(share**2 / free for share, free in shares)
    error = math.sqrt(variance)
    t = float(sides[1].mean() - sides[0].mean()) / error
    least = student.detectable(ALPHA, POWER, df) * error
    return Welch(t, df, student.rejected_share(abs(t), df), least)


def hedges_g(one_S: Sequence[float], two_S: Sequence[float]) -> float | None:
    """Difference of two means in standard deviations between seeds, with Hedges' small-sample correction.

    Source: Hedges 1981, doi.org/10.3102/10769986006002107, whose correction is undefined for fewer than two
    degrees of freedom. None there, and where there is no spread.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (one_S, two_S)]
    free = sum(len(side) - 1 for side in sides)
    squares = sum(float(((side - side.mean()) ** 2).sum()) for side in sides)
    if squares == 0 or free < 2:
        return None
    difference = float(sides[1].mean() - sides[0].mean())
    correction = math.exp(math.lgamma(free / 2) - math.lgamma((free - 1) / 2)) / math.sqrt(free / 2)
    return difference / math.sqrt(squares / free) * correction


def holm(ps: Sequence[float]) -> list[float]:
    """P-values corrected for the size of their family (Holm 1979), in the order given."""
    order = sorted(range(len(ps)), key=ps.__getitem__)
    corrected, largest = [0.0] * len(ps), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, ps[i] * (len(ps) - place)))
        corrected[i] = largest
    return corrected


def bootstrap(
    arms: Sequence[NDArray[np.float32]], n_events_U: NDArray[np.float32], draws: int, seed: int
) -> list[Floats]:
    """Means of every arm under resampled seeds and users.

    Of S seeds S - 1 are drawn, with replacement: only then is the variance that the draws show, in
    expectation, the variance of a mean of S seeds (Rao & Wu 1988, doi.org/10.1080/01621459.1988.10478591);
    with S of few seeds it is too small. A single seed is kept as it is. Each arm draws its own seeds; users
    are drawn once for all. What is particular to a seed and a user is counted more than once (Owen 2007,
    doi.org/10.1214/07-AOAS122), so intervals are rather too wide than too narrow.

    Args:
        arms: one array an arm, [S, M, U]: a metric summed over the events of each user.
        n_events_U: events of each user.
        draws: number of draws, R.
        seed: two calls with one seed give one result, and a further arm does not change those before it.

    Returns:
        One array an arm, [R, M].
    """
    of_users, *of_arms = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(len(arms) + 1)]
    weights = [_seed_weights(rng, len(arm), draws) for rng, arm in zip(of_arms, arms, strict=True)]
    flat = [arm.reshape(-1, arm.shape[-1]).T for arm in arms]
    found = [np.empty((draws, arm.shape[1])) for arm in arms]
    n_users = len(n_events_U)
    step = max(1, _AT_ONCE // n_users)
    for first in range(0, draws, step):
        now = slice(first, min(first + step, draws))
        times_RU = _times_drawn(of_users, now.stop - first, n_users)
        total_R = times_RU @ n_events_U
        for arm, value_UX, weight_RS, found_RM in zip(arms, flat, weights, found, strict=True):
            mean_RSM = (times_RU @ value_UX / total_R[:, None]).reshape(-1, *arm.shape[:2])
            found_RM[now] = np.einsum("rs,rsm->rm", weight_RS[now], mean_RSM)
    return found


def interval(value_R: Floats) -> tuple[float, float]:
    """The middle 95 % of the draws."""
    low, high = np.quantile(value_R, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def _seed_weights(rng: np.random.Generator, n_seeds: int, draws: int) -> Floats:
    n_drawn = max(n_seeds - 1, 1)
    return rng.multinomial(n_drawn, np.full(n_seeds, 1 / n_seeds), size=draws) / n_drawn


def _times_drawn(rng: np.random.Generator, draws: int, n_users: int) -> NDArray[np.float32]:
    """How often each user is in each draw, [R, U]."""
    user_RU = rng.integers(n_users, size=(draws, n_users)) + np.arange(draws)[:, None] * n_users
    counts = np.bincount(user_RU.reshape(-1), minlength=draws * n_users)
    return counts.reshape(draws, n_users).astype(np.float32)
