"""Where and on what a figure was made: part of every line that a benchmark writes."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lexrec.serving.bench import machine

ROOT = Path(__file__).resolve().parents[1]


def here_and_now() -> dict[str, Any]:
    """The machine, the commit of lexrec (`+` where its files differ from it), and the time."""
    head = _git("rev-parse", "--short", "HEAD")
    changed = "+" if head and _git("status", "--porcelain", "lexrec") else ""
    return {**machine(), "commit": head + changed, "at": datetime.now(UTC).isoformat(timespec="seconds")}


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip()
