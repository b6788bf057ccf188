"""Student's t distribution, central and not: p-values, critical values and power without SciPy.

All three are one question: how often is |Z + ncp| > c S, for a standard normal Z and an independent S with
df S^2 distributed as chi squared? Given S = s the answer is a pair of normal tails, and the mean over s is
an integral of a smooth function, which the trapezoidal rule over log s finds to about twelve digits.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_NODES = 250
_SQRT2 = math.sqrt(2.0)


def rejected_share(critical: float, df: float, ncp: float = 0.0) -> float:
    """Probability that |T| > critical: the two-sided p-value for ncp = 0, the power else.

    Args:
        critical: at least 0.
        df: degrees of freedom, above 0, not necessarily whole.
        ncp: non-centrality, the true difference in standard errors.
    """
    s, weight = _chi(df)
    tails = [math.erfc((critical * x - ncp) / _SQRT2) + math.erfc((critical * x + ncp) / _SQRT2) for x in s]
    return min(1.0, float(weight @ np.array(tails)) / 2)


def critical_value(alpha: float, df: float) -> float:
    """The t that |T| exceeds with probability alpha."""
    return _solve(lambda t: rejected_share(t, df) < alpha)


def detectable(alpha: float, power: float, df: float) -> float:
    """The true difference, in standard errors, that a two-sided test finds with this power."""
    critical = critical_value(alpha, df)
    return _solve(lambda ncp: rejected_share(critical, df, ncp) > power)


def _chi(df: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes s and weights, which sum to 1, of the density of S = sqrt(chi squared / df)."""
    spread = 9.0 / math.sqrt(2.0 * df)
    log_s = np.linspace(-40.0 / df - spread, spread, _NODES)
    log_density = df * (log_s - (np.expm1(2 * log_s)) / 2)
    weight = np.exp(log_density - log_density.max())
    return np.exp(log_s), weight / weight.sum()


def _solve(is_above: Callable[[float], bool]) -> float:
    """Where a monotone condition becomes true, counted from 0."""
    high = 1.0
    while not is_above(high):
        high *= 2.0
    low = 0.0
    for _ in range(45):
        middle = (low + high) / 2
        low, high = (low, middle) if is_above(middle) else (middle, high)
    return high
