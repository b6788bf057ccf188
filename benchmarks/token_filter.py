"""What does MLTFR add to a training step of its backbone? One JSON line.

    python benchmarks/token_filter.py [--data data/beauty] [--arms plain,sequence,prefix,six] [--mode graph]

Arms: the backbone alone; with the four tables of the paper (3 x 32100 x 768 and 32000 x 4096), interest by
the whole row or by each prefix; with the six tables of its figure 3. Tables hold noise of these shapes, which
costs what real ones cost. Rows are synthetic and full, or with `--data` those of a prepared data set. A step
cuts its batch, prepares targets, and runs forward, backward and optimizer, as one CUDA graph or call by call
(a CPU: call by call, on small tables). Arms take turns; ms are medians over rounds with the quickest and
slowest beside them, `ratio` is to the plain arm of the same mode, and the peak is that of the first step.
"""

import argparse
import json
import os
import statistics
import sys
import time
from typing import Any

import torch

from benchmarks.machine import here_and_now
from benchmarks.train_step import full_rows, runner_of
from lexrec.config import RunConfig, load_recipe
from lexrec.data.dataset import Dataset
from lexrec.tokens.table import TokenTable
from lexrec.training.runner import EAGER

FOUR = [(32000, 4096), (32100, 768), (32100, 768), (32100, 768)]
SIX = [(32000, 4096), (30522, 768), (32100, 768), (32100, 768), (50257, 768), (151936, 1024)]
ARMS = {
    "plain": ([], []),
    "sequence": (FOUR, ["item_encoder.interest=sequence", "objective.allow_leak=true"]),
    "prefix": (FOUR, ["item_encoder.interest=prefix"]),
    "six": (SIX, ["item_encoder.interest=sequence", "objective.allow_leak=true"]),
}


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--arms", default="plain,sequence,prefix,six" if on_gpu else "plain,sequence,prefix")
    parser.add_argument("--mode", default="eager,graph" if on_gpu else "eager")
    parser.add_argument("--data", default=None, help="a prepared data set; default: full rows of noise")
    parser.add_argument("--items", type=int, default=10_000 if on_gpu else 2_000)
    parser.add_argument("--batch", type=int, default=128 if on_gpu else 16)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--shrink", type=int, default=1 if on_gpu else 16, help="divides the sizes of tables")
    parser.add_argument("--steps", type=int, default=40 if on_gpu else 2)
    parser.add_argument("--rounds", type=int, default=5 if on_gpu else 3)
    parser.add_argument("--profile", action="store_true", help="list the kernels of a step on standard error")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    args = parser.parse_args()
    device = torch.device("cuda" if on_gpu else "cpu")
    arms = [Arm(args, name, mode, device) for mode in args.mode.split(",") for name in args.arms.split(",")]
    for _ in range(args.rounds):
        for arm in arms:
            arm.measure()
    results = [arm.result(arms) for arm in arms]
    here = {**here_and_now(), "threads": torch.get_num_threads()}
    print(json.dumps({**vars(args), **here, "results": results}), flush=True)
    if args.profile:
        for arm in arms:
            arm.profile()


class Arm:
    """One encoder under one way of running steps, and the rounds it has been timed for."""

    def __init__(self, args: argparse.Namespace, name: str, mode: str, device: torch.device) -> None:
        os.environ[EAGER] = "1" if mode == "eager" else "0"
        self.name, self.mode, self.device, self.n_steps = name, mode, device, args.steps
        shapes, overrides = ARMS[name]
        tables = [table(i, V // args.shrink, W // args.shrink, device) for i, (V, W) in enumerate(shapes)]
        recipe = "sasrec_mltfr" if tables else "sasrec"
        if tables:
            names = ",".join(one.name for one in tables)
            overrides = [*overrides, f"item_encoder.tables=[{names}]", f"item_encoder.k={args.k}"]
        train = [f"train.batch_size={args.batch}", "objective.loss=ce", *args.overrides]
        config = load_recipe(recipe, [*overrides, *train])
        assert isinstance(config, RunConfig)
        dataset = Dataset.load(args.data) if args.data else full_rows(args.items, 50, args.batch * args.steps)
        self.runner, self.n_batches = runner_of(config, dataset, device, tables)
        self.ms: list[float] = []
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with self.runner.epoch(0):
            self.runner.run(0)
        self.peak_MiB = None
        if device.type == "cuda":
            self.peak_MiB = round((torch.cuda.max_memory_allocated() - before) / 2**20)
        for _ in range(2):
            self._steps(4)

    def measure(self) -> None:
        began = time.perf_counter()
        self._steps(self.n_steps)
        self.ms.append((time.perf_counter() - began) / self.n_steps * 1000)

    def result(self, arms: list["Arm"]) -> dict[str, Any]:
        ms = statistics.median(self.ms)
        plain = [statistics.median(one.ms) for one in arms if (one.name, one.mode) == ("plain", self.mode)]
        return {
            "arm": self.name,
            "mode": self.mode,
            "ms": round(ms, 4),
            "ms_spread": [round(min(self.ms), 4), round(max(self.ms), 4)],
            "ratio": round(ms / plain[0], 3) if plain else None,
            "step_peak_MiB": self.peak_MiB,
        }

    def profile(self) -> None:
        """Kernels of a step by their time."""
        with torch.profiler.profile() as found:
            self._steps(4)
        key = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        for row in sorted(found.key_averages(), key=lambda row: -getattr(row, key))[:40]:
            us = getattr(row, key) / 4
            print(
                f"{self.name} {self.mode} {us:9.1f} us {row.count / 4:6.1f} x {row.key[:90]}", file=sys.stderr
            )

    def _steps(self, n: int) -> None:
        with self.runner.epoch(0):
            for i in range(n):
                self.runner.run(i % self.n_batches)
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def table(number: int, n_tokens: int, width: int, device: torch.device) -> TokenTable:
    """A table of noise."""
    generator = torch.Generator(device).manual_seed(number)
    weight_VW = torch.randn(n_tokens, width, generator=generator, device=device, dtype=torch.bfloat16)
    tokens = tuple(map(str, range(n_tokens)))
    return TokenTable(f"t{number}", weight_VW, tokens, f"made:{number}", "0", f"{number:064d}", "none")


if __name__ == "__main__":
    main()
