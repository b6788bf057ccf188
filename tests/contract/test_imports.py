"""The house rules, over every file of the package; and that each rule catches what it forbids."""

import ast
from pathlib import Path

import pytest

from tests.contract import _house_rules as rules

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "lexrec").rglob("*.py"))
# The front reaches every layer by name only, so it belongs to none.
LAYERED = [file for file in FILES if file != ROOT / "lexrec" / "__init__.py"]


def label(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_there_are_files_to_check():
    assert {"lexrec/errors.py", "lexrec/data/batch.py"} <= {label(file) for file in FILES}


@pytest.mark.parametrize("file", LAYERED, ids=label)
def test_imports_go_one_way(file):
    name = rules.module_name(file, ROOT)
    assert rules.against_the_direction(file.read_text(), name, file.name == "__init__.py") == []


@pytest.mark.parametrize("file", FILES, ids=label)
def test_file_keeps_its_budget_and_loads_no_pickle(file):
    source = file.read_text()
    assert rules.too_big(source, label(file)) == []
    assert rules.pickle_loading(source, label(file)) == []


@pytest.mark.parametrize("file", FILES, ids=label)
def test_file_says_what_it_is_for(file):
    assert ast.get_docstring(ast.parse(file.read_text()))
    assert file.stem not in {"utils", "util", "helpers", "common", "misc"}


HEAVY = {"torch", "ibis", "duckdb", "pyarrow", "pandas", "polars", "transformers", "rich"}


def modules_after(python, code: str) -> set[str]:
    done = python("-c", f"{code}\nimport sys\nprint('MODULES', *sys.modules)")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("MODULES ")[2].split())


def test_import_lexrec_is_light(python):
    assert modules_after(python, "import lexrec; dir(lexrec)") & HEAVY == set()


def test_training_models_and_serving_never_load_the_preparation_engine(python):
    everything = """
import importlib, pkgutil
for package in ("models", "objectives", "item_encoders", "baselines", "evaluation", "training", "serving"):
    folder = importlib.import_module(f"lexrec.{package}")
    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"lexrec.{package}.{module.name}")
"""
    loaded = modules_after(python, everything)
    assert {"torch", "lexrec.models.base", "lexrec.training"} <= loaded
    assert loaded & {"ibis", "duckdb", "pandas", "transformers"} == set()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from lexrec.training.loop import train", "lexrec.models.sasrec"),
        ("import lexrec.commands", "lexrec.serving.api"),
        ("from lexrec import models", "lexrec.data.batch"),
        ("def f():\n    from lexrec.config import Config", "lexrec.errors"),
        ("if TYPE_CHECKING:\n    from lexrec.models.base import SequenceModel", "lexrec.item_encoders.base"),
        ("from ..models import base", "lexrec.data.batch"),
        ("from lexrec import prepare", "lexrec.commands.demo"),
        ("import lexrec", "lexrec.commands.demo"),
        ("", "lexrec.somewhere"),
    ],
)
def test_an_import_against_the_direction_is_caught(source, name):
    assert len(rules.against_the_direction(source, name)) == 1


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from lexrec.errors import DataError", "lexrec.data.batch"),
        ("from lexrec import registry", "lexrec.config"),
        ("from lexrec import __version__", "lexrec.run_dir"),
        ("from .base import Objective", "lexrec.objectives.cloze"),
        ("import torch\nfrom lexrec_extra import models", "lexrec.errors"),
    ],
)
def test_an_import_with_the_direction_is_not(source, name):
    assert rules.against_the_direction(source, name) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib as j",
        "from torch import load",
        "import torch\ntorch.load(path, weights_only=True)",
        "import torch as t\nt.load(path)",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy\nnumpy.load(path, mmap_mode='r')",
        "import pandas as pd\npd.read_pickle(path)",
    ],
)
def test_loading_a_pickle_is_caught(source):
    assert len(rules.pickle_loading(source, "f.py")) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import json\njson.load(file)",
        "import pickletools",
        "Dataset.load(folder)",
    ],
)
def test_other_loading_is_not(source):
    assert rules.pickle_loading(source, "f.py") == []


def test_a_file_a_function_and_an_argument_list_too_long_are_caught():
    body = "\n".join(["def f(a, b, c, d, e, f, *, g, h):", *["    a"] * 80])
    assert rules.too_big(body, "f.py") == ["f.py:1 f has 81 lines", "f.py:1 f has 8 arguments"]
    assert rules.too_big("\n" * 401, "f.py") == ["f.py has 401 lines"]
    fits = "\n".join(["def f(self, a, b, c, d, e, f, g):", *["    a"] * 79, *["#"] * 320])
    assert rules.too_big(fits, "f.py") == []
