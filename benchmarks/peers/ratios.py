"""From lines of measurements to ratios: lexrec beside each library, pair by pair."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

FIGURES: dict[str, tuple[str, ...]] = {
    "train": ("targets_per_s", "targets_per_cpu_s", "peak_mib"),
    "evaluate": ("seconds", "cpu_seconds", "peak_mib"),
    "recommend": ("api_one_ms.p50", "raw_one_ms.p50", "api_users_per_s", "raw_users_per_s"),
    "start": ("wall_s",),
}
"""What of each question is compared. Of `..._per_s` more is better, of anything else less."""
PEERS = {"recbole": "RecBole", "rectools": "RecTools", "replay": "RePlay"}
"""What the libraries call themselves."""


class Ratio(NamedTuple):
    """How lexrec does beside one library in one figure: medians, and the ratio of each pair of runs."""

    question: str
    loss: str
    figure: str
    peer: str
    theirs: float
    ours: float
    pairs: tuple[float, ...]
    """How many times better lexrec was, in ascending order; below 1: worse."""

    @property
    def median(self) -> float:
        return statistics.median(self.pairs)


def ratios(lines: Iterable[Mapping[str, Any]]) -> list[Ratio]:
    """Of every question, loss, figure and library; runs without a partner are left out.

    Args:
        lines: what `python -m benchmarks.peers run` wrote. A run of lexrec names the library `beside`
            which it was made; it and the run with the same question, loss and `repetition` are a pair.
    """
    runs = {}
    for line in lines:
        beside = line.get("beside") or line["peer"]
        runs[line["question"], line["loss"], beside, line["repetition"], line["peer"]] = line
    found: dict[tuple[str, str, str, str], list[tuple[float, float]]] = {}
    for (question, loss, peer, repetition, who), theirs in runs.items():
        ours = runs.get((question, loss, peer, repetition, "lexrec"))
        if who == "lexrec" or ours is None:
            continue
        for figure in FIGURES[question]:
            key = (question, loss, figure, peer)
            found.setdefault(key, []).append((value(theirs, figure), value(ours, figure)))
    return [_ratio(key, pairs) for key, pairs in found.items()]


def value(line: Mapping[str, Any], figure: str) -> float:
    """A figure of a line; `a.b` is b of a."""
    for key in figure.split("."):
        line = line[key]
    return float(line)  # type: ignore[arg-type]


def is_more_better(figure: str) -> bool:
    return "_per_" in figure


def _ratio(key: tuple[str, str, str, str], pairs: list[tuple[float, float]]) -> Ratio:
    question, loss, figure, peer = key
    times = [ours / theirs if is_more_better(figure) else theirs / ours for theirs, ours in pairs]
    theirs, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Ratio(question, loss, figure, peer, theirs, ours, tuple(sorted(times)))
