"""A wheel built from this checkout works in an empty environment, away from it."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from lexrec.config import recipe_names


def run(*words: str | Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "COV"))}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, root) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, root, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(tmp_path_factory, wheel) -> Path:
    """A new environment with the wheel, and this one's packages for what it depends on.

    A `.pth` line adds the folder but reads no `.pth` within it, so an editable lexrec stays unseen.
    """
    folder = tmp_path_factory.mktemp("away") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    run(*pip, wheel, cwd=folder.parent)
    inside = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder.parent)
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(inside.stdout.strip()) / "dependencies.pth").write_text("\n".join(sorted(packages)) + "\n")
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(wheel, root):
    names = zipfile.ZipFile(wheel).namelist()
    outside = [name for name in names if not name.startswith("lexrec/")]
    assert all(name.split("/")[0].endswith(".dist-info") for name in outside), outside
    assert any(name.endswith("/licenses/LICENSE") for name in outside)
    files = (path for path in (root / "lexrec").rglob("*") if path.is_file())
    sources = {path.relative_to(root).as_posix() for path in files if path.suffix != ".pyc"}
    assert {"lexrec/py.typed", "lexrec/__init__.py"} <= sources
    assert {name for name in names if name.startswith("lexrec/")} == sources
    assert not [name for name in names if Path(name).name.startswith("test_")]


def test_every_recipe_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert recipe_names()
    assert {f"lexrec/recipes/{recipe}.yaml" for recipe in recipe_names()} <= names


def test_the_installed_package_finds_itself_and_its_recipes(environment, tmp_path):
    code = (
        "import lexrec; from importlib.metadata import version\n"
        "from lexrec.config import load_recipe, recipe_names\n"
        "[load_recipe(name) for name in recipe_names()]\n"
        "print(lexrec.__file__); print(version('lexrec') == lexrec.__version__); print(*recipe_names())"
    )
    done = run(environment / "bin" / "python", "-c", code, cwd=tmp_path)
    place, same_version, recipes = done.stdout.splitlines()
    assert Path(place).is_relative_to(environment)
    assert same_version == "True"
    assert recipes.split() == recipe_names()


def test_the_installed_command_runs(environment, tmp_path):
    done = run(environment / "bin" / "lexrec", "--help", cwd=tmp_path)
    assert done.stdout.startswith("usage: lexrec")
    assert done.stderr == ""
