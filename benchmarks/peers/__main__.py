"""`python -m benchmarks.peers setup | run`; see the package for what it does."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, here_and_now
from benchmarks.peers.ratios import FIGURES, ratios
from benchmarks.peers.setting import Setting

HERE = Path(__file__).parent
LOSSES = {"recbole": ("ce",), "rectools": ("ce", "bce"), "replay": ("ce", "bce")}
"""The libraries, and the losses that each has."""
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
"""glibc's allocator keeps what it once had: fewer page faults for twice the memory."""
_SLOWED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Set on some machines for old builds of OpenBLAS; they slow NumPy down."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    home: Path
    data: Path
    peers: tuple[str, ...]
    questions: tuple[str, ...]
    losses: tuple[str, ...]
    repetitions: int
    seconds: float
    threads: int
    is_tuned: bool


def setup(home: Path, peers: Sequence[str]) -> None:
    """An environment for each library, from its pinned requirements."""
    for peer in peers:
        subprocess.run([sys.executable, "-m", "venv", home / peer], check=True)
        pip = [home / peer / "bin" / "pip", "install", "--quiet", "-r", HERE / f"{peer}.txt"]
        subprocess.run(pip, check=True)


def run(plan: Plan) -> Iterator[dict[str, Any]]:
    """Measure in turns: a library, lexrec, the next library, lexrec, ..., over and over."""
    here, setting = here_and_now(), Setting(is_tuned=plan.is_tuned)
    if "train" not in plan.questions or "ce" not in plan.losses:
        # What is asked of a trained model does not depend on how long it was trained.
        for peer in ("lexrec", *plan.peers):
            _ask(plan, peer, "train", setting, 0.0)
    for repetition, question, loss, peer in _turns(plan):
        for who in (peer, "lexrec"):
            found = _ask(plan, who, question, replace(setting, loss=loss), plan.seconds)
            label = {"question": question, "loss": loss, "peer": who, "repetition": repetition}
            beside = {"beside": peer} if who == "lexrec" else {}
            where = {"data": plan.data.name, "threads": plan.threads, "tuned": plan.is_tuned}
            yield label | beside | found | where | {"machine": here}


def _turns(plan: Plan) -> Iterator[tuple[int, str, str, str]]:
    """Repetition, question, loss and library of each pair; whoever stops early has asked everything."""
    for repetition in range(plan.repetitions):
        for question in plan.questions:
            for loss in plan.losses if question == "train" else ("ce",):
                for peer in plan.peers:
                    if loss in LOSSES[peer]:
                        yield repetition, question, loss, peer


def _ask(plan: Plan, peer: str, question: str, setting: Setting, seconds: float) -> dict[str, Any]:
    python = sys.executable if peer == "lexrec" else str(plan.home / peer / "bin" / "python")
    work = plan.home / "work" / f"{peer}-{setting.loss}"
    command = [python, "-m", "benchmarks.peers.worker", peer, question, "--setting", setting.dump()]
    command += ["--data", str(plan.data), "--work", str(work), "--seconds", str(seconds)]
    environment = {key: value for key, value in os.environ.items() if key not in _SLOWED}
    # Threads that wait must not take the cores of others on the machine.
    environment |= {"OMP_NUM_THREADS": str(plan.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    if plan.is_tuned and peer != "lexrec":
        environment |= TUNED
    load = round(os.getloadavg()[0], 2)
    began = time.perf_counter()
    with (
        (plan.home / f"{peer}.log").open("wb") as log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log) as worker,
    ):
        assert worker.stdout is not None
        line = worker.stdout.readline()
        wall = time.perf_counter() - began
    if not line:
        raise SystemExit(f"{peer} {question}: exit code {worker.returncode}; see {plan.home / f'{peer}.log'}")
    found: dict[str, Any] = json.loads(line)
    return {**found, "wall_s": round(wall, 3), "load": load}


def _print(lines: Sequence[dict[str, Any]]) -> None:
    print(
        f"{'question':10}{'loss':5}{'figure':18}{'peer':10}{'theirs':>10}{'ours':>10}  times better (range)"
    )
    for r in ratios(lines):
        spread = f"{r.median:.2f} ({r.pairs[0]:.2f} to {r.pairs[-1]:.2f})"
        print(f"{r.question:10}{r.loss:5}{r.figure:18}{r.peer:10}{r.theirs:>10.5g}{r.ours:>10.5g}  {spread}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("do", choices=["setup", "run"])
    parser.add_argument("--home", type=Path, required=True, help="where the environments are")
    parser.add_argument("--peers", default=",".join(LOSSES), help="default: all")
    parser.add_argument("--data", type=Path, help="a prepared data set, split leave-one-out")
    parser.add_argument("--out", type=Path, help="a file that gets one JSON line a run")
    parser.add_argument("--questions", default=",".join(FIGURES), help="default: all")
    parser.add_argument("--losses", default="ce,bce", help="of the question train")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15, help="processor seconds of a training")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of a process (all cores)")
    parser.add_argument("--tuned", action="store_true", help="the libraries with what speeds them up")
    args = parser.parse_args()
    peers = tuple(args.peers.split(","))
    if args.do == "setup":
        setup(args.home, peers)
        return
    if args.data is None or args.out is None:
        parser.error("run needs --data and --out")
    plan = Plan(
        args.home.resolve(),
        args.data.resolve(),
        peers,
        tuple(args.questions.split(",")),
        tuple(args.losses.split(",")),
        args.repetitions,
        args.seconds,
        args.threads,
        args.tuned,
    )
    lines = []
    for line in run(plan):
        lines.append(line)
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps({key: line[key] for key in line if key != "machine"}), file=sys.stderr, flush=True)
    _print(lines)


if __name__ == "__main__":
    main()
