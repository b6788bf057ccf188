"""One run's work: done once, and again only where something is missing."""

import pytest

from lexrec.compare._worker import NOTE, _flops, work
from lexrec.config import load_recipe
from lexrec.errors import DamagedError, RunError
from lexrec.run_dir import RunDir, read_json
from lexrec.training.train import build_step, train
from tests.worlds import world

SMALL = ["model.dim=8", "model.max_len=5", "train.batch_size=8", "train.max_epochs=2"]


class Stopped(Exception):
    pass


class StopAfterAnEpoch:
    """A tracker that ends the run as a killed process would."""

    def begin(self, n_steps, at):
        pass

    def step(self, at, loss, n_items):
        if at.epoch == 1:
            raise Stopped

    def validated(self, at, metrics, is_best):
        pass

    def end(self):
        pass


def task_of(data, run, recipe, changes=(), **more):
    """What a comparison tells its worker."""
    return {
        "config": load_recipe(recipe, list(changes)).model_dump(mode="json"),
        "data": str(data.folder),
        "out": str(run),
        "device": "cpu",
        "split": "test",
        "evaluation": {"k": [5]},
        "keep_weights": True,
        "flops": "",
        **more,
    }


def test_ranks_stay_when_weights_go_and_other_rules_then_need_another_run(tmp_path):
    data = world([[(u + t) % 9 + 1 for t in range(7)] for u in range(20)], 9).save(tmp_path / "data")
    task = task_of(data, tmp_path / "run", "popularity", keep_weights=False)
    work(task)
    ranks = tmp_path / "run" / "evaluations" / "test" / "ranks_test.npy"
    measured = ranks.stat().st_mtime_ns
    assert not (tmp_path / "run" / "checkpoints").exists()
    work(task)
    assert ranks.stat().st_mtime_ns == measured
    with pytest.raises(RunError, match="measured under other rules and its weights were not kept"):
        work({**task, "evaluation": {"k": [5], "seen": "keep"}})


def test_a_run_whose_checkpoint_is_damaged_begins_anew_and_nothing_is_thrown_away(tmp_path, capsys):
    data = world([[(u + t) % 9 + 1 for t in range(7)] for u in range(20)], 9).save(tmp_path / "data")
    task = task_of(data, tmp_path / "seed-1", "sasrec", SMALL)
    config = load_recipe("sasrec", SMALL)
    with pytest.raises(Stopped):
        train(config, data=data, out=task["out"], device="cpu", track=[StopAfterAnEpoch()])
    (weights,) = (tmp_path / "seed-1").glob("checkpoints/*/model.safetensors")
    weights.unlink()
    with pytest.raises(DamagedError, match="is missing or damaged"):  # lexrec train leaves it to its user.
        train(config, data=data, out=task["out"], device="cpu", resume=True, track=())
    work(task)
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith(f"{NOTE}begun anew, for {weights} is missing or damaged: ")
    assert note.endswith("what was there is in seed-1.damaged")
    assert RunDir.open(tmp_path / "seed-1").summary["epochs"] == 2
    assert (tmp_path / "seed-1" / "evaluations" / "test" / "metrics.json").is_file()
    assert (tmp_path / "seed-1.damaged" / "config.yaml").is_file()


def test_a_measured_run_never_begins_anew(tmp_path):
    """Under other rules it needs its weights; that they are gone costs no result that is there."""
    data = world([[(u + t) % 9 + 1 for t in range(7)] for u in range(20)], 9).save(tmp_path / "data")
    task = task_of(data, tmp_path / "run", "popularity")
    work(task)
    (weights,) = (tmp_path / "run").glob("checkpoints/*/model.safetensors")
    weights.write_bytes(b"half of it")
    with pytest.raises(DamagedError, match="is missing or damaged"):
        work({**task, "evaluation": {"k": [5], "seen": "keep"}})
    assert (tmp_path / "run" / "evaluations" / "test" / "metrics.json").is_file()


def test_a_step_that_cannot_be_counted_does_not_cost_the_run(monkeypatch):
    data = world([[(u + t) % 9 + 1 for t in range(7)] for u in range(20)], 9)
    config = load_recipe("sasrec", SMALL)
    step = build_step(config, data, ())
    assert _flops(step, data, config)["step"] > 0

    def broken(batch, generator):
        raise RuntimeError("needs a\nGPU")

    monkeypatch.setattr(step.objective, "prepare", broken)
    assert _flops(step, data, config) == {"error": "not counted: needs a GPU"}


def test_each_of_two_rounds_has_its_own_flops(tmp_path):
    data = world([[(u + t) % 9 + 1 for t in range(7)] for u in range(20)], 9).save(tmp_path / "data")
    changes = [*SMALL, 'first=["train.batch_size=4"]']
    work(task_of(data, tmp_path / "run", "sasrec", changes, flops=str(tmp_path / "flops.json")))
    counted = read_json(tmp_path / "flops.json")
    assert (counted["rows"], counted["before"]["rows"]) == (8, 4)
    assert 0 < counted["before"]["step"] < counted["step"]
