"""`lexrec bench`: how fast this machine is with a recipe and a data set.

    data + recipe -> an untrained run -> training | evaluation | recommending | start

Each of the four is measured in a process of its own, so that its peak memory is its own too. Speed does not
depend on what a model has learned, so nothing is trained to the end.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lexrec.config import AnyRunConfig, RunConfig, load_recipe
from lexrec.data.dataset import Dataset
from lexrec.errors import ConfigError, RunError
from lexrec.run_dir import RunDir
from lexrec.serving._machine import machine
from lexrec.training.device import choose_device
from lexrec.training.train import train

_STARTS = 3
_WORKER = "lexrec.serving._bench_worker"


def bench(
    recipe: str | Path,
    *,
    data: str | Path,
    overrides: Sequence[str] = (),
    device: str = "auto",
    seconds: float = 10.0,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure a recipe on a data set, on this machine.

    Of a recipe in two rounds, the first without its consensus is measured.

    Args:
        recipe: a shipped recipe's name, or the path of a YAML file.
        data: a prepared folder.
        overrides: `a.b=value`, as for `train`.
        device: auto, cpu, cuda or cuda:N; for recommending too.
        seconds: how long each measurement goes on after its warm-up.
        say: told what is being done.

    Returns:
        machine, data, recipe, parameters, and by question: `training` (targets_per_s: items that the model
        reads to predict the next one; epoch_s; None for a counted baseline), `evaluation` (users_per_s; None
        without evaluation events), `recommending` (one_ms: milliseconds of one history, p50 and p99;
        histories_per_s: of `together` at a time) and `start` (seconds from the command to its answer).
        Memory in MiB: `peak_mib` of the process, `gpu_peak_mib` of the GPU.

    Raises:
        ConfigError: the recipe, the device or `seconds` is wrong.
        DataError: the data set is missing or damaged.
        RunError: a measurement failed.
    """
    if seconds <= 0:
        raise ConfigError(f"seconds is above 0, got {seconds}")
    config = _one_round(load_recipe(recipe, overrides))
    dataset, where = Dataset.load(data), str(choose_device(device))
    with tempfile.TemporaryDirectory(prefix="lexrec-bench-") as folder:
        say("building the model")
        bare = _lasting(config, 0) if isinstance(config, RunConfig) else config
        run = train(bare, data=dataset, out=Path(folder) / "run", device=where, track=())
        card = run.dataset_card
        order = {"run": str(run.path), "out": f"{folder}/endless", "device": where, "seconds": seconds}
        found: dict[str, Any] = {"parameters": run.summary.get("parameters")}
        for question in ("training", "evaluation", "recommending"):
            found[question] = None
            if question != "training" or isinstance(config, RunConfig):
                say(question)
                found[question] = _ask(question, order)
        say("start")
        found["start"] = {"seconds": _start(run, dataset, where)}
    return {
        "machine": machine() | {"device": where},
        "data": {key: card[key] for key in ("fingerprint", "n_users", "n_items", "n_events")},
        "recipe": " ".join(map(str, [recipe, *overrides])),
        **found,
    }


def endless(config: RunConfig) -> RunConfig:
    """The same training without an end and without validations in between."""
    return _lasting(config, 1_000_000)


def _lasting(config: RunConfig, n_epochs: int) -> RunConfig:
    changes = {"max_epochs": n_epochs, "max_steps": None, "evaluate_every": max(1, n_epochs)}
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def _one_round(config: AnyRunConfig) -> AnyRunConfig:
    if not isinstance(config, RunConfig) or config.rounds is None:
        return config
    items = config.item_encoder.model_copy(update={"consensus": None})
    return config.model_copy(update={"rounds": None, "item_encoder": items})


def _ask(question: str, order: dict[str, Any]) -> dict[str, Any] | None:
    done = _process("-m", _WORKER, question, json.dumps(order))
    found: dict[str, Any] | None = json.loads(done.stdout)
    return found


def _start(run: RunDir, dataset: Dataset, device: str) -> float:
    """Seconds of `lexrec recommend` for one history, the median of a few."""
    first, last = dataset.offset_U[:2]
    ids = ",".join(map(str, run.items.take(dataset.item_N[first:last])))
    words = ["-m", "lexrec.commands", "recommend", str(run.path), "--history", ids, "-k", "20"]
    taken = []
    for _ in range(_STARTS):
        before = time.perf_counter()
        _process(*words, "--device", device, "--json")
        taken.append(time.perf_counter() - before)
    return round(statistics.median(taken), 3)


def _process(*words: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-P", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise RunError(f"bench: a measurement failed: {said[-1].removeprefix('lexrec: error: ')}")
    return done
