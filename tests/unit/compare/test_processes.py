"""Runs side by side: what fails is said, and takes nothing with it."""

from pathlib import Path

from lexrec.compare.processes import Task, n_threads, side_by_side


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


def test_threads_are_shared_out():
    assert n_threads(10_000) == 1
