"""Pictures of docs/performance.md; `python -m benchmarks.figures` draws them."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib

from benchmarks.peers.ratios import PEERS, Ratio, ratios
from benchmarks.results import measured

matplotlib.use("svg")
import matplotlib.pyplot as plt

SHOWN = {
    ("train", "ce", "targets_per_cpu_s"): "training, CE",
    ("train", "bce", "targets_per_cpu_s"): "training, BCE",
    ("evaluate", "ce", "cpu_seconds"): "evaluation",
    ("recommend", "ce", "api_one_ms.p50"): "one history",
    ("recommend", "ce", "api_users_per_s"): "256 histories",
    ("start", "ce", "wall_s"): "start",
    ("train", "ce", "peak_mib"): "training memory",
    ("evaluate", "ce", "peak_mib"): "evaluation memory",
}
"""Bars, from the top: question, loss and figure, and what they are called."""
COLOURS = {"recbole": "#7a9cc6", "rectools": "#d99b66", "replay": "#7fb685"}
_STYLE = {"svg.hashsalt": "lexrec", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def draw(results: Path, out: Path) -> list[Path]:
    """One picture for each file of the peers' results that is there."""
    drawn = []
    for name in ("peers-before", "peers"):
        path = results / f"performance-{name}.jsonl"
        if path.is_file():
            out.mkdir(parents=True, exist_ok=True)
            drawn.append(out / f"performance-{name}.svg")
            _peers(ratios(measured(path, "peers")), drawn[-1])
    return drawn


def _peers(found: Iterable[Ratio], path: Path) -> None:
    """How many times better lexrec is, on a logarithmic axis, with the range of the pairs."""
    bars = [r for r in found if (r.question, r.loss, r.figure) in SHOWN]
    rows = [key for key in SHOWN if any((r.question, r.loss, r.figure) == key for r in bars)]
    peers = [peer for peer in COLOURS if any(r.peer == peer for r in bars)]
    with matplotlib.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7, 0.5 + 0.55 * len(rows)), layout="constrained")
        for r in bars:
            row = rows.index((r.question, r.loss, r.figure))
            place = row + (peers.index(r.peer) - (len(peers) - 1) / 2) * 0.25
            axes.barh(place, r.median - 1, left=1, height=0.22, color=COLOURS[r.peer])
            axes.plot([r.pairs[0], r.pairs[-1]], [place, place], color="#333333", linewidth=1)
            axes.text(max(1, r.pairs[-1]) * 1.05, place, f"{r.median:.1f}", va="center", fontsize=7)
        for peer in peers:
            axes.barh(0, 0, color=COLOURS[peer], label=f"beside {PEERS[peer]}")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.axvline(1, color="#333333", linewidth=0.8)
        axes.set_yticks(range(len(rows)), [SHOWN[key] for key in rows])
        axes.invert_yaxis()
        axes.set_xlabel("times better than the library beside it (1: equal; line: range of pairs)")
        axes.legend(loc="lower right", frameon=False)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
