"""Runs side by side: what fails is said, and takes nothing with it."""

from pathlib import Path

from lexrec.compare._worker import NOTE
from lexrec.compare.compare import _tried_twice
from lexrec.compare.processes import Task, _ended, n_threads, side_by_side
from tests.worlds import world


def task(folder: Path, name: str) -> Task:
    """A run of data that do not exist: it ends in lexrec's own error."""
    order = {"config": {"baseline": {"name": "popularity"}}, "data": str(folder / name), "out": ""}
    return Task(name, order, folder / "logs" / f"{name}.log")


def test_a_run_that_fails_is_reported_in_one_line_and_the_next_one_runs(tmp_path):
    ended = list(side_by_side([task(tmp_path, "a"), task(tmp_path, "b")], ["cpu", "cpu"]))
    assert sorted(end.task.name for end in ended) == ["a", "b"]
    for end in ended:
        assert end.error is not None
        assert end.error.startswith(f"{tmp_path / end.task.name} is not a prepared data set")
        assert end.task.log.read_text().startswith("lexrec: error: ")


FIRST_TRY_FAILS = """
from pathlib import Path
from typing import Literal

import torch

from lexrec.baselines.base import BaselineConfig
from lexrec.baselines.popularity import Popularity

MARK = Path(__file__).with_name("tried")


class HungryConfig(BaselineConfig):
    name: str = "hungry"


class Hungry(Popularity):
    config: HungryConfig

    def fit(self, dataset):
        if not MARK.exists():
            MARK.touch()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return super().fit(dataset)
"""


def test_a_run_that_lacked_memory_beside_others_is_tried_again_alone(tmp_path, monkeypatch):
    (tmp_path / "hungry.py").write_text(FIRST_TRY_FAILS)
    monkeypatch.chdir(tmp_path)
    data = world([[(u + t) % 9 + 1 for t in range(7)] for u in range(20)], 9).save(tmp_path / "data")
    order = {
        "config": {"baseline": {"name": "hungry:Hungry"}},
        "data": str(data.folder),
        "out": str(tmp_path / "run"),
        "split": "test",
        "evaluation": {"k": [5]},
        "keep_weights": True,
        "flops": "",
    }
    hungry, said = Task("hungry", order, tmp_path / "logs" / "hungry.log"), []
    other = task(tmp_path, "other")  # Fails too, for another reason, and is not tried again.
    ended = list(_tried_twice([hungry, other], ["cpu", "cpu"], said.append))
    assert [(end.task.name, end.error is None) for end in ended] == [("other", False), ("hungry", True)]
    assert said == [
        "hungry: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.; "
        "tried again once the others have ended"
    ]


def test_what_a_process_notes_reaches_whoever_waits(tmp_path):
    log = tmp_path / "log"
    log.write_text(f"a warning\n{NOTE}begun anew\nlexrec: error: and failed\n")
    ended = _ended(Task("a", {}, log), 2)
    assert (ended.error, ended.notes, ended.lacked_memory) == ("and failed", ("begun anew",), False)


def test_threads_are_shared_out():
    assert n_threads(10_000) == 1
