"""Tables and pictures of docs/performance.md, from docs/results/performance-*.jsonl. No figure is typed.

    python -m benchmarks.figures

A table stands in the page between two marks, the first naming what makes it, and the file of its lines:

    <!-- figures peers peers-before train -->
    <!-- end -->

Of each setting a table shows what was measured last, and where the script says so, at which commit.
Pictures go to docs/images; they need the extra report.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import pages
from benchmarks.machine import ROOT
from benchmarks.pages import table
from benchmarks.peers.ratios import PEERS, Ratio, ratios
from benchmarks.results import RESULTS, Line, measured
from benchmarks.targets import TARGETS

PAGE = ROOT / "docs" / "performance.md"
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


def filled(page: str, results: Path) -> str:
    """The page with every marked table made anew; where a file is missing, the table says so."""

    def made(kind: str, name: str, *words: str) -> list[str]:
        if kind == "targets":
            return targets(results)
        path = results / f"performance-{name}.jsonl"
        if not path.is_file():
            return [f"*Not measured yet: there is no {path.name}.*"]
        return KINDS[kind](measured(path, "peers" if kind == "on" else kind), *words)

    return pages.filled(page, "figures", made)


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
    return table(["", "wanted", "measured", ""], rows)


def peers(lines: list[Line], question: str) -> list[str]:
    """Each figure of a question beside each library."""
    rows = [_peer_row(r) for r in ratios(lines) if r.question == question]
    header = ["", "beside", "theirs", "lexrec", "times better, median of pairs (lowest to highest)"]
    return table(header, rows)


def _peer_row(r: Ratio) -> list[str]:
    what = NAMES[r.figure] + (f", {r.loss.upper()}" if r.question == "train" else "")
    spread = f"**{r.median:.2f}** ({r.pairs[0]:.2f} to {r.pairs[-1]:.2f})"
    return [what, PEERS.get(r.peer, r.peer), number(r.theirs), number(r.ours), spread]


def on(lines: list[Line]) -> list[str]:
    """One sentence: machine, versions, commit, load."""
    at, versions = lines[0]["machine"], {PEERS.get(one["peer"]): one["version"] for one in lines}
    names = ", ".join(f"{name} {version}" for name, version in versions.items() if name)
    commits = {one["machine"]["commit"]: one["at"][:16] for one in reversed(lines)}
    ours = " and ".join(f"{commit}, {began}" for commit, began in commits.items())
    loads = [one["load"] for one in lines]
    return [
        f"{at['processor']}, {at['cores']} cores, {at['memory_gib']} GiB; Python {at['python']}; "
        f"{lines[0]['threads']} threads a process; {names}; lexrec at {ours}; "
        f"{len(lines)} runs; load average of the machine when they began {min(loads)} to {max(loads)}."
    ]


def steps(lines: list[Line]) -> list[str]:
    """Training steps of train_step.py: each mode, loss and batch size."""
    rows = []
    for one in lines:
        rate, peak = f"{one['positions_per_s'] / 1e6:.2f}", _whole(one["peak_MiB"])
        rows.append([one["loss"], str(one["batch"]), one["mode"], _ms(one), rate, peak, _commit(one)])
    header = ["loss", "batch", "mode", "ms a step (quickest to slowest round)", "M positions/s", "peak MiB"]
    return [*table([*header, "lexrec at"], rows), "", *_devices(lines)]


def mltfr(lines: list[Line]) -> list[str]:
    """Training steps of token_filter.py: each arm over its backbone."""
    rows = []
    for one in lines:
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f}"
        named = [one["data"] or "full rows", str(one["batch"]), one["arm"], one["mode"]]
        rows.append([*named, _ms(one), ratio, _whole(one["step_peak_MiB"]), _commit(one)])
    header = ["rows", "batch", "arm", "mode", "ms a step (range)", "times the backbone", "step peak MiB"]
    return [*table([*header, "lexrec at"], rows), "", *_devices(lines)]


def ranking(lines: list[Line]) -> list[str]:
    """Seconds of ranking.py."""
    rows = []
    for one in lines:
        size = f"{one['users']:,} x {one['items']:,}, top {one['k']}, {one['seen']} seen"
        low, high = one["spread"]
        peak = "" if one["peak_GiB"] is None else f"{one['peak_GiB']:.2f}"
        rows.append([size, one["kind"], f"**{one['s']:.3f}** ({low:.3f} to {high:.3f})", peak, _commit(one)])
    header = ["users x items", "kind", "s (range)", "peak GiB", "lexrec at"]
    return [*table(header, rows), "", *_devices(lines)]


def preparation(lines: list[Line]) -> list[str]:
    """Time and memory of prepare.py."""
    header = ["rows", "memory option", "s", "processor s", "peak MiB", "of it anonymous", "scratch MiB"]
    keys = ("seconds", "cpu_seconds", "peak_rss_mib", "peak_anonymous_mib", "peak_scratch_mib")
    rows = [[f"{one['rows']:,}", one["memory"] or "", *(f"{one[key]:,}" for key in keys)] for one in lines]
    at, versions = lines[0]["machine"], lines[0]["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [*table(header, rows), "", f"{at['cpu']}, {at['cpus']} cores; {named}."]


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
    return [*table([*header, "256 together, histories/s", "command to answer, s"], rows), "", where]


def operations(lines: list[Line]) -> list[str]:
    """Where the time of a step on a CPU goes, from train_cpu.py --profile."""
    rows = []
    for one in lines:
        spread = f"{one['step_ms']:.1f} ({one['step_ms_p10']:.1f} to {one['step_ms_p90']:.1f})"
        most = ", ".join(f"{name} {ms:.1f}" for name, ms in list(one.get("profile", {}).items())[:_MOST])
        figures = [number(one["targets_per_s"]), number(one["peak_mib"])]
        rows.append([one["loss"].upper(), str(one["threads"]), spread, *figures, most, _commit(one)])
    header = ["loss", "threads", "ms a step (p10 to p90)", "targets/s", "peak MiB", "operations, ms a step"]
    where = _distinct(f"{one['processor']}, {one['cores']} cores; torch {one['torch']}." for one in lines)
    return [*table([*header, "lexrec at"], rows), "", *where]


def stages(lines: list[Line]) -> list[str]:
    """Where the time of a request goes, from serving.py."""
    names = ("whole", "whole_p99", "indexes", "batch", "encode", "lists", "ids")
    rows = []
    for one in lines:
        of = one["ms"]
        rate = number(of["histories_per_s"])
        rows.append([one["run"], one["together"], *(f"{of[name]:.2f}" for name in names), rate])
    header = ["run", "together", "ms", "p99", "indexes", "batch", "encode", "lists", "ids", "histories/s"]
    starts = _distinct(
        f"Start of {one['run']}, s: "
        + ", ".join(f"{name.replace('_', ' ')} {s:.2f}" for name, s in one["start"].items())
        + "."
        for one in lines
    )
    return [*table(header, rows), "", *starts]


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


def _ms(one: Line) -> str:
    low, high = one["ms_spread"]
    return f"**{one['ms']:.3f}** ({low:.3f} to {high:.3f})"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,}"


def _commit(one: Line) -> str:
    return str(one.get("commit", ""))


def _devices(lines: list[Line]) -> list[str]:
    """A sentence on each machine that lines were made on."""
    return _distinct(
        f"{one.get('gpu') or one.get('device') or one['processor']}, {one['threads']} threads, "
        f"Python {one['python']}, torch {one['torch']}."
        for one in lines
    )


def _distinct(sentences: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(sentences))


def main() -> None:
    # Tables need no matplotlib.
    from benchmarks.plots import draw

    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")
    for path in draw(RESULTS, ROOT / "docs" / "images"):
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
