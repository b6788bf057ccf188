"""One measurement of `lexrec bench` in a process of its own; prints one JSON value.

    python -m lexrec.serving._bench_worker training|evaluation|recommending ORDER

Dimension key: B histories.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lexrec.config import RunConfig
from lexrec.data.dataset import TEST, VALIDATION, Dataset
from lexrec.errors import LexrecError
from lexrec.evaluation.evaluate import EvaluationConfig
from lexrec.evaluation.events import Split
from lexrec.run_dir import RunDir
from lexrec.serving._machine import peak_mib
from lexrec.serving.bench import endless
from lexrec.serving.recommender import Recommender
from lexrec.training.checkpoint import Progressed
from lexrec.training.evaluate_run import evaluate
from lexrec.training.train import train

_WARM_STEPS = {"cpu": 3, "cuda": 10}
"""First steps set libraries up; on a GPU, graphs are captured."""
_LOOK_EVERY = {"cpu": 1, "cuda": 8}
"""Steps between two looks at the clock; on a GPU each waits for the device."""
_WARM_CALLS = 5
_K = 20
_TOGETHER = 256
_MOST_EVENTS = 20_000
"""Evaluation events that are ranked, at most."""


class _Enough(Exception):  # noqa: N818
    """The clock has run out."""


class _Clock:
    """A tracker that ends a training after so many seconds."""

    def __init__(self, seconds: float, device: torch.device) -> None:
        self._seconds, self._device = seconds, device
        self._n_warm, self._every = _WARM_STEPS[device.type], _LOOK_EVERY[device.type]
        self._began = self.elapsed = 0.0
        self.n_steps = self.n_items = 0

    def begin(self, n_steps: int, at: Progressed) -> None:
        pass

    def step(self, at: Progressed, loss: Tensor, n_items: int) -> None:
        if at.step < self._n_warm:
            return
        if at.step > self._n_warm:
            self.n_steps, self.n_items = self.n_steps + 1, self.n_items + n_items
        if (at.step - self._n_warm) % self._every == 0:
            self._look()

    def validated(self, at: Progressed, metrics: dict[str, float], is_best: bool) -> None:
        pass

    def end(self) -> None:
        pass

    def _look(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if self.n_steps == 0:
            self._began = time.perf_counter()
            return
        self.elapsed = time.perf_counter() - self._began
        if self.elapsed >= self._seconds:
            raise _Enough


def training(order: dict[str, Any]) -> dict[str, Any]:
    """Optimizer steps as `lexrec train` takes them, batch making included."""
    run = RunDir.open(order["run"])
    assert isinstance(run.config, RunConfig)
    clock = _Clock(order["seconds"], torch.device(order["device"]))
    with suppress(_Enough):
        train(
            endless(run.config), data=run.dataset(), out=order["out"], device=order["device"], track=(clock,)
        )
    n_steps, elapsed = clock.n_steps, clock.elapsed
    return {
        "targets_per_s": round(clock.n_items / elapsed, 1),
        "step_ms": round(elapsed / n_steps * 1e3, 3),
        "steps": n_steps,
        **_memory(order),
    }


def evaluation(order: dict[str, Any]) -> dict[str, Any] | None:
    """`lexrec.evaluate` of the test events, or the validation events where there are no others."""
    run = RunDir.open(order["run"])
    split = _measurable(run.dataset())
    if split is None:
        return None
    before = time.perf_counter()
    result = evaluate(
        run, split=split, settings=EvaluationConfig(sample=_MOST_EVENTS), device=order["device"]
    )
    took = time.perf_counter() - before
    n = result.protocol.n_events
    return {"users_per_s": round(n / took, 1), "events": n, "seconds": round(took, 3), **_memory(order)}


def recommending(order: dict[str, Any]) -> dict[str, Any]:
    """`Recommender.recommend`, one history at a time and many, drawn from the data set."""
    recommender = Recommender.load(order["run"], device=order["device"])
    histories = _histories(recommender)
    at = 0

    def one() -> None:
        nonlocal at
        recommender.recommend([histories[at % len(histories)]], _K)
        at += 1

    one_ms = _call_ms(one, order["seconds"] / 2)
    many_ms = _call_ms(lambda: recommender.recommend(histories, _K), order["seconds"] / 2)
    return {
        "one_ms": one_ms,
        "histories_per_s": round(len(histories) / many_ms["p50"] * 1e3, 1),
        "together": len(histories),
        "median_history": int(statistics.median(len(history) for history in histories)),
        **_memory(order),
    }


def _measurable(dataset: Dataset) -> Split | None:
    splits = np.unique(np.asarray(dataset.split_N))
    if TEST in splits:
        return "test"
    return "validation" if VALIDATION in splits else None


def _histories(recommender: Recommender) -> list[Sequence[Any]]:
    dataset = recommender.dataset
    drawn = np.random.default_rng(0).integers(0, dataset.n_users, _TOGETHER)
    bounds = zip(dataset.offset_U[drawn], dataset.offset_U[drawn + 1], strict=True)
    return [recommender.items.take(dataset.item_N[first:last]) for first, last in bounds]


def _call_ms(call: Callable[[], object], seconds: float) -> dict[str, float]:
    """Milliseconds of a call: median and 99th percentile of as many as fit into `seconds`."""
    for _ in range(_WARM_CALLS):
        call()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        before = time.perf_counter()
        call()
        taken.append((time.perf_counter() - before) * 1e3)
    p50, p99 = np.percentile(taken, [50, 99])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3), "calls": len(taken)}


def _memory(order: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "peak_mib": round(peak_mib(), 1)}
    if order["device"].startswith("cuda"):
        found["gpu_peak_mib"] = round(torch.cuda.max_memory_allocated(order["device"]) / 2**20, 1)
    return found


_QUESTIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "training": training,
    "evaluation": evaluation,
    "recommending": recommending,
}


def main(question: str, order: dict[str, Any]) -> int:
    """Answer one question; the exit code."""
    # A component `module:Class` may lie where the command is run.
    sys.path.append(str(Path.cwd()))
    try:
        print(json.dumps(_QUESTIONS[question](order)))  # noqa: T201
    except LexrecError as error:
        print(f"lexrec: error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], json.loads(sys.argv[2])))
