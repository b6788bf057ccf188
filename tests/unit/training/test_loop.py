"""The loop: stopping anywhere and going on gives the same run; early stopping; warm-up; what is tracked."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lexrec.config import RunConfig, TrainConfig, run_config
from lexrec.data.dataset import TRAIN, Dataset
from lexrec.errors import ConfigError, RunError
from lexrec.run_dir import RunDir
from lexrec.training import checkpoint, loop
from lexrec.training.checkpoint import Progressed
from lexrec.training.loop import Trainer
from lexrec.training.optimizer import build_optimizer, set_lr
from lexrec.training.train import build_step, train
from lexrec.training.watch import LossWatch
from tests.worlds import world

CPU = torch.device("cpu")


def small(**train_options: object) -> RunConfig:
    tree = {
        "model": {"name": "sasrec", "dim": 8, "n_layers": 1, "max_len": 6},
        "item_encoder": {"name": "id_embedding"},
        "objective": {"name": "next_item", "loss": "bce"},
        "train": {"batch_size": 8, "max_epochs": 3, **train_options},
    }
    config = run_config(tree)
    assert isinstance(config, RunConfig)
    return config


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    rows = [[(u + t) % 9 + 1 for t in range(7)] for u in range(30)]
    return world(rows, 9).save(tmp_path / "data")


class Stop(Exception):
    """Stands for the power going off."""


class StopAt:
    """A tracker that ends the process' luck at a step."""

    def __init__(self, step: int) -> None:
        self.at_step = step

    def begin(self, n_steps: int, at: Progressed) -> None:
        pass

    def step(self, at: Progressed, loss: Tensor, n_items: int) -> None:
        if at.step == self.at_step:
            raise Stop

    def validated(self, at: Progressed, metrics: dict[str, float], is_best: bool) -> None:
        pass

    def end(self) -> None:
        pass


def trainer(config: RunConfig, data: Dataset, path: Path) -> Trainer:
    run = RunDir(path) if path.exists() else RunDir.create(path, config, data)
    return Trainer(build_step(config, data, ()), data, run, CPU)


def log_without_seconds(run: Path) -> list[dict[str, object]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize(
    ("stop_at", "options"),
    [(1, {}), (6, {}), (7, {}), (12, {}), (7, {"schedule": "cosine", "warmup_steps": 2})],
)
def test_a_run_stopped_within_an_epoch_goes_on_bit_exactly(
    stop_at: int, options: dict[str, object], data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(**options)
    whole = trainer(config, data, tmp_path / "whole")
    at = whole.fit([])
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Stop):
        trainer(config, data, tmp_path / "cut").fit([StopAt(stop_at)])
    resumed = trainer(config, data, tmp_path / "cut")
    again = resumed.fit([])
    assert (again.step, again.best, again.best_step) == (at.step, at.best, at.best_step)
    for name, tensor in whole.step.state_dict().items():
        assert torch.equal(tensor, resumed.step.state_dict()[name]), name
    assert log_without_seconds(tmp_path / "cut") == log_without_seconds(tmp_path / "whole")


def test_a_half_written_checkpoint_is_not_seen(data: Dataset, tmp_path: Path) -> None:
    one = trainer(small(), data, tmp_path / "run")
    at = one.fit([])
    newest = checkpoint.newest(one.run)
    assert newest is not None
    assert newest == one.run.checkpoint(at.step)
    broken = one.run.checkpoint(at.step + 5)
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"half")
    assert checkpoint.newest(one.run) == newest


def test_only_the_newest_and_the_best_checkpoint_stay(data: Dataset, tmp_path: Path) -> None:
    one = trainer(small(max_epochs=6), data, tmp_path / "run")
    at = one.fit([])
    kept = {int(p.name) for p in one.run.checkpoint(0).parent.iterdir()}
    assert kept == {at.step, at.best_step}
    checkpoint.keep_best(one.run, at)
    assert [p.name for p in one.run.checkpoint(at.best_step).iterdir() if "trainer" in p.name] == []


def test_a_checkpoint_of_another_model_is_refused(data: Dataset, tmp_path: Path) -> None:
    trainer(small(), data, tmp_path / "run").fit([])
    tree = small().model_dump()
    tree["model"]["dim"] = 16
    wider = run_config(tree)
    assert isinstance(wider, RunConfig)
    step = build_step(wider, data, ())
    other = Trainer(step, data, RunDir(tmp_path / "run"), CPU)
    with pytest.raises(RunError, match="does not fit the model of this run"):
        other.fit([])


def test_training_stops_when_validation_does_not_improve(data: Dataset, tmp_path: Path) -> None:
    one = trainer(small(max_epochs=200, patience=2, lr=0.02), data, tmp_path / "run")
    at = one.fit([])
    assert at.n_worse == 2
    assert at.epoch == at.best_epoch + 2 < 200
    values = [line["ndcg@10"] for line in log_without_seconds(tmp_path / "run")]
    assert max(values) == at.best == values[at.best_epoch - 1]  # type: ignore[type-var]


def test_the_best_epoch_is_what_is_loaded(data: Dataset, tmp_path: Path) -> None:
    run = train(small(max_epochs=8, lr=0.05), data=data, out=tmp_path / "run", track=())
    kept = load_file(run.checkpoint(run.summary["best_step"]) / "model.safetensors")
    for name, tensor in run.model().state_dict().items():
        assert torch.equal(tensor, kept[name])


def test_without_validation_events_the_last_epoch_is_kept(tmp_path: Path) -> None:
    rows = [[1, 2, 3], [4, 5, 6]]
    data = world(rows, 6, [[TRAIN] * 3] * 2).save(tmp_path / "data")
    run = train(small(), data=data, out=tmp_path / "run", track=())
    assert run.summary["best_epoch"] == 3
    assert run.summary["ndcg@10"] is None


def test_no_epochs_leave_the_untrained_model(data: Dataset, tmp_path: Path) -> None:
    run = train(small(max_epochs=0), data=data, out=tmp_path / "run", track=())
    fresh = build_step(small(), data, ()).model.state_dict()
    assert all(torch.equal(t, fresh[name]) for name, t in run.model().state_dict().items())


def test_nothing_to_predict_is_refused_before_there_is_a_run(tmp_path: Path) -> None:
    data = world([[1], [2]], 2, [[TRAIN], [TRAIN]]).save(tmp_path / "data")
    with pytest.raises(ConfigError, match="no user with two training events"):
        train(small(), data=data, out=tmp_path / "run", track=())
    assert not (tmp_path / "run").exists()


def test_warm_up_rises_to_the_peak_and_stays() -> None:
    config = TrainConfig(lr=0.1, warmup_steps=4)
    optimizer = build_optimizer(torch.nn.Linear(2, 2), config)
    rates = []
    for step in range(6):
        set_lr(optimizer, config, step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_a_cosine_falls_until_the_last_step_of_the_longest_run(data: Dataset, tmp_path: Path) -> None:
    one = trainer(small(lr=0.1, schedule="cosine"), data, tmp_path / "run")
    at = one.fit([])
    assert at.step == one.n_steps == 12
    left = 0.5 * (1 + math.cos(math.pi * 11 / 12))
    assert one.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * left)


def test_frozen_parameters_are_not_optimised() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    optimizer = build_optimizer(layer, TrainConfig())
    assert [p for group in optimizer.param_groups for p in group["params"]] == [layer.weight]


def test_only_matrices_decay() -> None:
    step = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    optimizer = build_optimizer(step, TrainConfig(weight_decay=0.1))
    decayed = [p for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]]
    assert [id(p) for p in decayed] == [id(step[0].weight)]


def test_the_batch_of_a_loss_that_is_no_number_is_kept(data: Dataset, tmp_path: Path) -> None:
    one = trainer(small(), data, tmp_path / "run")
    one.samples.fill(one.epoch, seed=1, number=0)
    watch = LossWatch(tmp_path, one.epoch)
    watch.see(7, torch.tensor(1.0), 1)
    with pytest.raises(RunError, match="the loss became nan at step 8"):
        watch.see(8, torch.tensor(float("nan")), 2)
    kept = load_file(tmp_path / "nan_batch.safetensors")
    assert kept["step"] == 8
    assert torch.equal(kept["item_BL"], one.epoch.batch(2).item_BL)


def test_tensorboard_gets_loss_and_metrics(data: Dataset, tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(small(max_epochs=14), data=data, out=tmp_path / "run", track=("tensorboard",))
    events = event_accumulator.EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    logged = [event.value for event in events.Scalars("validation/ndcg@10")]
    written = [line["ndcg@10"] for line in log_without_seconds(run.path)]
    assert logged == pytest.approx(written)
    assert [event.step for event in events.Scalars("loss")] == [50]


@pytest.mark.filterwarnings("ignore")  # of mlflow and what it stands on
def test_mlflow_gets_config_and_metrics(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)  # mlflow keeps artifacts where it is started
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    train(small(), data=data, out=tmp_path / "run", track=("mlflow",))
    found = mlflow.search_runs(search_all_experiments=True)
    assert found["metrics.validation/ndcg_at_10"].notna().all()
