import numpy as np
import pytest

import lexrec
from lexrec.data.dataset import FORMAT_VERSION
from lexrec.errors import DataError, RunError
from lexrec.evaluation.evaluate import Evaluation, EvaluationConfig
from lexrec.evaluation.evaluate import evaluate as measure
from lexrec.training.evaluate_run import evaluate, place
from lexrec.training.train import train
from tests.worlds import world

SMALL = ["model.dim=8", "model.n_heads=1", "model.max_len=4", "train.max_epochs=1"]


@pytest.fixture
def dataset(tmp_path):
    around = [[(user + step) % 6 + 1 for step in range(5)] for user in range(12)]
    found = world(around, n_items=6)
    found.manifest.update(format_version=FORMAT_VERSION, has_time=False)
    return found.save(tmp_path / "data")


def test_the_public_name_is_this_function():
    assert lexrec.evaluate is evaluate
    assert lexrec.EvaluationConfig is EvaluationConfig


def test_a_run_is_measured_as_its_scorer_is_and_the_result_kept(dataset, tmp_path):
    run = train("markov", data=dataset, out=tmp_path / "run", track=())
    found = evaluate(run.path, device="cpu")
    wanted = measure(run.scorer(), dataset)
    assert found.metrics == wanted.metrics
    kept = Evaluation.load(run.path / "evaluations" / "test")
    assert kept.protocol == found.protocol == wanted.protocol
    np.testing.assert_array_equal(kept.rank_E, wanted.rank_E)


def test_a_later_result_replaces_an_earlier_one_whole(dataset, tmp_path):
    run = train("markov", data=dataset, out=tmp_path / "run", track=())
    evaluate(run, device="cpu")
    (place(run, "test") / "stray").write_text("")
    evaluate(run, settings=EvaluationConfig(k=(1,)), device="cpu")
    assert Evaluation.load(place(run, "test")).protocol.k == (1,)
    assert [path.name for path in (run.path / "evaluations").iterdir()] == ["test"]
    assert not (place(run, "test") / "stray").exists()


def test_a_result_that_cannot_be_kept_is_an_error(dataset, tmp_path):
    run = train("markov", data=dataset, out=tmp_path / "run", track=())
    (run.path / "evaluations").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot write .*evaluations/test: Not a directory"):
        evaluate(run, device="cpu")


def test_results_under_other_rules_lie_apart(dataset, tmp_path):
    run = train("popularity", data=dataset, out=tmp_path / "run", track=())
    others = EvaluationConfig(seen="keep", ties="optimistic", candidates="train", k=(3,))
    assert place(run, "validation").name == "validation"
    assert place(run, "test", EvaluationConfig(k=(3,))).name == "test"
    name = "test-seen-keep-ties-optimistic-candidates-train"
    assert place(run, "test", others).name == name
    evaluate(run, settings=others, device="cpu")
    assert Evaluation.load(run.path / "evaluations" / name).protocol.seen == "keep"


def test_the_protocol_says_what_picked_the_weights(dataset, tmp_path):
    baseline = train("popularity", data=dataset, out=tmp_path / "baseline", track=())
    assert evaluate(baseline, device="cpu").protocol.selected_on == "nothing"
    picked = train("sasrec", data=dataset, out=tmp_path / "picked", overrides=SMALL, track=())
    protocol = evaluate(picked, split="validation", device="cpu").protocol
    assert (protocol.selected_on, protocol.is_peeked, protocol.allow_leak) == ("validation", True, False)
    untrained = [*SMALL, "train.max_epochs=0"]
    fresh = train("sasrec", data=dataset, out=tmp_path / "fresh", overrides=untrained, track=())
    assert fresh.summary["ndcg@10"] is None
    assert evaluate(fresh, device="cpu").protocol.selected_on == "nothing"


def test_the_protocol_says_that_training_might_leak(dataset, tmp_path):
    run = train(
        "sasrec",
        data=dataset,
        out=tmp_path / "run",
        overrides=[*SMALL, "objective.allow_leak=true"],
        track=(),
    )
    assert evaluate(run, device="cpu").protocol.allow_leak


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a run directory"):
        evaluate(tmp_path)
    only_training = world([[1, 2, 3]], n_items=3, splits=[[0, 0, 0]])
    run = train("popularity", data=only_training, out=tmp_path / "run", track=())
    with pytest.raises(RunError, match="was trained on a data set in memory"):
        evaluate(run)
    with pytest.raises(DataError, match="is not a prepared data set"):
        evaluate(run, data=tmp_path)
    assert not (run.path / "evaluations").exists()
