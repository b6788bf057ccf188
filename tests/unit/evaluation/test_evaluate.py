import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import leave_one_out, world

import lexrec
from lexrec.baselines.popularity import Popularity, PopularityConfig
from lexrec.data.batch import Batch
from lexrec.data.dataset import TEST, TRAIN, VALIDATION
from lexrec.errors import ConfigError, DataError, RunError
from lexrec.evaluation import metrics
from lexrec.evaluation.evaluate import Evaluation, EvaluationConfig, accuracy, evaluate
from lexrec.evaluation.events import batches, evaluation_events

T, V, X = TRAIN, VALIDATION, TEST


class Following:
    """Scores item i + 1 best after newest item i, then i + 2 and so on round the circle."""

    max_len = 3

    def __init__(self, n_items: int, *, trims: bool = True, broken_user: int = -1) -> None:
        self.n_items, self.trims, self.broken_user = n_items, trims, broken_user
        self.widths: list[int] = []

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self.widths.append(batch.item_BL.shape[1])
        return batch.item_BL[:, -1:], batch.user_B

    def score(self, query: tuple[Tensor, Tensor], first: int, last: int) -> Tensor:
        newest_B1, user_B = query
        score_BJ = -((torch.arange(first, last) - newest_B1 - 1) % self.n_items).float()
        score_BJ[user_B == self.broken_user] = torch.nan
        return score_BJ


def circle():
    """Four users on a circle of 10 items; the test targets are 1, 2, 4 and 1 steps ahead."""
    histories = [[1, 2, 3, 4], [1, 2, 3, 5], [6, 7, 8, 9, 3], [9, 10, 1, 2]]
    return world(histories, n_items=10)


def test_ranks_are_kept_in_the_order_of_the_data_and_decide_the_metrics():
    result = evaluate(Following(10), circle(), EvaluationConfig(k=(3, 1)))
    assert result.rank_E.tolist() == [1, 2, 4, 1]
    assert result.rank_E.dtype == np.float32
    assert result.metrics["hr@1"] == 0.5
    assert result.metrics["hr@3"] == result.metrics["recall@3"] == 0.75
    assert result.metrics["mrr@3"] == (1 + 0.5 + 0 + 1) / 4
    assert result.metrics["ndcg@3"] == pytest.approx((2 + 1 / math.log2(3)) / 4)


def test_seen_items_do_not_compete_unless_kept():
    dataset = world([[2, 1, 5, 1, 3]], n_items=6)
    scorer = Following(6)
    assert evaluate(scorer, dataset).rank_E.tolist() == [1]
    assert evaluate(scorer, dataset, EvaluationConfig(seen="keep")).rank_E.tolist() == [2]


def test_variety_comes_from_what_the_lists_show():
    result = evaluate(Following(10), circle(), EvaluationConfig(k=(1, 2)))
    # Newest items 3, 3, 9, 1; seen ones are passed over: 4, 4, 10, 2 and then 5, 5, 1, 3.
    assert result.metrics["coverage@1"] == 3 / 10
    assert result.metrics["coverage@2"] == 6 / 10
    assert result.metrics["mean_popularity@1"] == (0 + 0 + 1 + 2) / 4
    assert 0 < result.metrics["gini@2"] < result.metrics["gini@1"] < 1
    assert 0 < result.metrics["popularity_bias@1"] < 1


def test_light_has_the_same_accuracy_and_nothing_else():
    full, light = (evaluate(Following(10), circle(), light=light) for light in (False, True))
    assert light.metrics == {k: v for k, v in full.metrics.items() if k.split("@")[0] in metrics.ACCURACY}
    assert light.groups == {}
    assert light.rank_E.tolist() == full.rank_E.tolist()
    assert light.protocol == full.protocol


def test_events_that_are_kept_have_the_same_accuracy_every_time():
    settings = EvaluationConfig(k=(1, 3))
    scorer, dataset = Following(10), circle()
    events = evaluation_events(dataset, "validation")
    kept = list(batches(dataset, events, 3, scorer.max_len, trims=True))
    wanted = evaluate(scorer, dataset, settings, split="validation", light=True).metrics
    for _ in range(2):
        assert accuracy(scorer, dataset, kept, settings, "validation") == wanted


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
@pytest.mark.parametrize("block", [1, 4, 10])
def test_batches_and_blocks_change_nothing(batch_size, block):
    settings = EvaluationConfig(batch_size=batch_size, block=block)
    result, wanted = evaluate(Following(10), circle(), settings), evaluate(Following(10), circle())
    assert result.rank_E.tolist() == wanted.rank_E.tolist()
    assert (result.metrics, result.groups) == (wanted.metrics, wanted.groups)


def test_rows_are_as_long_as_the_scorer_needs():
    dataset = world([[1, 2, 3, 4, 5, 6], [1, 2, 3]], n_items=6)
    dataset_short = world([[1, 2, 3]], n_items=6)
    fixed, trimmed, short = Following(6, trims=False), Following(6), Following(6)
    one = EvaluationConfig(batch_size=1)
    assert evaluate(fixed, dataset, one).rank_E.tolist() == evaluate(trimmed, dataset, one).rank_E.tolist()
    evaluate(short, dataset_short)
    assert (fixed.widths, trimmed.widths, short.widths) == ([3, 3], [3, 2], [2])


def test_validation_is_ranked_from_what_came_before_it():
    result = evaluate(Following(10), circle(), split="validation", selected_on="validation")
    assert result.rank_E.tolist() == [1, 1, 1, 1]
    assert result.protocol.is_peeked


def test_groups_split_the_events_by_history_popularity_and_novelty():
    histories = [[1, 2, 3], [2, 1, 3, 2, 4], [1, 2, 1, 2, 1, 3, 4]]
    splits = [[T, V, X], [T, T, T, X, X], [T, T, T, T, T, T, X]]
    result = evaluate(Following(4), world(histories, n_items=4, splits=splits), EvaluationConfig(k=(1,)))
    count = {key: {name: g["events"] for name, g in groups.items()} for key, groups in result.groups.items()}
    assert count == {
        "history": {"1-4": 3, "5-9": 1},
        "popularity": {"0": 2, "1-4": 2},
        "item": {"new": 2, "known": 2},
    }
    for groups in result.groups.values():
        hits = sum(group["events"] * group["metrics"]["hr@1"] for group in groups.values())
        assert hits == 4 * result.metrics["hr@1"]
    # Both events of item 4 find it next: nothing else is unseen.
    assert result.groups["item"]["new"]["metrics"] == dict.fromkeys(
        ("hr@1", "ndcg@1", "mrr@1", "recall@1"), 1.0
    )


def test_candidates_can_be_the_items_of_training_and_other_targets_are_misses():
    dataset = world([[1, 2, 3, 4], [2, 1, 3, 5]], n_items=6)
    result = evaluate(Following(6), dataset, EvaluationConfig(k=(6,), candidates="train"))
    assert result.rank_E.tolist() == [math.inf, math.inf]
    assert result.metrics["hr@6"] == result.metrics["ndcg@6"] == result.metrics["mrr@6"] == 0
    assert (result.protocol.n_candidates, result.protocol.n_unreachable) == (2, 2)
    assert result.metrics["coverage@6"] == 0


def test_an_empty_history_is_ranked_too():
    dataset = world([[3], [1, 2]], n_items=3, splits=[[X], [T, X]])
    result = evaluate(Popularity(PopularityConfig()).fit(dataset), dataset)
    assert result.rank_E.tolist() == [2.5, 1.5]
    assert result.groups["history"]["0"]["events"] == 1


def test_the_protocol_says_how_it_was_measured():
    dataset = circle()
    settings = EvaluationConfig(k=(10, 5, 5), seen="keep", ties="optimistic")
    protocol = evaluate(Following(10), dataset, settings, selected_on="test", allow_leak=True).protocol
    assert protocol.model_dump() == {
        "lexrec": lexrec.__version__,
        "data": dataset.fingerprint,
        "split_rule": "leave-one-out",
        "split": "test",
        "history": "rolling",
        "seen": "keep",
        "ties": "optimistic",
        "candidates": "all",
        "n_candidates": 10,
        "n_events": 4,
        "n_unreachable": 0,
        "pool": None,
        "pool_seed": None,
        "sample": None,
        "k": (5, 10),
        "selected_on": "test",
        "allow_leak": True,
    }


def test_a_nan_score_names_the_model_and_the_user():
    scorer = Following(10, broken_user=2)
    with pytest.raises(RunError, match=r"Following gives NaN scores for user 'u2'; .* lower train\.lr"):
        evaluate(scorer, circle(), EvaluationConfig(batch_size=2))


def test_a_split_without_events_is_refused():
    with pytest.raises(DataError, match="no validation events"):
        evaluate(Following(2), world([[1, 2]], n_items=2, splits=[[T, X]]), split="validation")


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"every k is at least 1, got \[5, 0\]"):
        EvaluationConfig(k=(5, 0))


def test_a_saved_evaluation_is_the_same_again(tmp_path):
    result = evaluate(Following(10), circle())
    result.save(tmp_path / "test")
    again = Evaluation.load(tmp_path / "test")
    assert (again.json(), again.rank_E.tolist()) == (result.json(), result.rank_E.tolist())
    assert sorted(file.name for file in (tmp_path / "test").iterdir()) == [
        "metrics.json",
        "protocol.json",
        "ranks_test.npy",
    ]


def test_the_json_has_exactly_three_parts():
    result = evaluate(Following(10), circle())
    tree = json.loads(json.dumps(result.json()))
    assert list(tree) == ["protocol", "metrics", "groups"]
    assert tree["metrics"]["hr@10"] == 1.0


@pytest.mark.parametrize("file", ["protocol.json", "metrics.json", "ranks_test.npy"])
def test_a_damaged_evaluation_is_one_clear_line(tmp_path, file):
    evaluate(Following(10), circle()).save(tmp_path)
    (tmp_path / file).write_bytes(b"{")
    with pytest.raises(RunError, match=r"holds no readable evaluation \(.+\); evaluate again"):
        Evaluation.load(tmp_path)


def test_ranks_of_another_evaluation_are_refused(tmp_path):
    evaluate(Following(10), circle()).save(tmp_path)
    np.save(tmp_path / "ranks_test.npy", np.ones(3, dtype=np.float32))
    with pytest.raises(RunError, match="has 3 ranks, its protocol names 4 events"):
        Evaluation.load(tmp_path)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("folder", "ties", "metric", "value"),
    [
        ("ml100k", "pessimistic", "hr@10", 0.0838),
        ("ml100k", "pessimistic", "ndcg@10", 0.0432),
        ("prime_pantry_mltfr", "expected", "hr@20", 0.0416),
        ("prime_pantry_mltfr", "expected", "ndcg@20", 0.0169),
    ],
)
def test_popularity_reproduces_what_was_measured_elsewhere(shared, folder, ties, metric, value):
    dataset = leave_one_out(shared / "data" / folder)
    scorer = Popularity(PopularityConfig()).fit(dataset)
    result = evaluate(scorer, dataset, EvaluationConfig(ties=ties), light=True)
    assert round(result.metrics[metric], 4) == value
