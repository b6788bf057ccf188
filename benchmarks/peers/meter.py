"""Clocks and memory. Needs the standard library alone."""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

_WARM_STEPS = 2
_WARM_CALLS = 3
_FEWEST_CALLS = 5


def peak_mib() -> float:
    """Most memory this process has had so far, code and libraries included, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


class StepMeter:
    """Told of every optimizer step; says when there have been enough."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        """Of the processor: what others do on the machine does not make a run shorter."""
        self.parameters = 0
        """To be set by the adapter: trained numbers of the model."""
        self._wall: list[float] = []
        self._cpu: list[float] = []
        self._targets: list[float] = []

    def step(self, n_targets: float) -> None:
        """One step is done, that trained so many targets: next items that were to be predicted."""
        self._wall.append(time.perf_counter())
        self._cpu.append(time.process_time())
        self._targets.append(n_targets)

    @property
    def is_over(self) -> bool:
        return len(self._cpu) > _WARM_STEPS + 2 and self._cpu[-1] - self._cpu[_WARM_STEPS] > self.seconds

    def figures(self) -> dict[str, float]:
        """Over all steps but the first few, batch making included."""
        wall, cpu = self._wall[_WARM_STEPS:], self._cpu[_WARM_STEPS:]
        n_targets, n_steps = sum(self._targets[_WARM_STEPS + 1 :]), len(wall) - 1
        each = [after - before for before, after in pairwise(wall)]
        return {
            "targets_per_s": round(n_targets / (wall[-1] - wall[0]), 1),
            "targets_per_cpu_s": round(n_targets / (cpu[-1] - cpu[0]), 1),
            "step_ms": round(statistics.median(each) * 1e3, 2),
            "targets_per_step": round(n_targets / n_steps, 1),
            "steps": n_steps,
            "parameters": self.parameters,
        }


def call_ms(call: Callable[[], object], seconds: float) -> dict[str, float]:
    """Milliseconds of one call: median, 10th and 99th percentile of as many as fit into `seconds`.

    `cpu` is the mean of the processor's time, which other processes disturb least.
    """
    for _ in range(_WARM_CALLS):
        call()
    taken: list[float] = []
    began = time.process_time()
    while len(taken) < _FEWEST_CALLS or time.process_time() - began < seconds:
        before = time.perf_counter()
        call()
        taken.append((time.perf_counter() - before) * 1e3)
    cpu_ms = (time.process_time() - began) * 1e3 / len(taken)
    taken.sort()
    return {
        "p50": round(statistics.median(taken), 3),
        "p10": round(taken[len(taken) // 10], 3),
        "p99": round(taken[int(len(taken) * 0.99)], 3),
        "cpu": round(cpu_ms, 3),
        "calls": len(taken),
    }
