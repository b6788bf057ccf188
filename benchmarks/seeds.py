"""Does a recipe reach its figures? Trains arms with several seeds side by side and tests each once.

    python benchmarks/seeds.py --data data/beauty --seeds 3 --jobs 6 --out figures.jsonl \
        --arm "plain: sasrec" --arm "wide: sasrec model.dim=128"

Each arm is `NAME: RECIPE key=value ...`, where {seed} stands for the run's seed. One JSON line a run: arm,
seed, best epoch, seconds, test metrics (also under other seen rules); then one line an arm with
mean and standard deviation over seeds.
Full ranking, seen items removed, ties at half a place, best epoch by validation.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

SHOWN = ("hr@10", "ndcg@10", "hr@20", "ndcg@20")

SEEN = {"remove": "metrics", "zero": "metrics_if_seen_scores_zero", "keep": "metrics_if_seen_competes"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--arm", action="append", required=True, help="NAME: RECIPE key=value ...")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(_one(args.one, args.data, args.first_seed, args.device)))
        return
    jobs = [(arm, args.first_seed + i) for i in range(args.seeds) for arm in args.arm]
    results = []
    with ThreadPoolExecutor(args.jobs) as pool:
        running = [pool.submit(_spawn, arm, seed, args.data, args.device) for arm, seed in jobs]
        for done in as_completed(running):
            results.append(done.result())
            _write(args.out, results[-1])
    for arm in dict.fromkeys(r["arm"] for r in results):
        _write(args.out, _mean(arm, [r for r in results if r["arm"] == arm and "metrics" in r]))


def _one(arm: str, data: str, seed: int, device: str) -> dict[str, object]:
    from lexrec.data.dataset import Dataset
    from lexrec.evaluation.evaluate import EvaluationConfig, evaluate
    from lexrec.training.train import train

    name, _, words = arm.partition(":")
    recipe, *overrides = words.replace("{seed}", str(seed)).split()
    folder = Path(tempfile.mkdtemp(prefix="lexrec-seeds-"))
    dataset = Dataset.load(data)
    try:
        run = train(
            recipe,
            data=dataset,
            out=folder / "run",
            overrides=[*overrides, f"train.seed={seed}"],
            device=device,
            track=(),
        )
        scorer = run.scorer("cuda" if device == "auto" else device)
        tested = {rule: evaluate(scorer, dataset, EvaluationConfig(seen=rule), light=True) for rule in SEEN}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = {
        label: {key: round(tested[rule].metrics[key], 5) for key in SHOWN} for rule, label in SEEN.items()
    }
    return {"arm": name, "recipe": words.strip(), "seed": seed, **run.summary, **found}


def _spawn(arm: str, seed: int, data: str, device: str) -> dict[str, object]:
    command = [sys.executable, __file__, "--one", arm, "--arm", arm, "--data", data, "--out", "-"]
    command += ["--first-seed", str(seed), "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"arm": arm.partition(":")[0], "seed": seed, "error": done.stderr[-300:]}
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def _mean(arm: str, runs: list[dict[str, object]]) -> dict[str, object]:
    summary: dict[str, object] = {"arm": arm, "seeds": len(runs)}
    for key in SHOWN:
        values = [run["metrics"][key] for run in runs]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            summary[key] = [round(statistics.mean(values), 5), round(spread, 5)]
    return summary


def _write(path: Path, value: dict[str, object]) -> None:
    line = json.dumps(value)
    print(line, flush=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    main()
