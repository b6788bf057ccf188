"""GPU kernels where there is no GPU: Triton's interpreter runs them on a CPU (see tests/conftest.py)."""

import importlib
import os
from collections.abc import Callable
from types import ModuleType

import pytest

Interpreted = Callable[[str], ModuleType]


@pytest.fixture
def interpreted() -> Interpreted:
    """A module of lexrec.kernels whose kernels are interpreted."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("here kernels are compiled: their tests on a GPU say what these would")
    return lambda name: importlib.import_module(f"lexrec.kernels.{name}")
