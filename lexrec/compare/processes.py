"""Runs side by side, each in a process of its own, so that one that fails takes no other with it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lexrec.compare._worker import NOTE

_LOOK_SECONDS = 0.05
_NO_MEMORY = re.compile(
    r"out of memory|allocate memory|\bMemoryError|_ALLOC_FAILED|CUBLAS_STATUS_NOT_INITIALIZED", re.IGNORECASE
)
"""cuBLAS says the last where its workspace finds no room."""


class Task(NamedTuple):
    """What one process does."""

    name: str
    """For messages, such as "sasrec seed 3"."""
    order: dict[str, Any]
    """What the worker is told; its device is added when a slot is free."""
    log: Path
    """Where its standard error goes."""


class Ended(NamedTuple):
    """A task that is over."""

    task: Task
    error: str | None
    """One line on what went wrong; None if it succeeded."""
    notes: tuple[str, ...] = ()
    """What its process wanted known."""
    lacked_memory: bool = False
    """It may succeed where it need not share."""


def side_by_side(tasks: Sequence[Task], devices: Sequence[str]) -> Iterator[Ended]:
    """Work through the tasks, one at a time on each entry of `devices`; yields each as it ends.

    Stopping the iteration, an interrupt included, ends the processes that are still running.
    """
    waiting, free = deque(tasks), deque(devices)
    running: list[tuple[Task, str, subprocess.Popen[bytes]]] = []
    try:
        while waiting or running:
            while waiting and free:
                task, device = waiting.popleft(), free.popleft()
                running.append((task, device, _start(task, device, len(devices))))
            for entry in [entry for entry in running if entry[2].poll() is not None]:
                running.remove(entry)
                task, device, process = entry
                free.append(device)
                close(process)
                yield _ended(task, process.returncode)
            time.sleep(_LOOK_SECONDS)
    finally:
        for _, _, process in running:
            process.kill()
            close(process)


def n_threads(n_processes: int) -> int:
    """Threads for each of several processes that share this machine."""
    return max(1, (os.cpu_count() or 1) // n_processes)


def start(
    module: str, order: dict[str, Any], n_processes: int, log: BinaryIO | None = None
) -> "subprocess.Popen[bytes]":
    """A process that runs `python -m module`, its order on standard input, which is left open.

    Args:
        module: one that ends in `serve(...)` of `_worker`.
        order: what it is told.
        n_processes: how many share this machine.
        log: where its output goes; by default to where this process's goes.
    """
    here = {
        # The worker imports what this process would, from the same places.
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "OMP_NUM_THREADS": str(n_threads(n_processes)),
        # Threads that wait must not take the cores of the other processes.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        env={**here, **os.environ, "PYTHONPATH": here["PYTHONPATH"]},
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
    )
    assert process.stdin is not None
    # One that died at once says why by its exit code and its log.
    with suppress(BrokenPipeError):
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
    return process


def close(process: "subprocess.Popen[bytes]") -> None:
    """Wait for its end and let go of its standard input."""
    process.wait()
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()


def _start(task: Task, device: str, n_processes: int) -> "subprocess.Popen[bytes]":
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("wb") as log:
        return start("lexrec.compare._worker", {**task.order, "device": device}, n_processes, log)


def _ended(task: Task, code: int) -> Ended:
    lines = task.log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    notes = tuple(line.removeprefix(NOTE) for line in said if line.startswith(NOTE))
    if code == 0:
        return Ended(task, None, notes)
    if code < 0:
        # Linux ends what takes the last of the memory by this signal.
        error = f"killed by signal {-code}; see {task.log}"
        return Ended(task, error, notes, lacked_memory=-code == signal.SIGKILL)
    error = said[-1].removeprefix("lexrec: error: ") if said else f"exit code {code}"
    return Ended(task, error, notes, lacked_memory=_NO_MEMORY.search(error) is not None)
