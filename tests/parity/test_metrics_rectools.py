"""Metrics against the figures RecTools gave for the same random scores (record_rectools.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
from measured import evaluate_random_world
from random_world import KS, SEED

RECORD = json.loads(Path(__file__).with_name("rectools_metrics.json").read_text())
SHARED = ("hr", "recall", "ndcg", "mrr", "coverage", "mean_popularity")


@pytest.fixture(scope="module")
def measured():
    return evaluate_random_world(KS).metrics


def test_the_record_is_of_this_world():
    assert RECORD["seed"] == SEED
    assert RECORD["versions"]["rectools"].startswith("0.19")


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("name", SHARED)
def test_metrics_are_those_of_rectools(measured, name, k):
    assert 0 < measured[f"{name}@{k}"] == pytest.approx(RECORD["metrics"][f"{name}@{k}"], rel=1e-12)


@pytest.mark.parametrize("k", KS)
def test_the_other_ndcg_of_rectools_differs_by_the_gain_of_k_relevant_items(measured, k):
    gain = (1 / np.log2(np.arange(2, k + 2))).sum()
    assert measured[f"ndcg@{k}"] == pytest.approx(RECORD["metrics"][f"ndcg_of_k_relevant@{k}"] * gain)
