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

from lexrec.config import AnyRunConfig, RunConfig, run_config
from lexrec.errors import DamagedError, LexrecError, RunError

if TYPE_CHECKING:
    from lexrec.data.dataset import Dataset
    from lexrec.run_dir import RunDir
    from lexrec.training.step import Step

NOTE = "lexrec: note: "
"""Before a line of standard error that whoever runs the comparison is to read."""


def serve(work: Callable[[dict[str, Any]], None]) -> int:
    """Do the task on standard input, as long as the parent lives; returns the exit code."""
    task: dict[str, Any] = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # As `lexrec` itself does: a component `module:Class` may lie where the command is run.
    sys.path.append(str(Path.cwd()))
    if str(task.get("device", "")).startswith("cuda:"):
        import torch

        # Else the process also takes up memory on the first GPU, which belongs to others.
        torch.cuda.set_device(task["device"])
    try:
        work(task)
    except LexrecError as error:
        print(f"lexrec: error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def work(task: dict[str, Any]) -> None:
    """Do what of the task is not done yet."""
    from lexrec.data.dataset import Dataset
    from lexrec.run_dir import write_json
    from lexrec.training.rounds import first_config
    from lexrec.training.train import build_step

    dataset, folder = Dataset.load(task["data"]), Path(task["out"])
    config = run_config(task["config"], source="compare")
    try:
        run = _measured(task, config, dataset)
    except DamagedError as error:
        # What another run lacks, such as the one this starts from, does not come back by losing this one.
        if (folder / "evaluations").exists() or not error.path.is_relative_to(folder):
            raise
        aside = folder.with_name(f"{folder.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        print(f"{NOTE}begun anew, for {error}; what was there is in {aside.name}", file=sys.stderr)  # noqa: T201
        run = _measured(task, config, dataset)
    if not task["keep_weights"]:
        for folder in (run.path, run.round(1)):
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    # Of a run that was killed after its evaluation they may be there.
    if task["flops"] and not Path(task["flops"]).is_file() and isinstance(config, RunConfig):
        flops = _flops(build_step(config, dataset, run.tables()), dataset, config)
        if config.first and not isinstance(config.first, str):
            before = first_config(config)
            flops["before"] = _flops(build_step(before, dataset, run.tables()), dataset, before)
        write_json(Path(task["flops"]), flops)


def _measured(task: dict[str, Any], config: AnyRunConfig, dataset: "Dataset") -> "RunDir":
    """The run, trained to its end and measured."""
    from lexrec.evaluation.evaluate import EvaluationConfig
    from lexrec.training.evaluate_run import evaluate, place
    from lexrec.training.train import train

    run = train(config, data=dataset, out=task["out"], device=task["device"], resume=True, track=())
    settings = EvaluationConfig.model_validate(task["evaluation"])
    if (place(run, task["split"], settings) / "metrics.json").is_file():
        return run
    if (run.path / "evaluations").is_dir() and not (run.path / "checkpoints").is_dir():
        raise RunError(
            f"{run.path} was measured under other rules and its weights were not kept; "
            "measure under these rules with another --out"
        )
    evaluate(run, split=task["split"], settings=settings, data=task["data"], device=task["device"])
    return run


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
