"""Tables and pictures of docs/performance.md, from docs/results/performance-*.jsonl. No figure is typed.

    python -m benchmarks.figures

A table stands in the page between two marks, the first naming what makes it, and the file of its lines:

    <!-- figures peers peers-before train -->
    <!-- end -->

Pictures go to docs/images; they need the extra report.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT
from benchmarks.peers.ratios import Ratio, ratios
from benchmarks.targets import TARGETS

PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "docs" / "results"
_MARKED = re.compile(r"(<!-- figures (\S+) (\S+)((?: \S+)*) -->\n).*?(<!-- end -->)", re.DOTALL)

Line = dict[str, Any]
_MOST = 6
"""Operations of a profile that are shown."""

NAMES = {
    "targets_per_s": "targets/s",
    "targets_per_cpu_s": "targets per processor second",
    "peak_mib": "peak memory, MiB",
    "seconds": "all users, s",
    "cpu_seconds": "all users, processor s",
    "api_one_ms.p50": "one history, public function, ms",
    "raw_one_ms.p50": "one history, bare model, ms",
    "api_users_per_s": "256 histories, public function, users/s",
    "raw_users_per_s": "256 histories, bare model, users/s",
    "wall_s": "process start to the first list, s",
}
PEERS = {"recbole": "RecBole", "rectools": "RecTools", "replay": "RePlay"}


def filled(page: str, results: Path) -> str:
    """The page with every marked table made anew; where a file is missing, the table says so."""

    def table(found: re.Match[str]) -> str:
        kind, name, words = found[2], found[3], found[4].split()
        path = results / f"performance-{name}.jsonl"
        lines = [f"*Not measured yet: there is no {path.name}.*"]
        if kind == "targets":
            lines = targets(results)
        elif path.is_file():
            lines = KINDS[kind](read(path), *words)
        return "\n".join([found[1].rstrip(), *lines, found[5]])

    return _MARKED.sub(table, page)


def read(path: Path) -> list[Line]:
    """The lines of a file of results."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def targets(results: Path) -> list[str]:
    """What is asked of the speed, from all files."""
    rows = []
    for one in TARGETS:
        best = one.best(results)
        wanted = ("at least " if one.is_least else "at most ") + number(one.wanted)
        if best is None:
            rows.append([one.what, wanted, "", "not measured yet"])
            continue
        is_met = best >= one.wanted if one.is_least else best <= one.wanted
        rows.append([one.what, wanted, f"**{number(best)}**", "met" if is_met else "missed"])
    return _table(["", "wanted", "measured", ""], rows)


def peers(lines: list[Line], question: str) -> list[str]:
    """Each figure of a question beside each library."""
    rows = [_peer_row(r) for r in ratios(lines) if r.question == question]
    header = ["", "beside", "theirs", "lexrec", "times better, median of pairs (lowest to highest)"]
    return _table(header, rows)


def _peer_row(r: Ratio) -> list[str]:
    what = NAMES[r.figure] + (f", {r.loss.upper()}" if r.question == "train" else "")
    spread = f"**{r.median:.2f}** ({r.pairs[0]:.2f} to {r.pairs[-1]:.2f})"
    return [what, PEERS.get(r.peer, r.peer), number(r.theirs), number(r.ours), spread]


def on(lines: list[Line]) -> list[str]:
    """One sentence: machine, versions, commit, load."""
    at, versions = lines[0]["machine"], {PEERS.get(one["peer"]): one["version"] for one in lines}
    names = ", ".join(f"{name} {version}" for name, version in versions.items() if name)
    loads = [one["load"] for one in lines]
    return [
        f"{at['processor']}, {at['cores']} cores, {at['memory_gib']} GiB; Python {at['python']}; "
        f"{lines[0]['threads']} threads a process; {names}; lexrec at {at['commit']}, {at['at'][:16]}; "
        f"{len(lines)} runs; load average of the machine when they began {min(loads)} to {max(loads)}."
    ]


def steps(lines: list[Line]) -> list[str]:
    """Training steps of train_step.py: each mode, loss and batch size."""
    rows = []
    for line in lines:
        for one in line["results"]:
            low, high = one["ms_spread"]
            rate = f"{one['positions_per_s'] / 1e6:.2f}"
            peak = "" if one["peak_MiB"] is None else f"{one['peak_MiB']:,}"
            ms = f"**{one['ms']:.3f}** ({low:.3f} to {high:.3f})"
            rows.append([one["loss"], str(one["batch"]), one["mode"], ms, rate, peak])
    header = ["loss", "batch", "mode", "ms a step (quickest to slowest round)", "M positions/s", "peak MiB"]
    return [*_table(header, rows), "", _device(lines[0])]


def mltfr(lines: list[Line]) -> list[str]:
    """Training steps of token_filter.py: each arm over its backbone."""
    rows = []
    for line in lines:
        data = Path(line["data"]).name if line["data"] else "full rows"
        for one in line["results"]:
            low, high = one["ms_spread"]
            ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f}"
            peak = "" if one["step_peak_MiB"] is None else f"{one['step_peak_MiB']:,}"
            ms = f"**{one['ms']:.3f}** ({low:.3f} to {high:.3f})"
            rows.append([data, str(line["batch"]), one["arm"], one["mode"], ms, ratio, peak])
    header = ["rows", "batch", "arm", "mode", "ms a step (range)", "times the backbone", "step peak MiB"]
    return [*_table(header, rows), "", _device(lines[0])]


def ranking(lines: list[Line]) -> list[str]:
    """Seconds of ranking.py."""
    rows = []
    for line in lines:
        size = f"{line['users']:,} x {line['items']:,}, top {line['k']}, {line['seen']} seen"
        for kind in ("lists", "ranks", "both", "scores"):
            if kind in line:
                low, high = line[kind]["spread"]
                peak = "" if line[kind]["peak_GiB"] is None else f"{line[kind]['peak_GiB']:.2f}"
                rows.append([size, kind, f"**{line[kind]['s']:.3f}** ({low:.3f} to {high:.3f})", peak])
    header = ["users x items", "kind", "s (range)", "peak GiB"]
    return [*_table(header, rows), "", _device(lines[0])]


def preparation(lines: list[Line]) -> list[str]:
    """Time and memory of prepare.py."""
    header = ["rows", "memory option", "s", "processor s", "peak MiB", "of it anonymous", "scratch MiB"]
    keys = ("seconds", "cpu_seconds", "peak_rss_mib", "peak_anonymous_mib", "peak_scratch_mib")
    rows = [[f"{one['rows']:,}", one["memory"] or "", *(f"{one[key]:,}" for key in keys)] for one in lines]
    at, versions = lines[0]["machine"], lines[0]["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [*_table(header, rows), "", f"{at['cpu']}, {at['cpus']} cores; {named}."]


def bench(lines: list[Line]) -> list[str]:
    """What `lexrec bench --json` printed for several recipes."""
    rows = []
    for one in lines:
        recommending, of = one["recommending"], one["recommending"]["one_ms"]
        rows.append(
            [
                one["recipe"],
                number(one["training"]["targets_per_s"]),
                number(one["training"]["peak_mib"]),
                number(one["evaluation"]["users_per_s"]),
                f"{of['p50']:.2f} ({of['p99']:.2f})",
                number(recommending["histories_per_s"]),
                f"{one['start']['seconds']:.2f}",
            ]
        )
    header = ["recipe", "targets/s", "training MiB", "evaluation users/s", "one history ms (p99)"]
    at = lines[0]["machine"]
    where = (
        f"{at.get('gpu', at['processor'])}, {at['cores']} cores; Python {at['python']}, torch {at['torch']}."
    )
    return [*_table([*header, "256 together, histories/s", "command to answer, s"], rows), "", where]


def operations(lines: list[Line]) -> list[str]:
    """Where the time of a step on a CPU goes, from train_cpu.py --profile."""
    rows = []
    for line in lines:
        for loss, found in line["results"].items():
            spread = f"{found['step_ms']:.1f} ({found['step_ms_p10']:.1f} to {found['step_ms_p90']:.1f})"
            most = [f"{name} {ms:.1f}" for name, ms in list(found.get("profile", {}).items())[:_MOST]]
            rate, peak = number(found["targets_per_s"]), number(found["peak_mib"])
            rows.append([loss.upper(), str(line["threads"]), spread, rate, peak, ", ".join(most)])
    header = ["loss", "threads", "ms a step (p10 to p90)", "targets/s", "peak MiB", "operations, ms a step"]
    at = lines[0]
    where = f"{at['processor']}, {at['cores']} cores; torch {at['torch']}; lexrec at {at['commit']}."
    return [*_table(header, rows), "", where]


def stages(lines: list[Line]) -> list[str]:
    """Where the time of a request goes, from serving.py."""
    names = ("whole", "whole_p99", "indexes", "batch", "encode", "lists", "ids")
    rows = [
        [Path(line["run"]).name, n, *(f"{of[name]:.2f}" for name in names), number(of["histories_per_s"])]
        for line in lines
        for n, of in line["ms"].items()
    ]
    header = ["run", "together", "ms", "p99", "indexes", "batch", "encode", "lists", "ids", "histories/s"]
    starts = [
        f"Start of {Path(line['run']).name}, s: "
        + ", ".join(f"{name.replace('_', ' ')} {s:.2f}" for name, s in line["start"].items())
        + "."
        for line in lines
    ]
    return [*_table(header, rows), "", *starts]


KINDS: dict[str, Callable[..., list[str]]] = {
    "peers": peers,
    "on": on,
    "steps": steps,
    "mltfr": mltfr,
    "ranking": ranking,
    "preparation": preparation,
    "bench": bench,
    "operations": operations,
    "stages": stages,
}


def number(value: float) -> str:
    """Three digits, or whole thousands with commas."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _device(line: Line) -> str:
    return f"{line['device']}, {line['threads']} threads, Python {line['python']}, torch {line['torch']}."


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def main() -> None:
    from benchmarks.plots import draw

    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")
    for path in draw(RESULTS, ROOT / "docs" / "images"):
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
