"""From the folders of `lexrec compare` to docs/results: one JSON line a run, and tables in the pages.

    python benchmarks/collect.py FOLDER docs/results/NAME.jsonl    # the finished runs of a comparison
    python benchmarks/collect.py --fill docs/results.md            # renew the page's tables

A table stands in a page between two marks; its figures are means over seeds, its rows the arms of the file:

    <!-- runs NAME hr@10 ndcg@10 -->
    <!-- end -->
"""

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

KEPT = ("hr@10", "ndcg@10", "hr@20", "ndcg@20")
RESULTS = Path(__file__).parent.parent / "docs" / "results"
_TABLE = re.compile(r"(<!-- runs (\S+) ([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)

Line = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--fill", type=Path, metavar="PAGE")
    args = parser.parse_args()
    if args.fill:
        text = args.fill.read_text(encoding="utf-8")
        args.fill.write_text(_TABLE.sub(_filled, text), encoding="utf-8")
        return
    if not args.folder or not args.out:
        parser.error("FOLDER and OUT, or --fill PAGE")
    lines = collected(args.folder)
    args.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    print(f"{len(lines) - 1} runs of {args.folder} written to {args.out}")


def collected(folder: Path) -> list[Line]:
    """The comparison's card, then a line for each run that is finished."""
    card = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    lines: list[Line] = [card]
    for arm, words in card["arms"].items():
        for run in sorted((folder / "arms" / arm).glob("*/")):
            measured = sorted(run.glob("evaluations/*/metrics.json"))
            if measured:
                lines.append(_run(arm, words, run, measured[0]))
    return lines


def _run(arm: str, words: list[str], run: Path, measured: Path) -> Line:
    metrics = json.loads(measured.read_text(encoding="utf-8"))["metrics"]
    # Where tables lay on the machine that ran it is of no interest.
    recipe = re.sub(r"file:[^,\]\s]*/", "", " ".join(words))
    line: Line = {"arm": arm, "recipe": recipe}
    if run.name.startswith("seed-"):
        summary = json.loads((run / "DONE").read_text(encoding="utf-8"))
        line |= {"seed": int(run.name.removeprefix("seed-")), **_without_paths(summary)}
    return {**line, "metrics": {key: round(metrics[key], 5) for key in KEPT}}


def _without_paths(summary: Line) -> Line:
    selected = {f"selected {key}": value for key, value in summary.items() if "@" in key}
    return {key: value for key, value in summary.items() if "@" not in key} | selected


def _filled(found: re.Match[str]) -> str:
    name, keys = found[2], found[3].split()
    return found[1] + table(RESULTS / f"{name}.jsonl", keys) + found[4]


def table(path: Path, keys: list[str]) -> str:
    """Means over seeds, the standard deviation behind them where there are several."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    card, runs = lines[0], lines[1:]
    chosen = card["settings"]["metric"]
    rows = [
        [
            "arm",
            "recipe",
            "seeds",
            *(key.upper() for key in keys),
            f"chosen by {chosen}",
            "epochs",
            "s",
        ]
    ]
    for arm in dict.fromkeys(run["arm"] for run in runs):
        rows.append(_row([run for run in runs if run["arm"] == arm], keys, chosen))
    rows.insert(1, ["---"] * len(rows[0]))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(runs: list[Line], keys: list[str], chosen: str) -> list[str]:
    figures = [_figure([run["metrics"][key] for run in runs]) for key in keys]
    head = [runs[0]["arm"], f"`{runs[0]['recipe']}`"]
    if "seed" not in runs[0]:
        return [*head, "", *figures, "", "", ""]
    selected = _figure([run.get(f"selected {chosen}", 0.0) for run in runs])
    epochs = f"{statistics.mean(run['best_epoch'] for run in runs):.0f}"
    seconds = f"{statistics.mean(run['seconds'] for run in runs):.0f}"
    return [*head, str(len(runs)), *figures, selected, epochs, seconds]


def _figure(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.4f}".removeprefix("0")
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.4f}".replace("± 0", "± ")


if __name__ == "__main__":
    main()
