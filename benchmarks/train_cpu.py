"""What does a training step cost on a CPU, and where does its time go? One JSON line.

    python benchmarks/train_cpu.py --data data/beauty --loss ce,bce --threads 2 [section.key=value ...]

The setting is that of the peers: SASRec of 2 blocks, width 64, 2 heads, length 50, batch 128. Steps are those
of `lexrec train`, batch making included, on the data set's own histories. Each loss is measured in processes
of its own, `--rounds` of them, losses taking turns; figures are those of all rounds together: ms a step
(median, tenth and ninetieth percentile), CPU ms a step, targets/s at the median, peak memory of the process,
and seconds from its start to the end of its first step. `--profile` adds the operations that take most.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.machine import here_and_now

PEERS = ("train.batch_size=128", "model.ffn_factor=1", "model.activation=relu")
_WARM = 10
_SHOWN = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="a prepared data set")
    parser.add_argument("--loss", default="ce,bce")
    parser.add_argument("--steps", type=int, default=100, help="timed in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args)))
        return
    losses = args.loss.split(",")
    rounds = [{loss: in_a_process(args, loss) for loss in losses} for _ in range(args.rounds)]
    results = {loss: together([one[loss] for one in rounds]) for loss in losses}
    print(json.dumps({"question": "train_cpu", **vars(args), **here_and_now(), "results": results}))


def in_a_process(args: argparse.Namespace, loss: str) -> dict[str, Any]:
    """One round of one loss."""
    options = [
        "--data",
        args.data,
        "--loss",
        loss,
        "--steps",
        str(args.steps),
        "--threads",
        str(args.threads),
    ]
    profile = ["--profile"] if args.profile else []
    command = [sys.executable, __file__, "--worker", *options, *profile, *args.overrides]
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ  # As the command line has it.
    began = time.time()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"start_s": found["first_step_at"] - began}


def together(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of all rounds."""
    ms = sorted(one for found in rounds for one in found["ms"])
    tenth, *_, ninetieth = statistics.quantiles(ms, n=10)
    middle = statistics.median(ms)
    return {
        "step_ms": round(middle, 3),
        "step_ms_p10": round(tenth, 3),
        "step_ms_p90": round(ninetieth, 3),
        "step_ms_rounds": [round(statistics.median(found["ms"]), 3) for found in rounds],
        "step_cpu_ms": round(statistics.median(found["cpu_ms"] for found in rounds), 3),
        "targets_per_s": round(rounds[0]["targets"] / middle * 1e3, 1),
        "peak_mib": round(max(found["peak_mib"] for found in rounds), 1),
        "start_s": round(statistics.median(found["start_s"] for found in rounds), 2),
        **({"profile": rounds[0]["profile"]} if "profile" in rounds[0] else {}),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Steps of one loss in this process."""
    import torch

    from lexrec.serving._machine import peak_mib
    from lexrec.training.allocator import keep_memory

    torch.set_num_threads(args.threads)
    keep_memory()
    runner, targets = runner_of(args)
    runner.run(0)
    found: dict[str, Any] = {"first_step_at": time.time(), "targets": targets, "ms": []}
    for i in range(1, _WARM):
        runner.run(i)
    cpu = time.process_time()
    for i in range(args.steps):
        began = time.perf_counter()
        runner.run((_WARM + i) % n_full(runner))
        found["ms"].append((time.perf_counter() - began) * 1e3)
    found["cpu_ms"] = (time.process_time() - cpu) / args.steps * 1e3
    found["peak_mib"] = peak_mib()
    if args.profile:
        found["profile"] = profile(runner)
    return found


def runner_of(args: argparse.Namespace) -> tuple[Any, float]:
    """What runs steps on the data set, and the targets of an average batch."""
    import torch

    from lexrec.config import RunConfig, load_recipe
    from lexrec.data.dataset import Dataset
    from lexrec.data.stream import build_epoch
    from lexrec.data.windows import Samples
    from lexrec.training.optimizer import build_optimizer
    from lexrec.training.runner import EagerRunner, Update
    from lexrec.training.train import build_step

    config = load_recipe("sasrec", [*PEERS, f"objective.loss={args.loss}", *args.overrides])
    assert isinstance(config, RunConfig)
    dataset, device = Dataset.load(args.data), torch.device("cpu")
    step = build_step(config, dataset, ())
    max_len, extra = step.model.max_len, step.objective.extra_events
    samples = Samples.of(dataset, step.objective.sampling, max_len, extra)
    epoch = build_epoch(dataset, samples, max_len + extra, config.train.batch_size, device)
    samples.fill(epoch, seed=0, number=0)
    update = Update(step.train(), build_optimizer(step, config.train), torch.Generator(), config.train)
    return EagerRunner(update, epoch), epoch.n_items / len(epoch)


def n_full(runner: Any) -> int:
    """Batches of the epoch that are full: all but the last."""
    return len(runner._epoch) - 1


def profile(runner: Any, n_steps: int = 20) -> dict[str, float]:
    """Milliseconds a step of the operations that take most, the profiler's own cost included."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    with watch(activities=[ProfilerActivity.CPU]) as watched:
        for i in range(n_steps):
            runner.run(i)
    events = sorted(watched.key_averages(), key=lambda event: -event.self_cpu_time_total)
    return {event.key: round(event.self_cpu_time_total / n_steps / 1e3, 3) for event in events[:_SHOWN]}


if __name__ == "__main__":
    main()
