import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lexrec.config import load_recipe
from lexrec.errors import DataError, RunError
from lexrec.run_dir import RunDir
from lexrec.training.train import train
from tests.worlds import world

HISTORIES = [[1, 2, 3, 4], [2, 3, 4, 1], [3, 1, 2, 5]]


@pytest.fixture
def dataset():
    return world(HISTORIES, n_items=5)


@pytest.fixture
def run(dataset, tmp_path) -> RunDir:
    """A finished run of a counting baseline on a data set in memory."""
    return train("markov", data=dataset, out=tmp_path / "run", track=())


def test_a_run_is_there_with_all_that_says_what_it_is_or_not_at_all(dataset, tmp_path, monkeypatch):
    config = load_recipe("popularity")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(RunError, match=r"cannot write .*run: No space left on device"):
            RunDir.create(tmp_path / "run", config, dataset)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()  # an empty place is free
    run = RunDir.create(tmp_path / "run", config, dataset)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert {path.name for path in run.path.iterdir()} == {
        "config.yaml",
        "dataset.json",
        "tokens.json",
        "items.parquet",
        "train_count.npy",
    }
    assert run.config == config
    assert run.dataset_card["n_items"] == 5
    assert run.train_count_I.tolist() == dataset.train_count_I.tolist()
    assert run.items.ids == ["i1", "i2", "i3", "i4", "i5"]


def test_a_relative_place_is_fine_but_the_working_directory_is_not(dataset, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run = RunDir.create("sub/run/", load_recipe("popularity"), dataset)
    assert run.items.ids == ["i1", "i2", "i3", "i4", "i5"]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(RunError, match=r"\. is the working directory; choose another --out"):
        RunDir.create(".", load_recipe("popularity"), dataset)


def test_a_place_that_is_taken_is_refused_with_what_is_there(run, dataset, tmp_path):
    def again(path):
        RunDir.create(path, load_recipe("popularity"), dataset)

    with pytest.raises(RunError, match="run already holds a finished run; choose another --out"):
        again(run.path)
    (run.path / "DONE").unlink()
    with pytest.raises(RunError, match=r"already holds an unfinished run \(continue it with --resume\)"):
        again(run.path)
    (run.path / "config.yaml").unlink()
    with pytest.raises(RunError, match="already holds other files"):
        again(run.path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file already holds other files"):
        again(tmp_path / "file")


def test_only_a_finished_run_opens(run, tmp_path):
    assert RunDir.open(run.path).is_done
    (run.path / "DONE").unlink()
    with pytest.raises(RunError, match="is not finished"):
        RunDir.open(run.path)
    assert not RunDir.reopen(run.path).is_done
    with pytest.raises(RunError, match=r"is not a run directory \(no config\.yaml\)"):
        RunDir.reopen(tmp_path)


def test_what_recommends_is_what_was_counted(run, dataset):
    scorer = RunDir.open(run.path).scorer()
    assert scorer.count_I.tolist() == dataset.train_count_I.tolist()
    with pytest.raises(RunError, match="is a counting baseline; it has no model"):
        run.model()
    assert run.tables() == ()


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("config.yaml", b"{", lambda run: run.config),
        ("config.yaml", b"just words", lambda run: run.config),
        ("dataset.json", b"{", lambda run: run.dataset_card),
        ("items.parquet", b"PAR1", lambda run: run.items),
        ("train_count.npy", b"", lambda run: run.train_count_I),
        ("DONE", b"", lambda run: run.summary),
        ("checkpoints/00000000/model.safetensors", b"", lambda run: run.scorer()),
    ],
)
def test_a_damaged_file_is_named(run, name, content, read):
    (run.path / name).write_bytes(content)
    with pytest.raises(RunError, match=f"{name} is missing or damaged"):
        read(RunDir(run.path))


def test_a_data_set_in_memory_has_to_be_named(run, dataset, tmp_path):
    with pytest.raises(RunError, match="was trained on a data set in memory; name its folder with --data"):
        run.dataset()
    with pytest.raises(DataError, match="is not a prepared data set"):
        run.dataset(tmp_path)
    run.require_dataset(dataset)
    with pytest.raises(RunError, match=r"run was trained on data .*, the data set given is "):
        run.require_dataset(world(HISTORIES[:2], n_items=5))


def test_another_token_table_than_in_training_is_refused(dataset, tmp_path):
    table = tmp_path / "table.safetensors"
    save_file({"weight": torch.randn(20, 6)}, table)
    small = ["model.dim=8", "model.n_heads=1", "item_encoder.n_heads=2", "train.max_epochs=0"]
    run = train(
        "sasrec_mltfr",
        data=dataset,
        out=tmp_path / "run",
        overrides=[*small, f"item_encoder.tables=['file:{table}#weight']"],
        track=(),
    )
    card = json.loads((run.path / "tokens.json").read_text())[0]
    assert (card["name"], card["shape"]) == ("table", [20, 6])
    assert [found.sha256 for found in run.tables()] == [card["sha256"]]
    assert not run.model().training
    save_file({"weight": torch.randn(20, 6)}, table)
    with pytest.raises(RunError, match=f"was trained with token table table {card['sha256'][:12]}, found "):
        run.model()


def test_weights_of_another_model_are_refused(dataset, tmp_path):
    small = ["model.dim=8", "model.n_heads=1", "train.max_epochs=0"]
    run = train("sasrec", data=dataset, out=tmp_path / "run", overrides=small, track=())
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(text.replace("n_layers: 2", "n_layers: 1"))
    with pytest.raises(RunError, match="the weights do not fit the model: "):
        RunDir.open(run.path).model()
