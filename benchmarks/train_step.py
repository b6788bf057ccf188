"""How long does one training step take, batch making included? One JSON line.

    python benchmarks/train_step.py --recipe sasrec --batch 128,1024 --loss ce,bce --mode eager,graph,compiled

Rows are synthetic and full: each of `--length` positions has a target, items are uniform. A step cuts its
batch, prepares targets, and runs forward, backward and optimizer. The epoch is timed as a whole, `--rounds`
times for each setting, settings taking turns; ms and positions/s are medians, with the quickest and slowest
round beside them. Modes: eager, call by call; graph, one CUDA graph a step; compiled, that graph of a
compiled forward and backward pass (LEXREC_COMPILE=1). Without a GPU there is eager alone.

`--kernels 30` adds what one step is made of: the thirty kernels that take longest, with microseconds and
launches a step, and the sums over all kernels.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity

from benchmarks.machine import here_and_now
from lexrec.config import RunConfig, load_recipe
from lexrec.data.dataset import Dataset
from lexrec.data.windows import Epoch, Samples, Windows
from lexrec.item_encoders.base import Catalogue
from lexrec.models import build_model, model_width
from lexrec.registry import load
from lexrec.tokens.table import TokenTable
from lexrec.training.optimizer import build_optimizer
from lexrec.training.runner import COMPILE, EAGER, Runner, Update, build_runner
from lexrec.training.step import Step


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recipe", default="sasrec")
    parser.add_argument("--batch", default="128,1024" if on_gpu else "32,128")
    parser.add_argument("--loss", default="ce,bce")
    parser.add_argument("--mode", default="eager,graph" if on_gpu else "eager")
    parser.add_argument("--items", type=int, default=10_445 if on_gpu else 2_000)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--steps", type=int, default=100 if on_gpu else 4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--kernels", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if on_gpu else "cpu")
    settings = [
        Setting(args, mode, loss, int(batch), device)
        for batch in args.batch.split(",")
        for loss in args.loss.split(",")
        for mode in args.mode.split(",")
    ]
    for _ in range(args.rounds):
        for setting in settings:
            setting.measure()
    for setting in settings if args.kernels else ():
        setting.profile(args.kernels)
    here = {**here_and_now(), "threads": torch.get_num_threads()}
    print(json.dumps({**vars(args), **here, "results": [one.result() for one in settings]}))


class Setting:
    """One combination of mode, loss and batch size, and the rounds it has been timed for."""

    def __init__(
        self, args: argparse.Namespace, mode: str, loss: str, batch: int, device: torch.device
    ) -> None:
        os.environ[EAGER] = "1" if mode == "eager" else "0"
        os.environ[COMPILE] = "1" if mode == "compiled" else "0"
        self.named = {"mode": mode, "loss": loss, "batch": batch}
        self.device, self.n_steps, self.n_positions = device, args.steps, batch * args.length
        overrides = [f"model.max_len={args.length}", f"train.batch_size={batch}", f"objective.loss={loss}"]
        config = load_recipe(args.recipe, [*overrides, *args.overrides])
        assert isinstance(config, RunConfig)
        self.runner, _ = runner_of(config, full_rows(args.items, args.length, batch * args.steps), device)
        self.ms: list[float] = []
        self.peak_MiB: float | None = None
        self.kernels: dict[str, Any] = {}
        began = time.monotonic()
        self._epoch()
        self.first_seconds = time.monotonic() - began

    def measure(self) -> None:
        began = time.perf_counter()
        self._epoch()
        self.ms.append((time.perf_counter() - began) / self.n_steps * 1000)

    def result(self) -> dict[str, Any]:
        ms = statistics.median(self.ms)
        return {
            **self.named,
            "ms": round(ms, 4),
            "ms_spread": [round(min(self.ms), 4), round(max(self.ms), 4)],
            "positions_per_s": round(self.n_positions / ms * 1000),
            "first_epoch_s": round(self.first_seconds, 2),
            "peak_MiB": self.peak_MiB,
            **self.kernels,
        }

    def profile(self, n_kernels: int) -> None:
        """What an epoch's time goes to: kernels on a GPU, operations without one."""
        on_gpu = self.device.type == "cuda"
        activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
        with torch.profiler.profile(activities=[activity]) as profiler:
            self._epoch()
        found = sorted(
            (
                (one.self_device_time_total if on_gpu else one.self_cpu_time_total, one.count, one.key)
                for one in profiler.key_averages()
            ),
            reverse=True,
        )
        self.kernels = {
            "kernels_us": round(sum(us for us, _, _ in found) / self.n_steps, 1),
            "n_kernels": round(sum(count for _, count, _ in found) / self.n_steps, 1),
            "kernels": [
                {"us": round(us / self.n_steps, 2), "n": round(count / self.n_steps, 1), "name": name[:100]}
                for us, count, name in found[:n_kernels]
            ],
        }

    def _epoch(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with self.runner.epoch(0):
            for i in range(self.n_steps):
                self.runner.run(i)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            self.peak_MiB = self.peak_MiB or round(torch.cuda.max_memory_allocated() / 2**20)


def full_rows(n_items: int, length: int, n_users: int) -> Dataset:
    """Users of length + 1 training events each, items uniform."""
    item_N = np.random.default_rng(0).integers(1, n_items + 1, n_users * (length + 1), dtype=np.int32)
    offset_U = np.arange(n_users + 1, dtype=np.int64) * (length + 1)
    manifest = {"n_items": n_items, "fingerprint": "synthetic"}
    return Dataset(item_N, offset_U, np.zeros(len(item_N), dtype=np.uint8), None, manifest)


def runner_of(
    config: RunConfig, dataset: Dataset, device: torch.device, tables: Sequence[TokenTable] = ()
) -> tuple[Runner, int]:
    """What the trainer builds, without a run directory, and how many batches it can take."""
    torch.manual_seed(0)
    catalogue = Catalogue(dataset.n_items, model_width(config), tuple(tables))
    objective = load("objectives", config.objective.name)  # type: ignore[attr-defined]
    step = Step(build_model(config, catalogue), objective(config.objective, dataset.n_items)).to(device)
    step.train()
    max_len, extra = step.model.max_len, step.objective.extra_events
    samples = Samples.of(dataset, step.objective.sampling, max_len, extra)
    batch_size = config.train.batch_size
    epoch = Epoch(Windows(dataset, max_len + extra, device), samples.n_batches(batch_size), batch_size)
    samples.fill(epoch, seed=0, number=0)
    generator = torch.Generator(device).manual_seed(0)
    update = Update(step, build_optimizer(step, config.train), generator, config.train)
    return build_runner(update, epoch), len(epoch)


if __name__ == "__main__":
    main()
