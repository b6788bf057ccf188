"""One run in a process of its own: `python -m lexrec.compare._worker`, the task on the first line of stdin.

Standard input stays open as long as the comparison lives. When it ends, so does this process: a run that
nobody waits for must not write into a folder that the next comparison continues.
"""

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lexrec.config import RunConfig, run_config
from lexrec.errors import LexrecError, RunError

if TYPE_CHECKING:
    from lexrec.data.dataset import Dataset
    from lexrec.training.step import Step


def serve(work: Callable[[dict[str, Any]], None]) -> int:
    """Do the task on standard input, as long as the parent lives; returns the exit code."""
    task: dict[str, Any] = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # As `lexrec` itself does: a component `module:Class` may lie where the command is run.
    sys.path.append(str(Path.cwd()))
    try:
        work(task)
    except LexrecError as error:
        print(f"lexrec: error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def work(task: dict[str, Any]) -> None:
    """Do what of the task is not done yet."""
    from lexrec.data.dataset import Dataset
    from lexrec.evaluation.evaluate import EvaluationConfig
    from lexrec.run_dir import write_json
    from lexrec.training.evaluate_run import evaluate, place
    from lexrec.training.train import build_step, train

    dataset = Dataset.load(task["data"])
    config = run_config(task["config"], source="compare")
    run = train(config, data=dataset, out=task["out"], device=task["device"], resume=True, track=())
    settings = EvaluationConfig.model_validate(task["evaluation"])
    if not (place(run, task["split"], settings) / "metrics.json").is_file():
        if not (run.path / "checkpoints").is_dir():
            raise RunError(
                f"{run.path} was measured under other rules and its weights were not kept; "
                "measure under these rules with another --out"
            )
        evaluate(run, split=task["split"], settings=settings, data=task["data"], device=task["device"])
    if not task["keep_weights"]:
        for folder in (run.path, run.round(1)):
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if task["flops"] and isinstance(config, RunConfig):
        write_json(Path(task["flops"]), _flops(build_step(config, dataset, run.tables()), dataset, config))


def _flops(step: "Step", dataset: "Dataset", config: RunConfig) -> dict[str, Any]:
    from lexrec.compare.flops import count_flops

    try:
        return dict(count_flops(step, dataset, config.train))
    except Exception as error:
        # A model that cannot be counted, on a CPU perhaps, has been measured all the same.
        return {"error": f"not counted: {' '.join(str(error).split())[:200]}"}


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(serve(work))
