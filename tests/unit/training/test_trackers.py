import json

import pytest

from lexrec.errors import ConfigError
from lexrec.training.trackers import check_trackers
from lexrec.training.train import train
from tests.worlds import world

SMALL = ["model.dim=8", "model.n_heads=1", "model.max_len=4", "train.max_epochs=2", "train.batch_size=1"]


@pytest.fixture
def dataset():
    return world([[(user + step) % 6 + 1 for step in range(5)] for user in range(60)], n_items=6)


def test_an_unknown_tracker_is_refused():
    with pytest.raises(ConfigError, match="no tracker 'wandb'; known: progress, tensorboard, mlflow"):
        check_trackers(["progress", "wandb"])


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch, dataset, tmp_path):
    monkeypatch.setattr("lexrec.training.trackers.find_spec", lambda name: None)
    check_trackers(["progress"])
    with pytest.raises(
        ConfigError, match=r"tracker mlflow is not installed; run: pip install 'lexrec\[mlflow\]'"
    ):
        train("sasrec", data=dataset, out=tmp_path / "run", track=["mlflow"])
    assert not (tmp_path / "run").exists()


def test_progress_shows_the_metric_that_picks_the_epoch(dataset, tmp_path, capsys):
    metric = [*SMALL, "train.metric=mrr@3"]
    train("sasrec", data=dataset, out=tmp_path / "run", overrides=metric, track=["progress"])
    out, lines = capsys.readouterr()
    assert out == ""
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [f"epoch {i} mrr@3 {record['mrr@3']:.4f}" for i, record in enumerate(logged, 1)] == [
        line.partition(" | ")[0] for line in lines.splitlines()
    ]


def test_tensorboard_gets_losses_and_metrics(dataset, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train("sasrec", data=dataset, out=tmp_path / "run", overrides=SMALL, track=["tensorboard"])
    events = accumulator.EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [50, 100]
    values = [event.value for event in events.Scalars("validation/ndcg@10")]
    assert max(values) == pytest.approx(run.summary["ndcg@10"])
