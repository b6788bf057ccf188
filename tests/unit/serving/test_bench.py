"""`lexrec bench`: what it measures is what it says, on a small shop."""

import json

import pytest
import torch

from lexrec.commands.__main__ import main
from lexrec.config import load_recipe
from lexrec.errors import ConfigError, DataError, RunError
from lexrec.run_dir import RunDir
from lexrec.serving import _bench_worker as worker
from lexrec.serving import bench as module
from lexrec.serving._machine import machine, peak_mib
from lexrec.serving.bench import bench, endless
from lexrec.training.checkpoint import Progressed
from lexrec.training.train import train
from tests.worlds import world

SMALL = ["model.dim=8", "model.n_layers=1", "model.max_len=5", "train.batch_size=8"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    histories = [[(7 * u + t) % 40 + 1 for t in range(4 + u % 5)] for u in range(30)]
    return world(histories, 40).save(tmp_path_factory.mktemp("bench") / "data").folder


@pytest.fixture(scope="module")
def order(data, tmp_path_factory):
    """What a worker is told, of an untrained model."""
    folder = tmp_path_factory.mktemp("bench-run")
    train("sasrec", data=data, out=folder / "run", overrides=[*SMALL, "train.max_epochs=0"], track=())
    return {"run": str(folder / "run"), "out": str(folder / "endless"), "device": "cpu", "seconds": 0.05}


def test_training_goes_on_until_the_time_is_up(order):
    found = worker.training(order)
    assert found["steps"] > 0
    assert found["steps"] * found["step_ms"] / 1e3 >= 0.05
    items_per_step = found["targets_per_s"] * found["step_ms"] / 1e3
    n_targets = sum(min(4 + u % 5 - 3, 5) for u in range(30))
    assert items_per_step == pytest.approx(n_targets // 4, rel=0.01)
    assert not RunDir.reopen(order["out"]).is_done


def test_steps_before_the_clock_starts_and_after_its_last_look_do_not_count(monkeypatch):
    monkeypatch.setitem(worker._LOOK_EVERY, "cpu", 8)
    clock = worker._Clock(1e9, torch.device("cpu"))
    n_warm = worker._WARM_STEPS["cpu"]
    for step in range(1, n_warm + 16 + 1):
        clock.step(Progressed(step=step), torch.zeros(()), 10)
    assert (clock.n_steps, clock.n_items) == (16, 160)
    clock._seconds = 0
    for step in range(n_warm + 17, n_warm + 24):
        clock.step(Progressed(step=step), torch.zeros(()), 10)
    with pytest.raises(worker._Enough):
        clock.step(Progressed(step=n_warm + 24), torch.zeros(()), 10)
    assert clock.n_steps == 24


def test_every_test_event_is_ranked(order):
    found = worker.evaluation(order)
    assert found["events"] == 30
    assert found["users_per_s"] == pytest.approx(30 / found["seconds"], rel=0.05)


def test_a_data_set_without_evaluation_events_has_no_evaluation_figure(tmp_path):
    splits = [[0] * 5 for _ in range(4)]
    data = world([[1, 2, 3, 4, 5]] * 4, 5, splits).save(tmp_path / "data").folder
    train("popularity", data=data, out=tmp_path / "run", track=())
    assert worker.evaluation({"run": str(tmp_path / "run"), "device": "cpu"}) is None


def test_histories_of_the_data_set_are_asked_about(order):
    found = worker.recommending(order)
    assert found["one_ms"]["p99"] >= found["one_ms"]["p50"] > 0
    assert found["together"] == 256
    assert 4 <= found["median_history"] <= 8
    assert found["peak_mib"] > 50


def test_a_counted_baseline_from_the_command_line(data, capsys, monkeypatch):
    monkeypatch.setattr(module, "_STARTS", 1)
    assert main(["bench", "popularity", "--data", str(data), "--seconds", "0.05", "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["recipe"] == "popularity"
    assert found["training"] is None
    assert found["parameters"] is None
    assert found["data"]["n_users"] == 30
    assert found["machine"]["device"] == "cpu"
    assert found["evaluation"]["events"] == 30
    assert found["start"]["seconds"] > 0.1
    assert said.err.splitlines() == [
        "building the model ...",
        "evaluation ...",
        "recommending ...",
        "start ...",
    ]


def test_the_table_shows_each_figure_with_its_memory(capsys, monkeypatch, data):
    figures = {
        "machine": {
            "processor": "P",
            "cores": 2,
            "memory_gib": 24,
            "torch": "2",
            "gpu": "G",
            "device": "cuda",
        },
        "data": {"n_users": 1234, "n_items": 5, "n_events": 6},
        "recipe": "sasrec model.dim=8",
        "parameters": 4321,
        "training": {"targets_per_s": 1e6, "step_ms": 1.5, "peak_mib": 700.4, "gpu_peak_mib": 90.0},
        "evaluation": None,
        "recommending": {
            "one_ms": {"p50": 1.25, "p99": 2.5},
            "histories_per_s": 15000.0,
            "together": 256,
            "peak_mib": 400.0,
        },
        "start": {"seconds": 2.25},
    }
    monkeypatch.setattr(module, "bench", lambda *args, **kwargs: figures)
    assert main(["bench", "sasrec", "model.dim=8", "--data", str(data)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["sasrec", "model.dim=8:", "4,321", "parameters"]
    assert lines[2] == ["G,", "2", "cores,", "24", "GiB,", "torch", "2"]
    assert ["training", "1,000,000", "targets/s", "700", "90"] in lines
    assert ["one", "history", "1.25", "ms", "(p99", "2.50)", "400"] in lines
    assert ["256", "together", "15,000", "histories/s"] in lines
    assert not any(line[0] == "evaluation" for line in lines)


def test_of_two_rounds_the_first_is_measured_without_a_consensus():
    config = load_recipe("sasrec_mltfr_paper")
    once = module._one_round(config)
    assert config.rounds is not None
    assert once.rounds is None
    assert once.item_encoder.consensus is None
    assert once.item_encoder.tables == config.item_encoder.tables


def test_a_training_that_is_timed_has_no_end_of_its_own():
    train = endless(load_recipe("sasrec", ["train.max_steps=3", "train.max_epochs=1", "train.lr=0.5"])).train
    assert train.max_steps is None
    assert train.max_epochs == train.evaluate_every > 10_000
    assert train.lr == 0.5


def test_bad_input_is_refused_before_anything_is_measured(data, tmp_path):
    with pytest.raises(ConfigError, match="seconds is above 0, got 0"):
        bench("sasrec", data=data, seconds=0)
    with pytest.raises(ConfigError, match="no recipe 'sassrec'"):
        bench("sassrec", data=data)
    with pytest.raises(DataError, match="is not a prepared data set"):
        bench("sasrec", data=tmp_path)


def test_a_measurement_that_fails_says_why_in_one_line(tmp_path):
    order = {"run": str(tmp_path), "device": "cpu"}
    with pytest.raises(RunError, match=r"^bench: a measurement failed: .* is not a run directory"):
        module._ask("evaluation", order)


def test_the_machine_is_described():
    found = machine()
    assert found["torch"] == torch.__version__
    assert found["memory_gib"] >= 1
    assert peak_mib() > 100
