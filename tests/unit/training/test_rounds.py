"""Two rounds: what the second gets of the first, what each leaves behind, and going on after a kill."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from lexrec.config import RunConfig, load_recipe, run_config
from lexrec.data.dataset import Dataset
from lexrec.errors import ConfigError, RunError
from lexrec.item_encoders.mltfr import Mltfr
from lexrec.run_dir import RunDir, load_tables
from lexrec.training import checkpoint, fisher, rounds
from lexrec.training.evaluate_run import evaluate
from lexrec.training.loop import Trainer
from lexrec.training.train import build_step, train
from tests import components, language_models
from tests.worlds import world

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    rows = [[(u + t) % 9 + 1 for t in range(7)] for u in range(30)]
    return world(rows, 9).save(tmp_path / "data")


@pytest.fixture
def tables(tmp_path: Path) -> list[str]:
    """Two tables of width 12 and one of width 8."""
    named = []
    for i, (n_tokens, width) in enumerate([(30, 12), (20, 12), (25, 8)]):
        weight = torch.randn(n_tokens, width, generator=torch.Generator().manual_seed(i))
        save_file({"embedding": weight}, tmp_path / f"t{i}.safetensors")
        named.append(f"file:{tmp_path}/t{i}.safetensors#embedding")
    return named


def two_rounds(tables: list[str], rounds: dict[str, object] | None = None, **consensus: object) -> RunConfig:
    config = run_config(
        {
            "model": {"name": "sasrec", "dim": 8, "n_layers": 1, "max_len": 6},
            "item_encoder": {"name": "mltfr", "tables": tables, "k": 4, "consensus": consensus},
            "objective": {"name": "next_item", "loss": "bce"},
            "train": {"batch_size": 8, "max_epochs": 3, "lr": 0.01},
            "rounds": {"max_epochs": 2, "fisher": {"n_samples": 12}, **(rounds or {})},
        }
    )
    assert isinstance(config, RunConfig)
    return config


def encoder(run: RunDir) -> Mltfr:
    items = run.model().items
    assert isinstance(items, Mltfr)
    return items


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["scalar", "diag"])
@pytest.mark.parametrize("average", ["attention", "all"])
def test_the_consensus_is_the_fisher_weighted_average_of_round_1_and_stays(
    kind: str, average: str, data: Dataset, tables: list[str], tmp_path: Path
) -> None:
    options = {"fisher": {"kind": kind, "n_samples": 12}}
    run = train(two_rounds(tables, options, average=average), data=data, out=tmp_path / "run", track=())
    first = RunDir.open(run.path / "rounds" / "1")
    importance = load_file(first.path / "fisher.safetensors")
    experts = [dict(expert.named_parameters()) for expert in encoder(first).experts]
    (consensus,) = encoder(run).consensus
    names = [name for name, _ in consensus.named_parameters()]
    assert any(name.startswith("align") for name in names) == (average == "all")
    assert importance.keys() == {f"experts.{m}.{name}" for m in (0, 1) for name in names}
    for name, parameter in consensus.named_parameters():
        a, b = (importance[f"experts.{m}.{name}"].double() for m in (0, 1))
        assert a.ndim == (0 if kind == "scalar" else experts[0][name].ndim)
        expected = (a * experts[0][name] + b * experts[1][name]) / (a + b)
        expected = torch.where(a + b > 0, expected, (experts[0][name] + experts[1][name]) / 2)
        assert_close(parameter, expected.float())


def test_each_round_keeps_what_it_was_and_found(data: Dataset, tables: list[str], tmp_path: Path) -> None:
    run = train(two_rounds(tables), data=data, out=tmp_path / "run", track=())
    first = RunDir.open(run.path / "rounds" / "1")
    assert isinstance(run.config, RunConfig)
    assert isinstance(first.config, RunConfig)
    assert (first.config.rounds, first.config.train.max_epochs) == (None, 2)
    assert first.config.item_encoder.consensus is None  # type: ignore[attr-defined]
    assert (first.summary["epochs"], run.summary["epochs"]) == (2, 3)
    assert run.summary["seconds"] >= first.summary["seconds"]
    assert not (first.path / "rounds").exists()
    found = json.loads((first.path / "fisher.json").read_text())
    assert (found["kind"], found["labels"], found["n_samples"]) == ("scalar", "model", 12)
    assert [expert["table"].partition("+")[0] for expert in found["experts"]] == [
        table.name for table in load_tables(run.config)[:2]
    ]
    assert sum(expert["share"] for expert in found["experts"]) == pytest.approx(1)
    assert all(expert["mean"] > 0 for expert in found["experts"])


def test_round_1_is_what_one_round_would_be(data: Dataset, tables: list[str], tmp_path: Path) -> None:
    config = two_rounds(tables)
    run = train(config, data=data, out=tmp_path / "run", track=())
    alone = train(rounds.first_config(config), data=data, out=tmp_path / "alone", track=())
    assert same(RunDir.open(run.round(1)).weights(), alone.weights())


@pytest.mark.parametrize("start", ["continue", "restart"])
def test_round_2_starts_where_it_is_told(
    start: str, data: Dataset, tables: list[str], tmp_path: Path
) -> None:
    config = two_rounds(tables, {"start": start})
    run = train(config, data=data, out=tmp_path / "run", track=())
    loaded = load_tables(config)
    second, first = (build_step(c, data, loaded) for c in (config, rounds.first_config(config)))
    fresh = {name: tensor.clone() for name, tensor in second.model.state_dict().items()}
    rounds.begin_second(second, run, first, data, CPU)
    begun, trained = second.model.state_dict(), RunDir.open(run.round(1)).weights()
    for name, tensor in begun.items():
        if "consensus" in name:
            assert not torch.equal(tensor, fresh[name])
        else:
            assert torch.equal(tensor, (trained if start == "continue" else fresh)[name])


class Killed(Exception):
    """Stands for the power going off."""


@pytest.mark.parametrize("where", ["round 1", "importance", "before round 2", "round 2"])
def test_a_run_killed_in_either_round_goes_on_as_if_it_had_not_been(
    where: str, data: Dataset, tables: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = two_rounds(tables)
    whole = train(config, data=data, out=tmp_path / "whole", track=())

    def dies(*args: object, **kwargs: object) -> None:
        raise Killed

    saved = 0

    def dies_later(self: Trainer, at: checkpoint.Progressed) -> None:
        nonlocal saved
        checkpoint.save(self.run, self.step.model, self.optimizer, self.generator, at)
        saved += 1
        if saved == (1 if where == "round 1" else 3):
            raise Killed

    with monkeypatch.context() as patch:
        if where == "importance":
            patch.setattr(fisher, "importance", dies)
        elif where == "before round 2":
            patch.setattr(rounds, "_encoder", dies)
        else:
            patch.setattr(Trainer, "_save", dies_later)
        with pytest.raises(Killed):
            train(config, data=data, out=tmp_path / "cut", track=())
    assert not (tmp_path / "cut" / "DONE").exists()
    assert (tmp_path / "cut" / "rounds" / "1" / "DONE").exists() == (where != "round 1")
    with pytest.raises(RunError, match="is not finished"):
        RunDir.open(tmp_path / "cut")
    again = train(config, data=data, out=tmp_path / "cut", resume=True, track=())
    assert same(again.weights(), whole.weights())
    assert (again.round(1) / "fisher.json").read_text() == (whole.round(1) / "fisher.json").read_text()


def begin_round_2_again(run: RunDir) -> None:
    """As if the power had gone off before the first checkpoint of Round 2."""
    (run.path / "DONE").unlink()
    shutil.rmtree(run.path / "checkpoints")


def test_importance_is_measured_once(
    data: Dataset, tables: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("measured twice")

    config = two_rounds(tables)
    run = train(config, data=data, out=tmp_path / "run", track=())
    weights = run.weights()
    begin_round_2_again(run)
    monkeypatch.setattr(fisher, "importance", never)
    assert same(train(config, data=data, out=run.path, resume=True, track=()).weights(), weights)


def test_damaged_importance_is_said_with_what_to_do(data: Dataset, tables: list[str], tmp_path: Path) -> None:
    config = two_rounds(tables)
    run = train(config, data=data, out=tmp_path / "run", track=())
    begin_round_2_again(run)
    (run.round(1) / "fisher.safetensors").write_bytes(b"half")
    with pytest.raises(RunError, match=r"fisher\.safetensors is missing or damaged.*remove fisher\.json"):
        train(config, data=data, out=run.path, resume=True, track=())
    (run.round(1) / "fisher.json").unlink()
    assert train(config, data=data, out=run.path, resume=True, track=()).is_done


@pytest.mark.parametrize("model", components.MODELS)
def test_every_backbone_trains_in_two_rounds(
    model: str, data: Dataset, tables: list[str], tmp_path: Path
) -> None:
    tree = two_rounds(tables, {"max_epochs": 1}, average="all").model_dump()
    tree["model"] = {"name": model, "dim": 8, "max_len": 6}
    tree["objective"] = {"name": "last_item", "loss": "bce"}
    tree["train"]["max_epochs"] = 1
    if model == "idiomoe":
        tree["model"] = {"name": model, "max_len": 6, "lm": {"model": str(language_models.folder())}}
    run = train(run_config(tree), data=data, out=tmp_path / "run", track=())
    (consensus,) = encoder(run).consensus
    assert consensus.members == (0, 1)
    assert run.summary["ndcg@10"] > 0


def test_both_rounds_are_evaluated_like_any_run(data: Dataset, tables: list[str], tmp_path: Path) -> None:
    run = train(two_rounds(tables), data=data, out=tmp_path / "run", track=())
    for folder in (run.path, run.round(1)):
        assert evaluate(folder, device="cpu").protocol.selected_on == "validation"
        assert (folder / "evaluations" / "test").is_dir()


def test_a_run_that_picks_its_epoch_on_the_test_events_says_so(data: Dataset, tmp_path: Path) -> None:
    tree = {
        "model": {"name": "sasrec", "dim": 8, "n_layers": 1, "max_len": 6},
        "item_encoder": {"name": "id_embedding"},
        "objective": {"name": "next_item", "loss": "bce"},
        "train": {"batch_size": 8, "max_epochs": 3, "select_on": "test", "metric": "ndcg@5"},
    }
    run = train(run_config(tree), data=data, out=tmp_path / "run", track=())
    found = evaluate(run, device="cpu")
    assert found.protocol.selected_on == "test"
    assert found.protocol.is_peeked
    assert run.summary["ndcg@5"] == pytest.approx(found.metrics["ndcg@5"])


def test_rounds_and_consensus_come_together(tables: list[str]) -> None:
    tree = two_rounds(tables).model_dump()
    with pytest.raises(ConfigError, match=r"consensus is made in Round 1; add rounds=\{\}"):
        run_config({**tree, "rounds": None})
    tree["item_encoder"]["consensus"] = None
    with pytest.raises(ConfigError, match=r"add item_encoder\.consensus=\{\} \(mltfr\), or set rounds=null"):
        run_config(tree)
    tree["item_encoder"] = {"name": "id_embedding"}
    with pytest.raises(ConfigError, match="this one has none"):
        run_config(tree)


def test_a_consensus_of_one_is_refused_before_there_is_a_run(
    data: Dataset, tables: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"two tables of one width, these have 12, 8; item_encoder\.pca=8"):
        train(two_rounds(tables[1:]), data=data, out=tmp_path / "run", track=())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("preset", ["paper", "release"])
def test_the_papers_and_the_releases_recipes_train(
    preset: str, data: Dataset, tables: list[str], tmp_path: Path
) -> None:
    shipped = load_recipe(
        f"sasrec_mltfr_{preset}",
        [
            f"item_encoder.tables={json.dumps(tables)}",
            *("item_encoder.pca=6", "item_encoder.k=3", "model.dim=8", "model.max_len=6"),
            *(
                "train.max_epochs=2",
                "train.batch_size=8",
                "rounds.max_epochs=2",
                "rounds.fisher.n_samples=16",
            ),
        ],
    )
    run = train(shipped, data=data, out=tmp_path / "run", track=())
    found = evaluate(run, device="cpu").protocol
    assert (found.selected_on, found.allow_leak) == ("test", True)
    (consensus,) = encoder(run).consensus
    assert consensus.members == (0, 1, 2)
    scales = {name for name in load_file(run.round(1) / "fisher.safetensors") if "logit_scale" in name}
    assert not scales, "the paper's cosine has no scale to learn"
