"""From the folders of `lexrec compare` to docs/results: one JSON line a run, and tables in the pages.

    python -m benchmarks.collect FOLDER docs/results/NAME.jsonl    # the finished runs of a comparison
    python -m benchmarks.collect --fill docs/results.md            # renew the page's tables

A table stands in a page between two marks; its figures are means over seeds, its rows the arms of the file:

    <!-- runs NAME hr@10 ndcg@10 -->
    <!-- end -->

"chosen by" is the metric that picked an arm's epochs, which its recipe names, and its value there.
"""

import argparse
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks import pages
from benchmarks.results import RESULTS, Line, read
from lexrec.compare.settings import CompareConfig
from lexrec.run_dir import RunDir
from lexrec.training.evaluate_run import place

KEPT = ("hr@10", "ndcg@10", "hr@20", "ndcg@20")
_SELECTED = "selected "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--fill", type=Path, metavar="PAGE")
    args = parser.parse_args()
    if args.fill:
        text = args.fill.read_text(encoding="utf-8")
        args.fill.write_text(pages.filled(text, "runs", table), encoding="utf-8")
        return
    if not args.folder or not args.out:
        parser.error("FOLDER and OUT, or --fill PAGE")
    lines = collected(args.folder)
    args.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    print(f"{len(lines) - 1} runs of {args.folder} written to {args.out}")


def collected(folder: Path) -> list[Line]:
    """The comparison's card, then a line for each run that was measured by its rules."""
    card = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    settings = CompareConfig.model_validate(card["settings"])
    # Where tables lay on the machine that ran it is of no interest.
    card["arms"] = {
        arm: [re.sub(r"file:[^,\]\s]*/", "", word) for word in words] for arm, words in card["arms"].items()
    }
    lines: list[Line] = [card]
    for arm, words in card["arms"].items():
        for run in sorted((folder / "arms" / arm).glob("*/")):
            measured = place(RunDir(run), settings.split, settings.evaluation) / "metrics.json"
            if measured.is_file():
                lines.append(_run(arm, words, run, measured))
    return lines


def _run(arm: str, words: list[str], run: Path, measured: Path) -> Line:
    metrics = json.loads(measured.read_text(encoding="utf-8"))["metrics"]
    line: Line = {"arm": arm, "recipe": " ".join(words)}
    if run.name.startswith("seed-"):
        summary = json.loads((run / "DONE").read_text(encoding="utf-8"))
        line |= {"seed": int(run.name.removeprefix("seed-")), **_without_paths(summary)}
    return {**line, "metrics": {key: round(metrics[key], 5) for key in KEPT}}


def _without_paths(summary: Line) -> Line:
    selected = {f"{_SELECTED}{key}": value for key, value in summary.items() if "@" in key}
    return {key: value for key, value in summary.items() if "@" not in key} | selected


def table(name: str, *keys: str) -> list[str]:
    """Means over seeds, the standard deviation behind them where there are several."""
    _, *runs = read(RESULTS / f"{name}.jsonl")
    header = ["arm", "recipe", "seeds", *map(str.upper, keys), "chosen by", "epochs", "s"]
    arms = dict.fromkeys(run["arm"] for run in runs)
    return pages.table(header, [_row([run for run in runs if run["arm"] == arm], keys) for arm in arms])


def _row(runs: list[Line], keys: Sequence[str]) -> list[str]:
    figures = [_figure([run["metrics"][key] for run in runs]) for key in keys]
    head = [runs[0]["arm"], f"`{runs[0]['recipe']}`"]
    if "seed" not in runs[0]:
        return [*head, "", *figures, "", "", ""]
    epochs = f"{statistics.mean(run['best_epoch'] for run in runs):.0f}"
    seconds = f"{statistics.mean(run['seconds'] for run in runs):.0f}"
    return [*head, str(len(runs)), *figures, _chosen(runs), epochs, seconds]


def _chosen(runs: list[Line]) -> str:
    """What picked the epochs of an arm; nothing where there was no part to pick on."""
    (key,) = {key for run in runs for key in run if key.startswith(_SELECTED)}
    values = [run[key] for run in runs if run[key] is not None]
    return f"{key.removeprefix(_SELECTED)} {_figure(values)}" if values else ""


def _figure(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.4f}".removeprefix("0")
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.4f}".replace("± 0", "± ")


if __name__ == "__main__":
    main()
