"""What lexrec's speed is held to, and what was measured of it.

Of several measurements of one thing, as by mode of running a step, the best counts; beside other libraries,
the ratio to the one that does best.
"""

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers.ratios import ratios, value
from benchmarks.results import Line, measured


class Target(NamedTuple):
    """One thing that is asked."""

    what: str
    wanted: float
    is_least: bool
    """True: at least `wanted`; False: at most."""
    kind: str
    """Of benchmark, and of the file of its lines."""
    found: Callable[[list[Line]], Iterable[float]]

    def best(self, results: Path) -> float | None:
        """The best measurement; None where there is none."""
        path = results / f"performance-{self.kind}.jsonl"
        found = list(self.found(measured(path, self.kind))) if path.is_file() else []
        return (max(found) if self.is_least else min(found)) if found else None


def _step(loss: str, batch: int, figure: str) -> Callable[[list[Line]], Iterable[float]]:
    return lambda lines: [line[figure] for line in lines if (line["loss"], line["batch"]) == (loss, batch)]


def _arm(arm: str, on_real_rows: bool, figure: str = "ratio") -> Callable[[list[Line]], Iterable[float]]:
    return lambda lines: [
        line[figure]
        for line in lines
        if bool(line["data"]) == on_real_rows and line["arm"] == arm
        if line["mode"] != "eager" and line["ratio"] is not None
    ]


def _beside_best(question: str, loss: str, figure: str) -> Callable[[list[Line]], Iterable[float]]:
    """The least of the ratios: the library that does best."""

    def found(lines: list[Line]) -> Iterable[float]:
        medians = [
            r.median for r in ratios(lines) if (r.question, r.loss, r.figure) == (question, loss, figure)
        ]
        return [min(medians)] if medians else []

    return found


def _own(question: str, loss: str, figure: str) -> Callable[[list[Line]], Iterable[float]]:
    """lexrec's own figure: the median over all its runs."""

    def found(lines: list[Line]) -> Iterable[float]:
        runs = [
            value(line, figure)
            for line in lines
            if (line["question"], line["loss"], line["peer"]) == (question, loss, "lexrec")
        ]
        return [statistics.median(runs)] if runs else []

    return found


def _mltfr_latency(lines: list[Line]) -> Iterable[float]:
    one_ms = {line["recipe"].split()[0]: line["recommending"]["one_ms"]["p50"] for line in lines}
    return [one_ms["sasrec_mltfr"] / one_ms["sasrec"]] if {"sasrec", "sasrec_mltfr"} <= one_ms.keys() else []


def _large(figure: str) -> Callable[[list[Line]], Iterable[float]]:
    return lambda lines: [line[figure] for line in lines if line["rows"] >= 100e6]


CPU = "two CPU cores, Beauty: "
MS = "the same in ms, of a backbone of 0.6: "
TARGETS = (
    Target("H100, batch 128: a CE step, ms", 0.6, False, "steps", _step("ce", 128, "ms")),
    Target("H100, batch 128: a BCE step, ms", 0.4, False, "steps", _step("bce", 128, "ms")),
    Target("H100, batch 1024: CE, positions/s", 20e6, True, "steps", _step("ce", 1024, "positions_per_s")),
    Target("H100, batch 1024: BCE, positions/s", 45e6, True, "steps", _step("bce", 1024, "positions_per_s")),
    Target("H100, four tables, whole row: times the backbone", 1.8, False, "mltfr", _arm("sequence", False)),
    Target("H100, six tables, whole row: times the backbone", 2.5, False, "mltfr", _arm("six", False)),
    Target("H100, four tables, prefixes, full rows: times", 6, False, "mltfr", _arm("prefix", False)),
    # The backbone takes less than it may, which makes a ratio to it harder: hence milliseconds too.
    Target(
        MS + "whole row",
        1.08,
        False,
        "mltfr",
        _arm("sequence", False, "ms"),
    ),
    Target(MS + "six tables", 1.5, False, "mltfr", _arm("six", False, "ms")),
    Target(MS + "prefixes, full rows", 3.6, False, "mltfr", _arm("prefix", False, "ms")),
    Target("H100, four tables, prefixes, Beauty: times", 2, False, "mltfr", _arm("prefix", True)),
    Target(
        "H100, 1 M users x 100 k items, top 100: s",
        3,
        False,
        "ranking",
        lambda lines: [line["s"] for line in lines if line["users"] >= 1e6 and line["kind"] == "lists"],
    ),
    Target(CPU + "CE, times the fastest", 6, True, "peers", _beside_best("train", "ce", "targets_per_s")),
    Target(
        CPU + "BCE, targets/s (3 x SASRec.pytorch's 8,000)",
        24_000,
        True,
        "peers",
        _own("train", "bce", "targets_per_s"),
    ),
    Target(CPU + "training memory, MiB", 700, False, "peers", _own("train", "ce", "peak_mib")),
    Target(
        CPU + "evaluation, times the fastest", 4, True, "peers", _beside_best("evaluate", "ce", "seconds")
    ),
    Target(
        CPU + "evaluation memory, times less than the least",
        1,
        True,
        "peers",
        _beside_best("evaluate", "ce", "peak_mib"),
    ),
    Target(CPU + "one history, ms", 1.5, False, "peers", _own("recommend", "ce", "api_one_ms.p50")),
    Target(CPU + "one history with MLTFR's two tables: times", 2, False, "bench", _mltfr_latency),
    Target(CPU + "256 histories, users/s", 15_000, True, "peers", _own("recommend", "ce", "api_users_per_s")),
    Target(CPU + "process start to the first list, s", 2.5, False, "peers", _own("start", "ce", "wall_s")),
    Target("100 M rows prepared, s", 600, False, "preparation", _large("seconds")),
    Target(
        "100 M rows prepared, peak MiB without mapped files",
        4096,
        False,
        "preparation",
        _large("peak_anonymous_mib"),
    ),
)
