"""How many threads a command has, and how they wait."""

import os
from pathlib import Path

import pytest

from lexrec.commands import _threads
from lexrec.commands.__main__ import main
from lexrec.commands._threads import settle_threads


def settled(quota: Path, **given: str) -> dict[str, str]:
    environment = dict(given)
    settle_threads(environment, quota)
    return environment


@pytest.mark.parametrize(
    ("text", "threads"),
    [
        ("250000 100000\n", "2"),
        ("50000 100000\n", "1"),
        ("800000 100000\n", None),
        ("max 100000\n", None),
        ("1 0\n", None),
        ("", None),
        (None, None),
    ],
)
def test_a_container_has_as_many_as_its_share(
    text: str | None, threads: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_threads.os, "cpu_count", lambda: 8)
    quota = tmp_path / "cpu.max"
    if text is not None:
        quota.write_text(text)
    assert settled(quota).get("OMP_NUM_THREADS") == threads


def test_what_is_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads.os, "cpu_count", lambda: 8)
    quota = tmp_path / "cpu.max"
    quota.write_text("200000 100000")
    given = {"OMP_NUM_THREADS": "5", "OMP_WAIT_POLICY": "ACTIVE"}
    assert settled(quota, **given) == given


def test_threads_of_a_command_wait_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert main(["--help"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert main(["--help"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
