"""What benchmarks wrote to docs/results: JSON lines, and of each setting the measurement made last."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT

RESULTS = ROOT / "docs" / "results"

Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """The lines of a file, as they are."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def measured(path: Path, kind: str) -> list[Line]:
    """A line for each setting of a kind of benchmark; what was measured again since is left out."""
    split, setting = KINDS[kind]
    return newest([one for line in read(path) for one in split(line)], setting)


def newest(lines: Sequence[Line], setting: Sequence[str]) -> list[Line]:
    """Those measured last, by `at`, of the lines that agree in a setting.

    A line that does not say when counts as earlier than those that do, and as later than the lines before it.
    """
    when = [(line.get("at", ""), 0 if "at" in line else place) for place, line in enumerate(lines)]
    settings = [json.dumps([line.get(key) for key in setting]) for line in lines]
    last: dict[str, tuple[str, int]] = {}
    for key, time in zip(settings, when, strict=True):
        last[key] = max(time, last.get(key, time))
    each = zip(lines, settings, when, strict=True)
    return [line for line, key, time in each if time == last[key]]


def _of_results(line: Line) -> Iterator[Line]:
    for one in line["results"]:
        yield {**line, **one}


def _of_mltfr(line: Line) -> Iterator[Line]:
    data = Path(line["data"]).name if line["data"] else None
    for one in line["results"]:
        yield {**line, **one, "data": data}


def _of_ranking(line: Line) -> Iterator[Line]:
    for kind in ("lists", "ranks", "both", "scores"):
        if kind in line:
            yield {**line, **line[kind], "kind": kind}


def _of_peers(line: Line) -> Iterator[Line]:
    yield {**line, "library": line.get("beside") or line["peer"], "at": line["machine"]["at"]}


def _of_losses(line: Line) -> Iterator[Line]:
    for loss, found in line["results"].items():
        yield {**line, **found, "loss": loss, "data": Path(line["data"]).name}


def _of_stages(line: Line) -> Iterator[Line]:
    for n, found in line["ms"].items():
        yield {**line, "ms": found, "together": n, "run": Path(line["run"]).name}


def _whole(line: Line) -> Iterator[Line]:
    yield line


KINDS: dict[str, tuple[Callable[[Line], Iterator[Line]], tuple[str, ...]]] = {
    "steps": (_of_results, ("recipe", "overrides", "items", "length", "loss", "batch", "mode")),
    "mltfr": (_of_mltfr, ("data", "overrides", "items", "batch", "k", "shrink", "arm", "mode")),
    "ranking": (_of_ranking, ("users", "items", "dim", "k", "seen", "kind")),
    "peers": (_of_peers, ("question", "loss", "library", "data", "tuned")),
    "operations": (_of_losses, ("data", "overrides", "threads", "loss")),
    "stages": (_of_stages, ("run", "length", "k", "together")),
    "bench": (_whole, ("recipe", "data")),
    "preparation": (_whole, ("rows", "users", "items", "ids", "format", "k_core", "memory")),
}
"""By kind: how a line of the file becomes one a setting, and the keys that make a setting."""
