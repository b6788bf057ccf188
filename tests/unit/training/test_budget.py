"""A budget of optimizer steps: a run ends with it, within an epoch, and its cosine ends there too."""

from pathlib import Path

import pytest

from lexrec.data.dataset import Dataset
from lexrec.run_dir import RunDir
from lexrec.training.train import train
from tests.unit.training.test_loop import Stop, StopAt, log_without_seconds, small, trainer
from tests.worlds import world

N_BATCHES = 4
"""Of an epoch: 30 users, 8 a batch."""


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    rows = [[(u + t) % 9 + 1 for t in range(7)] for u in range(30)]
    return world(rows, 9).save(tmp_path / "data")


@pytest.mark.parametrize(
    ("budget", "validated_at"), [(3, [3]), (4, [4]), (6, [4, 6]), (10, [4, 8, 10]), (99, [4, 8, 12])]
)
def test_a_run_ends_with_its_budget_or_its_epochs(
    budget: int, validated_at: list[int], data: Dataset, tmp_path: Path
) -> None:
    run = train(small(max_steps=budget, patience=50), data=data, out=tmp_path / "run", device="cpu", track=())
    assert run.summary["steps"] == validated_at[-1] == min(budget, 3 * N_BATCHES)
    assert [line["step"] for line in log_without_seconds(run.path)] == validated_at


def test_a_run_stopped_on_the_way_to_its_budget_ends_where_it_would_have(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lexrec.training.loop._CHECKPOINT_SECONDS", 0.0)
    config = small(max_steps=6, schedule="cosine")
    whole = trainer(config, data, tmp_path / "whole").fit([])
    with pytest.raises(Stop):
        trainer(config, data, tmp_path / "cut").fit([StopAt(5)])
    again = trainer(config, data, tmp_path / "cut")
    at = again.fit([])
    assert (at.step, at.best, at.best_step) == (whole.step, whole.best, whole.best_step) != (0, 0, 0)
    assert log_without_seconds(tmp_path / "cut") == log_without_seconds(tmp_path / "whole")


def test_a_cosine_ends_with_the_budget(data: Dataset, tmp_path: Path) -> None:
    one = trainer(small(max_steps=6, schedule="cosine", lr=0.01), data, tmp_path / "run")
    assert one.n_steps == 6
    one.fit([])
    rate = float(one.optimizer.param_groups[0]["lr"])
    # Half a cosine of six steps: the last one begins at 5 / 6 of it.
    assert rate == pytest.approx(0.01 * 0.5 * (1 - 3**0.5 / 2), rel=1e-4)


def test_the_summary_says_what_was_spent(data: Dataset, tmp_path: Path) -> None:
    run = train(small(max_steps=6), data=data, out=tmp_path / "run", device="cpu", track=())
    spent = RunDir.open(run.path).summary
    # Each user has five training events, so four inputs; 30 users in four steps.
    assert spent["steps"] == 6
    assert spent["events"] == spent["tokens"] == 30 * 4 * 6 // 4
    assert spent["parameters"] == spent["parameters_total"]
    # Steps are a part of what the run took, and a process that has loaded torch is no smaller than this.
    assert 0 < spent["step_ms"] * 6 <= 1000 * (spent["seconds"] + 0.01)
    assert 100 < spent["peak_mib"] < 1 << 20
