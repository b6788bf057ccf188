"""Where and on what a figure was made: part of every line that a benchmark writes."""

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lexrec
from lexrec.serving.bench import machine

ROOT = Path(__file__).resolve().parents[1]


def here_and_now() -> dict[str, Any]:
    """The machine, lexrec's version and commit (`+` where its files differ from it), and the time.

    LEXREC_COMMIT names the commit where the files are no git checkout.
    """
    head = _git("rev-parse", "--short", "HEAD")
    changed = "+" if head and _git("status", "--porcelain", "lexrec") else ""
    return {
        **machine(),
        "lexrec": lexrec.__version__,
        "commit": os.environ.get("LEXREC_COMMIT") or head + changed,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip()
