"""One run's work: done once, and again only where something is missing."""

import pytest

from lexrec.compare._worker import _flops, work
from lexrec.config import load_recipe
from lexrec.errors import RunError
from lexrec.training.train import build_step
from tests.worlds import world


def test_ranks_stay_when_weights_go_and_other_rules_then_need_another_run(tmp_path):
    data = world([[(u + t) % 9 + 1 for t in range(7)] for u in range(20)], 9).save(tmp_path / "data")
    task = {
        "config": {"baseline": {"name": "popularity"}},
        "data": str(data.folder),
        "out": str(tmp_path / "run"),
        "device": "cpu",
        "split": "test",
        "evaluation": {"k": [5]},
        "keep_weights": False,
        "flops": "",
    }
    work(task)
    ranks = tmp_path / "run" / "evaluations" / "test" / "ranks_test.npy"
    measured = ranks.stat().st_mtime_ns
    assert not (tmp_path / "run" / "checkpoints").exists()
    work(task)
    assert ranks.stat().st_mtime_ns == measured
    with pytest.raises(RunError, match="measured under other rules and its weights were not kept"):
        work({**task, "evaluation": {"k": [5], "seen": "keep"}})


def test_a_step_that_cannot_be_counted_does_not_cost_the_run(monkeypatch):
    data = world([[(u + t) % 9 + 1 for t in range(7)] for u in range(20)], 9)
    config = load_recipe("sasrec", ["model.dim=8", "model.max_len=5", "train.batch_size=8"])
    step = build_step(config, data, ())
    assert _flops(step, data, config)["step"] > 0

    def broken(batch, generator):
        raise RuntimeError("needs a\nGPU")

    monkeypatch.setattr(step.objective, "prepare", broken)
    assert _flops(step, data, config) == {"error": "not counted: needs a GPU"}
