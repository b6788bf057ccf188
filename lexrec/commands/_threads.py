"""Threads of a command: no more than it may use, and asleep while they wait for work.

Both are settings of OpenMP, read once when PyTorch is loaded; what the environment already says stays.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""A container's share of the processor, in microseconds of every so many: `200000 100000` or `max 100000`."""


def settle_threads(environment: MutableMapping[str, str] = os.environ, quota: Path = _QUOTA) -> None:
    """Set the number of threads where a container has fewer processors than the machine, and how they wait.

    A thread that spins takes the core from the one it waits for as soon as there are more threads than cores:
    on two busy cores a training step was eight times as long.
    """
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    allowed = _allowed(quota)
    if allowed is not None and allowed < (os.cpu_count() or 1):
        environment.setdefault("OMP_NUM_THREADS", str(allowed))


def _allowed(quota: Path) -> int | None:
    """Whole processors that a container may use, one at least; None: all there are."""
    try:
        share, period = quota.read_text(encoding="ascii").split()
        return None if share == "max" else max(1, int(share) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None
