"""What every test may use: where things are, when to skip, and how to run the command line."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("LEXREC_SHARED", ROOT.parent / "shared"))

# No test is timed, and one run finds what the next one finds.
settings.register_profile("lexrec", deadline=None, derandomize=True, database=None)
settings.load_profile("lexrec")

if shutil.which("nvidia-smi") is None:
    # Triton reads it once, when it is first imported: its interpreter then runs GPU kernels on a CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("shared") and not (SHARED / "data").is_dir():
        pytest.skip(f"no development data at {SHARED}; name its place with LEXREC_SHARED")
    if item.get_closest_marker("network") and os.environ.get("LEXREC_OFFLINE", "0") not in ("", "0"):
        pytest.skip("LEXREC_OFFLINE is set")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no GPU")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The development data's folder; for tests marked `shared`."""
    return SHARED


@pytest.fixture
def python(tmp_path: Path) -> Run:
    """Runs `python ARGS...` on this checkout in a fresh process, in an empty folder, output captured."""

    def run(*words: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def lexrec(python: Run) -> Run:
    """Runs `lexrec ARGS...` in a fresh process, in an empty folder, output captured."""

    def run(*words: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
        return python("-m", "lexrec.commands", *words, **environment)

    return run
