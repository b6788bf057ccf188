"""A round before the run: the same run with a few changes, whose best weights are where this one starts."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lexrec.config import RunConfig, load_recipe, run_config
from lexrec.data.dataset import Dataset
from lexrec.errors import ConfigError, RunError
from lexrec.run_dir import RunDir, read_json
from lexrec.training.evaluate_run import evaluate
from lexrec.training.start import will_select_on
from lexrec.training.train import train
from tests.unit.training.test_loop import Stop, StopAt, log_without_seconds, small
from tests.worlds import world

NO_TRAINING = "train.lr=1e-12"


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    rows = [[(u + t) % 9 + 1 for t in range(7)] for u in range(30)]
    return world(rows, 9).save(tmp_path / "data")


def with_first(*changes: str, **train_options: object) -> RunConfig:
    config = run_config({**small(**train_options).model_dump(), "first": changes})
    assert isinstance(config, RunConfig)
    return config


def test_it_starts_from_the_best_weights_of_the_first_round(data: Dataset, tmp_path: Path) -> None:
    config = with_first("train.lr=0.02", "train.max_epochs=5", lr=1e-12, max_epochs=1)
    run = train(config, data=data, out=tmp_path / "run", device="cpu", track=())
    first = RunDir.open(run.round(1))
    assert isinstance(first.config, RunConfig)
    assert (first.config.train.lr, first.config.train.max_epochs, first.config.first) == (0.02, 5, ())
    for name, tensor in first.weights().items():
        torch.testing.assert_close(run.weights()[name], tensor)
    fresh = train(small(lr=1e-12, max_epochs=1), data=data, out=tmp_path / "fresh", device="cpu", track=())
    assert any(not torch.allclose(t, first.weights()[name]) for name, t in fresh.weights().items())


def test_its_cost_is_that_of_both_rounds(data: Dataset, tmp_path: Path) -> None:
    config = with_first("train.max_epochs=2", max_epochs=1)
    run = train(config, data=data, out=tmp_path / "run", device="cpu", track=())
    assert (run.summary["steps"], run.summary["steps_before"]) == (4, 8)
    assert run.summary["events"] == 30 * 4 * 3
    assert run.summary["seconds"] >= RunDir.open(run.round(1)).summary["seconds"]


@pytest.mark.parametrize("stop_at", [2, 4])
def test_stopped_in_either_round_it_goes_on_as_if_it_had_not(
    stop_at: int, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lexrec.training.loop._CHECKPOINT_SECONDS", 0.0)
    config = with_first("train.max_steps=3", max_steps=6)
    whole = train(config, data=data, out=tmp_path / "whole", device="cpu", track=())
    with pytest.raises(Stop):
        train(config, data=data, out=tmp_path / "cut", device="cpu", track=[StopAt(stop_at)])
    assert RunDir.reopen(tmp_path / "cut" / "rounds" / "1").is_done == (stop_at > 3)
    again = train(config, data=data, out=tmp_path / "cut", device="cpu", resume=True, track=())
    assert log_without_seconds(again.path) == log_without_seconds(whole.path)
    for name, tensor in whole.weights().items():
        assert torch.equal(again.weights()[name], tensor)


def test_what_was_picked_on_test_stays_so(data: Dataset, tmp_path: Path) -> None:
    """Whoever starts from weights that saw the test events has seen them too."""
    config = with_first("train.select_on=test", max_epochs=1)
    run = train(config, data=data, out=tmp_path / "run", device="cpu", track=())
    assert isinstance(run.config, RunConfig)
    assert (run.config.train.select_on, will_select_on(config)) == ("validation", "test")
    assert evaluate(run, device="cpu").protocol.selected_on == "test"
    then = run_config({**small(max_epochs=1).model_dump(), "first": str(run.path)})
    assert isinstance(then, RunConfig)
    assert will_select_on(then) == "test"
    after = train(then, data=data, out=tmp_path / "after", device="cpu", track=())
    assert evaluate(after, device="cpu").protocol.selected_on == "test"
    assert will_select_on(small(max_epochs=1)) == "validation"


def test_it_may_start_from_another_run(data: Dataset, tmp_path: Path) -> None:
    other = train(small(lr=0.02, max_epochs=5), data=data, out=tmp_path / "other", device="cpu", track=())
    config = with_first(lr=1e-12, max_epochs=1).model_copy(update={"first": str(other.path)})
    run = train(config, data=data, out=tmp_path / "run", device="cpu", track=())
    for name, tensor in other.weights().items():
        torch.testing.assert_close(run.weights()[name], tensor)
    best = other.checkpoint(other.summary["best_step"]) / "model.safetensors"
    assert read_json(run.path / "start.json")["sha256"] == hashlib.sha256(best.read_bytes()).hexdigest()
    assert run.summary["steps_before"] == other.summary["steps"] == 20


def test_a_killed_run_goes_on_from_the_very_weights_it_was_begun_with(data: Dataset, tmp_path: Path) -> None:
    other = train(small(lr=0.02, max_epochs=1), data=data, out=tmp_path / "other", device="cpu", track=())
    config = with_first(max_epochs=1).model_copy(update={"first": str(other.path)})
    with pytest.raises(Stop):  # Before its first checkpoint.
        train(config, data=data, out=tmp_path / "run", device="cpu", track=[StopAt(1)])
    best = other.checkpoint(other.summary["best_step"]) / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in other.weights().items()}, best)
    with pytest.raises(
        RunError, match=r"holds other weights than .*run was begun with; choose another --out"
    ):
        train(config, data=data, out=tmp_path / "run", device="cpu", resume=True, track=())


def test_what_is_no_finished_run_or_of_other_data_is_refused_at_once(data: Dataset, tmp_path: Path) -> None:
    def from_(path: Path) -> RunConfig:
        return with_first().model_copy(update={"first": str(path)})

    with pytest.raises(
        RunError, match=r"first: '.*nowhere' is no run directory; name a finished run, or list"
    ):
        train(from_(tmp_path / "nowhere"), data=data, out=tmp_path / "run", device="cpu", track=())
    elsewhere = world([[1, 2, 3, 4, 5]] * 9, 9).save(tmp_path / "elsewhere")
    other = train(small(max_epochs=1), data=elsewhere, out=tmp_path / "other", device="cpu", track=())
    with pytest.raises(RunError, match="was trained on data"):
        train(from_(other.path), data=data, out=tmp_path / "run", device="cpu", track=())
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_are_refused(data: Dataset, tmp_path: Path) -> None:
    config = with_first("model.dim=16", max_epochs=1)
    with pytest.raises(RunError, match=r"rounds/1 trained \d+ tensors that are not in the run that starts"):
        train(config, data=data, out=tmp_path / "run", device="cpu", track=())


def test_a_wrong_change_is_found_before_anything_is_trained() -> None:
    with pytest.raises(ConfigError, match="unknown key 'epochs'"):
        load_recipe("sasrec", ['first=["train.epochs=3"]'])
    with pytest.raises(ConfigError, match="first and rounds each make a first round"):
        load_recipe("sasrec_mltfr_paper", ['first=["train.max_epochs=3"]'])
