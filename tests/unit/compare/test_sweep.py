import json

import pytest
import yaml

from lexrec.compare._trials import Plan, Reporter, Searcher, build_report, recover
from lexrec.compare.space import parse_space
from lexrec.compare.sweep import SweepConfig, sweep
from lexrec.config import RunConfig, load_recipe
from lexrec.data.dataset import TEST, TRAIN
from lexrec.errors import ConfigError, DataError, RunError
from lexrec.training.train import train
from tests.worlds import world

optuna = pytest.importorskip("optuna")

SMALL = ("model.dim=8", "model.n_heads=1", "model.n_layers=1", "model.max_len=4", "train.batch_size=30")
BRIEF = (*SMALL, "train.max_epochs=3")
LR = "train.lr=1e-5..0.03:log"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sixty users walk along a circle of eight items."""
    folder = tmp_path_factory.mktemp("data") / "circle"
    world([[(user + step) % 8 + 1 for step in range(6)] for user in range(60)], n_items=8).save(folder)
    return folder


def settings(*space, trials=2, overrides=BRIEF, **more):
    return SweepConfig(space=space or (LR,), overrides=overrides, trials=trials, **more)


def plan_of(data, out, trials=1, pruner="median"):
    (out / "trials").mkdir(parents=True)
    metric = "ndcg@10"
    return Plan("sasrec", str(data), str(out), "cpu", metric, 3, [LR], list(BRIEF), trials, pruner, 0)


def test_the_best_trial_becomes_a_recipe(data, tmp_path):
    said = []
    found = sweep("sasrec", data=data, out=tmp_path / "s", settings=settings(trials=3), say=said.append)
    values = [trial["value"] for trial in found["trials"]]
    assert found["best"]["value"] == max(values)
    assert found["metric"] == "ndcg@10"
    assert json.loads((tmp_path / "s" / "report.json").read_text()) == found
    assert len(said) == 3
    assert said[2].startswith("[3/3] trial 2: ndcg@10 ")
    best = load_recipe(tmp_path / "s" / "best.yaml")
    assert isinstance(best, RunConfig)
    lr = yaml.safe_load(found["best"]["overrides"][0].partition("=")[2])
    assert best == load_recipe("sasrec", [*BRIEF, f"train.lr={lr}"])
    # A run is the bits of its recipe, so the recipe finds the value again.
    again = train(tmp_path / "s" / "best.yaml", data=data, out=tmp_path / "again", device="cpu", track=())
    assert again.summary["ndcg@10"] == found["best"]["value"]


def test_a_search_with_one_seed_finds_the_same_and_looks_at_no_test_event(data, tmp_path):
    one, other = (
        sweep("sasrec", data=data, out=tmp_path / name, settings=settings(trials=2)) for name in "ab"
    )
    assert [t["overrides"] for t in one["trials"]] == [t["overrides"] for t in other["trials"]]
    assert [t["value"] for t in one["trials"]] == [t["value"] for t in other["trials"]]
    assert not list((tmp_path / "a").rglob("evaluations"))


def test_more_trials_go_on_where_the_search_was(data, tmp_path):
    out = tmp_path / "s"
    first = sweep("sasrec", data=data, out=out, settings=settings(trials=2))
    more = sweep("sasrec", data=data, out=out, settings=settings(trials=3))
    assert more["trials"][:2] == first["trials"]
    assert len(more["trials"]) == 3
    said = []
    assert sweep("sasrec", data=data, out=out, settings=settings(trials=3), say=said.append) == more
    assert said == []


def test_a_trial_below_the_others_is_given_up(data, tmp_path):
    plan = plan_of(data, tmp_path / "s", trials=6)
    searcher = Searcher(plan._replace(overrides=[*SMALL, "train.max_epochs=4"]))
    for lr in [0.02] * 5 + [1e-5]:
        searcher.study.enqueue_trial({"train.lr": lr})
    searcher.work(lambda text: None)
    *good, bad = build_report(plan)["trials"]
    assert {trial["state"] for trial in good} == {"complete"}
    assert (bad["state"], bad["value"]) == ("pruned", None)
    assert bad["last_epoch"] == 3
    run = plan.folder(5)
    assert not (run / "DONE").exists()
    assert not (run / "checkpoints").exists()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_trial_that_was_cut_off_goes_on_from_its_checkpoint(data, tmp_path):
    plan = plan_of(data, tmp_path / "s", trials=2)
    study = Searcher(plan).study
    trial = study.ask()
    trial.set_user_attr("run", trial.number)
    (dimension,) = parse_space([LR])
    override = dimension.suggest(trial)

    class Cut(Reporter):
        def validated(self, at, metrics, is_best):
            if at.epoch == 2:
                raise KeyboardInterrupt

    folder = plan.folder(0)
    with pytest.raises(KeyboardInterrupt):
        train("sasrec", data=data, out=folder, overrides=[*BRIEF, override], track=[Cut(trial, "ndcg@10")])
    begun = (folder / "metrics.jsonl").read_text().splitlines()
    recover(plan)
    Searcher(plan).work(lambda text: None)
    found = build_report(plan)["trials"]
    assert [trial["state"] for trial in found] == ["complete", "complete"]
    assert found[0]["run"] == str(folder)
    assert found[0]["overrides"] == [override]
    # The first epoch was not trained again: its line still has the seconds of then.
    assert (folder / "metrics.jsonl").read_text().splitlines()[0] == begun[0]
    straight = train("sasrec", data=data, out=tmp_path / "r", overrides=[*BRIEF, override], track=())
    assert found[0]["value"] == straight.summary["ndcg@10"]


def test_a_trial_that_fails_loses_no_other(data, tmp_path):
    # An infinite step: the loss is no number at the second batch.
    space = "train.lr=[0.01, 1e30]"
    found = sweep("sasrec", data=data, out=tmp_path / "s", settings=settings(space, trials=5))
    failed = [trial for trial in found["trials"] if trial["state"] == "fail"]
    assert 0 < len(failed) < 5
    assert all("the loss became nan" in trial["error"] for trial in failed)
    assert found["best"]["overrides"] == ["train.lr=0.01"]
    only = settings("train.lr=[1e30]", trials=2)
    with pytest.raises(RunError, match="none of 2 trials succeeded; the last said: the loss became nan"):
        sweep("sasrec", data=data, out=tmp_path / "none", settings=only)


def test_a_baseline_is_searched_too(data, tmp_path):
    space = "baseline.neighbours=[1, 20]", "baseline.decay=0.1..0.9"
    found = sweep("item_knn", data=data, out=tmp_path / "s", settings=settings(*space, overrides=()))
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 2
    assert 0 < found["best"]["value"] <= 1
    (kept,) = (tmp_path / "s" / "trials" / "0000" / "evaluations").iterdir()
    assert kept.name == "validation"
    assert load_recipe(tmp_path / "s" / "best.yaml").baseline.name == "item_knn"


def test_what_is_refused_is_refused_before_anything_is_written(data, tmp_path):
    out = tmp_path / "s"

    def why(recipe="sasrec", data=data, error=ConfigError, jobs=1, **changed):
        with pytest.raises(error) as caught:
            sweep(recipe, data=data, out=out, settings=settings(**changed), jobs=jobs)
        assert not out.exists()
        return str(caught.value)

    unknown = SweepConfig(space=("train.rate=1..2",), trials=1)
    with pytest.raises(ConfigError) as caught:
        sweep("sasrec", data=data, out=out, settings=unknown)
    assert str(caught.value).startswith("space: train.rate=1: sasrec: train: unknown key 'rate'; known: ")
    assert "\n" not in str(caught.value)
    assert why(recipe="sasrek").startswith("no recipe 'sasrek'; known: ")
    assert why(jobs=0) == "--jobs is at least 1, got 0"
    assert why(metric="hr@10") == (
        "metric 'hr@10' is not what this recipe picks its best epoch by; set train.metric=hr@10 instead"
    )
    assert why(overrides=("train.select_on=test",)) == (
        "train.select_on=test would choose settings by the events that are to judge them; "
        "search with train.select_on=validation"
    )
    assert "is not a prepared data set" in why(data=tmp_path / "none", error=DataError)
    bare = world([[1, 2, 3]] * 9, 3, splits=[[TRAIN, TRAIN, TEST]] * 9).save(tmp_path / "bare")
    assert "has no validation events" in why(data=bare.folder, error=DataError)


def test_another_search_in_the_same_place_is_refused(data, tmp_path):
    out = tmp_path / "s"
    sweep("sasrec", data=data, out=out, settings=settings(trials=1))

    def why(**changed):
        with pytest.raises(RunError) as caught:
            sweep("sasrec", data=data, out=out, settings=settings(**changed))
        return str(caught.value)

    end = "); choose another --out"
    assert why(overrides=(*BRIEF, "train.clip_norm=1")) == (
        f"{out} holds another search (train.clip_norm: 0.0 -> 1.0" + end
    )
    assert (
        why(seed=3, pruner="none")
        == f"{out} holds another search (pruner: median -> none; seed: 0 -> 3" + end
    )
    with pytest.raises(
        RunError, match=r"space: train\.lr=0\.00001\.\.0\.03:log -> model\.dropout=0\.1\.\.0\.2"
    ):
        sweep("sasrec", data=data, out=out, settings=settings("model.dropout=0.1..0.2"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(RunError, match="already holds other files; choose another --out"):
        sweep("sasrec", data=data, out=tmp_path / "other", settings=settings())


def test_hyperband_is_a_pruner_too(data, tmp_path):
    found = sweep("sasrec", data=data, out=tmp_path / "s", settings=settings(trials=3, pruner="hyperband"))
    assert {trial["state"] for trial in found["trials"]} <= {"complete", "pruned"}
    assert found["best"] is not None
