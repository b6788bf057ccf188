"""Cores that share the work of real models change nothing but the time it takes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest
import torch

from lexrec.baselines.popularity import Popularity, PopularityConfig
from lexrec.errors import RunError
from lexrec.evaluation import scorer as scorers
from lexrec.evaluation.evaluate import EvaluationConfig, evaluate
from lexrec.evaluation.scorer import ModelScorer, may_share
from lexrec.serving import scorer_ranker
from lexrec.serving.scorer_ranker import ScorerRanker
from tests.components import MAX_LEN, N_ITEMS, build
from tests.worlds import world

T = TypeVar("T")
KINDS = [
    ("sasrec", "id_embedding"),
    ("sasrec", "mltfr"),
    ("gru4rec", "id_embedding"),
    ("bsarec", "id_embedding"),
]
HISTORIES = [[1 + (3 * u + 5 * t) % N_ITEMS for t in range(2 + u % (MAX_LEN + 4))] for u in range(60)]


def by_threads(ask: Callable[[], T]) -> list[T]:
    """The answers on one thread, and on two that share."""
    before, answers = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            answers.append(ask())
    finally:
        torch.set_num_threads(before)
    return answers


@pytest.mark.parametrize(("model", "encoder"), KINDS)
def test_lists_are_the_same(monkeypatch: pytest.MonkeyPatch, model: str, encoder: str) -> None:
    monkeypatch.setattr(scorer_ranker, "_ALONE", 0)
    monkeypatch.setattr(scorer_ranker, "_FEWEST", 8)
    ranker = ScorerRanker(ModelScorer(build(model, encoder)))
    one, two = by_threads(lambda: ranker.rank([*HISTORIES, []], 5, [*HISTORIES, []]))
    np.testing.assert_array_equal(one.item_BK, two.item_BK)
    np.testing.assert_allclose(one.score_BK, two.score_BK, rtol=1e-5)
    # As asked for one by one.
    alone = [ranker.rank([history], 5, [history]).item_BK[0] for history in HISTORIES]
    np.testing.assert_array_equal(two.item_BK[:-1], alone)


@pytest.mark.parametrize(("model", "encoder"), KINDS)
def test_evaluations_are_the_same(model: str, encoder: str) -> None:
    dataset, scorer = world([[*h, 1, 2] for h in HISTORIES], N_ITEMS), ModelScorer(build(model, encoder))
    settings = EvaluationConfig(batch_size=7)
    one, two = by_threads(lambda: evaluate(scorer, dataset, settings))
    assert may_share(scorer)
    np.testing.assert_array_equal(one.rank_E, two.rank_E)
    assert replace(one, rank_E=two.rank_E) == two


def test_what_depends_on_the_batch_or_gains_nothing_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert may_share(ModelScorer(build("sasrec", "mltfr")))
    assert not may_share(ModelScorer(build("sasrec", "mltfr", eval_noise=True)))
    assert not may_share(ModelScorer(build("sasrec", "mltfr", interest="sequence", pool="batch")))
    assert not may_share(Popularity(PopularityConfig()).fit(world([[1, 2, 3]], N_ITEMS)))
    monkeypatch.setattr(scorers, "_NARROW", 31)
    assert not may_share(ModelScorer(build("sasrec")))


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_broken_model_is_named_from_wherever_it_broke(n_threads: int) -> None:
    model, before = build("sasrec"), torch.get_num_threads()
    with torch.no_grad():
        next(model.items.parameters())[3] = torch.nan
    torch.set_num_threads(n_threads)
    with pytest.raises(RunError, match="SASRec gives NaN scores for user"):
        evaluate(ModelScorer(model), world(HISTORIES[2:], N_ITEMS))
    assert torch.get_num_threads() == n_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("n_threads", "n_batches"), [(1, 3), (2, 3), (4, 4), (7, 7)])
def test_each_core_gets_as_much_work_as_the_others_and_every_history_once(
    n_threads: int, n_batches: int
) -> None:
    length_B = np.random.default_rng(0).integers(1, 51, 400)
    order_B = np.argsort(-length_B, kind="stable")
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    parts, little = scorer_ranker._shared(order_B, length_B), scorer_ranker._shared(order_B[:20], length_B)
    torch.set_num_threads(before)
    assert len(parts) == n_batches  # Two would be one of more than 256.
    assert np.array_equal(np.concatenate(parts), order_B)
    work = [(length_B[part] + scorer_ranker._LIST_COST).sum() for part in parts]
    assert max(work) < 1.1 * min(work)
    assert [len(part) for part in little] == [20]


def test_requests_at_the_same_time_change_neither_each_other_nor_the_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scorer_ranker, "_ALONE", 30 * N_ITEMS)
    ranker, before = ScorerRanker(ModelScorer(build("sasrec", "mltfr"))), torch.get_num_threads()
    torch.set_num_threads(2)
    wanted = ranker.rank(HISTORIES, 5, HISTORIES)

    def ask(i: int) -> bool:
        # Some of them large enough to be shared, some not.
        few = HISTORIES[:20] if i % 2 else HISTORIES
        found = ranker.rank(few, 5, few)
        return bool((found.item_BK == wanted.item_BK[: len(few)]).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(24)))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
