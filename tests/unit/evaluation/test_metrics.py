import math

import numpy as np
import pytest

from lexrec.errors import ConfigError
from lexrec.evaluation import metrics

RANKS = np.array([1.0, 2.5, 10.0, 11.0, math.inf])


def test_accuracy_by_hand():
    found = metrics.accuracy(RANKS, [10])
    assert list(found) == ["hr@10", "ndcg@10", "mrr@10", "recall@10"]
    assert found["hr@10"] == found["recall@10"] == 3 / 5
    assert found["ndcg@10"] == pytest.approx((1 + 1 / math.log2(3.5) + 1 / math.log2(11)) / 5)
    assert found["mrr@10"] == pytest.approx((1 + 1 / 2.5 + 1 / 10) / 5)


def test_any_k():
    found = metrics.accuracy(RANKS, [1, 2, 3, 1000])
    assert [found[f"hr@{k}"] for k in (1, 2, 3, 1000)] == [0.2, 0.2, 0.4, 0.8]


def test_a_metric_of_each_event_averages_to_the_metric():
    assert metrics.per_event(RANKS, "mrr@3").tolist() == [1, 1 / 2.5, 0, 0, 0]
    for name, value in metrics.accuracy(RANKS, [3, 10]).items():
        assert metrics.per_event(RANKS, name).mean() == value


@pytest.mark.parametrize("name", ["auc@10", "ndcg", "ndcg@0", "ndcg@10 ", "coverage@5"])
def test_an_unknown_metric_names_the_known_ones(name):
    with pytest.raises(ConfigError, match=r"no metric '.*'; known: hr, ndcg, mrr, recall, each with a k"):
        metrics.per_event(RANKS, name)


# Item indexes 0..5: padding, four items taken 1, 2, 2, 0 times in training, MASK.
COUNT = np.array([0, 1, 2, 2, 0, 0])
IS_ITEM = np.array([False, True, True, True, True, False])


def test_coverage_is_the_share_of_candidates_shown():
    assert metrics.coverage(np.array([0, 5, 0, 1, 0, 0]), n_candidates=4) == 0.5


def test_mean_popularity_weighs_every_place_the_same():
    assert metrics.mean_popularity(np.array([0, 3, 1, 0, 0, 0]), COUNT) == (3 * 1 + 1 * 2) / 4


@pytest.mark.parametrize(
    ("shown", "percentile"),
    [
        ([0, 0, 0, 0, 1, 0], 0.125),  # below it nothing, of four candidates itself half
        ([0, 1, 0, 0, 0, 0], 0.375),
        ([0, 0, 1, 0, 0, 0], 0.75),  # two below, two equal
        ([0, 0, 0, 9, 0, 0], 0.75),
        ([0, 1, 1, 1, 1, 0], 0.5),  # everything alike
    ],
)
def test_popularity_bias_is_a_mean_percentile(shown, percentile):
    assert metrics.popularity_bias(np.array(shown), COUNT, IS_ITEM) == percentile


def test_items_that_are_no_candidates_do_not_shift_the_percentiles():
    is_train_item = IS_ITEM & (COUNT > 0)
    assert metrics.popularity_bias(np.array([0, 1, 0, 0, 0, 0]), COUNT, is_train_item) == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("shown", "gini"),
    [([0, 4, 4, 4, 4, 0], 0.0), ([0, 0, 0, 8, 0, 0], 0.75), ([0, 1, 2, 3, 4, 0], 0.25), ([0] * 6, 0.0)],
)
def test_gini_by_hand(shown, gini):
    assert metrics.gini(np.array(shown), IS_ITEM) == gini


def test_nothing_shown_has_no_popularity():
    assert metrics.mean_popularity(np.zeros(6), COUNT) == 0
