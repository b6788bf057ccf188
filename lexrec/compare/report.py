"""From the results of all arms to one object, which `lexrec compare --json` prints."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexrec.compare import statistics
from lexrec.compare.results import ArmResult, Users, require_alike
from lexrec.compare.settings import SEEDS_FOR_A_VERDICT, CompareConfig
from lexrec.compare.verdict import verdict


@dataclass(frozen=True)
class Comparison:
    """All that a comparison found; plain data, as it is written to report.json."""

    arms: dict[str, dict[str, Any]]
    """By name: recipe, seeds, failed runs, protocol, metrics (mean, std, interval, values), cost."""
    pairs: list[dict[str, Any]]
    """Each tested pair: b against a."""
    verdict: str
    """What may be said, in words, a line each: the protocol, the test, each pair."""

    def json(self) -> dict[str, Any]:
        """What `lexrec compare --json` prints."""
        return {"arms": self.arms, "pairs": self.pairs, "verdict": self.verdict}


def build_report(results: Sequence[ArmResult], users: Users, settings: CompareConfig) -> Comparison:
    """All statistics of a comparison.

    Raises:
        ProtocolError: two arms were not measured alike.
    """
    measured = [result for result in results if result.protocol is not None]
    require_alike([result.protocol for result in measured if result.protocol])
    drawn = statistics.bootstrap(
        [result.value_SMU for result in measured],
        users.n_events_U,
        settings.draws,
        settings.bootstrap_seed,
    )
    by_name = {result.arm.name: draws for result, draws in zip(measured, drawn, strict=True)}
    arms = {result.arm.name: _arm(result, by_name.get(result.arm.name), settings) for result in results}
    pairs = [_pair(a, b, by_name, settings) for a, b in _family(results, settings)]
    tested = [pair for pair in pairs if pair["p"] is not None]
    for pair, p in zip(tested, statistics.holm([pair["p"] for pair in tested]), strict=True):
        pair["p_holm"] = p
    return Comparison(arms, pairs, verdict(results, pairs, settings))


def _family(results: Sequence[ArmResult], settings: CompareConfig) -> list[tuple[ArmResult, ArmResult]]:
    """The pairs tested; none with an arm that has no run."""
    by_name = {result.arm.name: result for result in results}
    pairs = [(by_name[a], by_name[b]) for a, b in settings.family(list(by_name))]
    return [(a, b) for a, b in pairs if a.protocol is not None and b.protocol is not None]


def _arm(result: ArmResult, draws_RM: NDArray[np.float64] | None, settings: CompareConfig) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for m, name in enumerate(settings.metrics if draws_RM is not None else ()):
        assert draws_RM is not None
        value_S = result.mean_SM[:, m]
        metrics[name] = {
            "mean": float(value_S.mean()),
            "std": float(value_S.std(ddof=1)) if len(value_S) > 1 else None,
            "interval": statistics.interval(draws_RM[:, m]),
            "values": value_S.tolist(),
        }
    return {
        "recipe": " ".join([result.arm.recipe, *result.arm.overrides]),
        "seeds": list(result.seeds) if not result.is_counted else [],
        "failed": [{"seed": seed, "error": error} for seed, error in result.failed],
        "protocol": None if result.protocol is None else result.protocol.model_dump(mode="json"),
        "metrics": metrics,
        **result.cost,
    }


def _pair(
    a: ArmResult, b: ArmResult, by_name: dict[str, NDArray[np.float64]], settings: CompareConfig
) -> dict[str, Any]:
    """Of the tested metric, which is the first of all."""
    a_S, b_S = a.mean_SM[:, 0].tolist(), b.mean_SM[:, 0].tolist()
    mean, difference = float(np.mean(a_S)), float(np.mean(b_S) - np.mean(a_S))
    # A trained arm of one run has a spread that nobody has seen; only a counted one has none.
    is_tested = all(result.is_counted or len(result.seeds) > 1 for result in (a, b))
    test = statistics.welch(a_S, b_S) if is_tested else None
    enough = all(result.is_counted or len(result.seeds) >= SEEDS_FOR_A_VERDICT for result in (a, b))
    return {
        "a": a.arm.name,
        "b": b.arm.name,
        "metric": settings.metric,
        "mean_a": mean,
        "mean_b": float(np.mean(b_S)),
        "difference": difference,
        "interval": statistics.interval(by_name[b.arm.name][:, 0] - by_name[a.arm.name][:, 0]),
        "relative": difference / mean if mean else None,
        "hedges_g": statistics.hedges_g(a_S, b_S) if is_tested else None,
        "t": test.t if test else None,
        "df": test.df if test else None,
        "p": test.p if test else None,
        "p_holm": None,
        "least_difference": test.least if test else None,
        "has_enough_seeds": enough,
    }
