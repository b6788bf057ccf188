"""What the documentation points at is there: links, make targets, verbs, and imports in examples."""

import re
from pathlib import Path

import pytest

import lexrec
from lexrec.commands.__main__ import verbs

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def label(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_there_are_pages():
    assert {"README.md", "docs/README.md", "docs/guide/index.md"} <= {label(page) for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    inside = [target for target in targets if not target.startswith(("https://", "http://"))]
    assert [target for target in inside if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_commands_exist(page):
    lines = [line for block in fenced(page) for line in block.splitlines()]
    made = {words[1] for line in lines if (words := line.split())[:1] == ["make"]}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert made <= targets
    run = {words[1] for line in lines if (words := line.split())[:1] == ["lexrec"]}
    assert {word for word in run if not word.startswith("-")} <= set(verbs())


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_examples_use_public_names(page):
    for block in fenced(page, language="python"):
        compile(block, label(page), "exec")
        assert set(re.findall(r"\blexrec\.(\w+)\(", block)) <= set(dir(lexrec))


def test_every_decision_is_in_the_table():
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\((\d{3}-[a-z0-9-]+\.md)\)", (folder / "README.md").read_text())
    assert listed == sorted(page.name for page in folder.glob("[0-9]*.md"))


def fenced(page: Path, language: str = "") -> list[str]:
    """The fenced blocks marked with a language, or with none."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [block for mark, block in blocks if mark == language]
