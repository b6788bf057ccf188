"""Each target among a few random unseen items."""

import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import world

from lexrec.baselines.popularity import Popularity, PopularityConfig
from lexrec.data.batch import Batch
from lexrec.errors import ConfigError, DataError, ProtocolError, RunError
from lexrec.evaluation.evaluate import Evaluation, EvaluationConfig, evaluate, questions
from lexrec.evaluation.pool import draw_pools, pool_ranks

N = 40


class ByIndex:
    """The higher its index, the better an item; of two neighbours both are alike."""

    n_items, max_len, trims = N, 3, True

    def __init__(self, broken_item: int = 0) -> None:
        self.broken_item = broken_item

    def encode(self, batch: Batch) -> int:
        return len(batch.item_BL)

    def score(self, query: int, first: int, last: int) -> Tensor:
        score_J = (torch.arange(first, last) // 2).float()
        score_J[torch.arange(first, last) == self.broken_item] = torch.nan
        return score_J.expand(query, -1).clone()


def walks(n_users: int = 30):
    return world([[(u * 7 + t) % N + 1 for t in range(5)] for u in range(n_users)], n_items=N)


def test_a_pool_holds_what_the_user_has_not_met_and_nothing_twice() -> None:
    dataset = walks()
    events, _, item_EP = questions(dataset, "test", EvaluationConfig(pool=9, pool_seed=3))
    assert item_EP is not None
    assert item_EP.shape == (30, 9)
    for event, pool in enumerate(item_EP.tolist()):
        met = {*dataset.item_N[events.start_E[event] : events.end_E[event]].tolist(), events.target_E[event]}
        assert len(set(pool)) == 9
        assert not met & set(pool)
        assert set(pool) <= set(range(1, N + 1))


def test_pools_are_uniform_and_one_seed_draws_them_again() -> None:
    dataset = walks()
    drawn = [questions(dataset, "test", EvaluationConfig(pool=9, pool_seed=s)).item_EP for s in range(60)]
    assert (drawn[0] == questions(dataset, "test", EvaluationConfig(pool=9)).item_EP).all()
    assert (drawn[0] != drawn[1]).any()
    first_user = np.bincount(np.concatenate([item_EP[0] for item_EP in drawn]), minlength=N + 1)[1:]
    unmet = np.delete(first_user, np.arange(5))
    # 60 pools of 9 out of 35: 15.4 of each, give or take 3.4.
    assert unmet.min() >= 4
    assert unmet.max() <= 28


def test_a_sample_has_the_pools_that_all_events_have() -> None:
    dataset = walks()
    whole, some = (questions(dataset, "test", EvaluationConfig(pool=9, sample=s)) for s in (None, 8))
    assert len(some.events) == 8
    where = np.searchsorted(whole.events.end_E, some.events.end_E)
    assert (whole.item_EP[where] == some.item_EP).all()
    result = evaluate(ByIndex(), dataset, EvaluationConfig(pool=9, sample=8))
    assert (result.protocol.n_events, result.protocol.sample, len(result.rank_E)) == (8, 8, 8)


def test_almost_nothing_left_is_still_drawn_whole() -> None:
    dataset = world([[1, 2, 3, 4]], n_items=9)
    item_EP = questions(dataset, "test", EvaluationConfig(pool=5)).item_EP
    assert sorted(item_EP[0].tolist()) == [5, 6, 7, 8, 9]
    with pytest.raises(DataError, match=r"user 'u0' has 5 candidates left .* use a pool of at most 5"):
        evaluate(ByIndex(), dataset, EvaluationConfig(pool=6))


@pytest.mark.parametrize(("ties", "rank"), [("optimistic", 2), ("expected", 2.5), ("pessimistic", 3)])
@pytest.mark.parametrize("block", [1, 7, 1000])
def test_the_rank_counts_the_pool_alone(ties: str, rank: float, block: int) -> None:
    pool_RP = torch.tensor([[30, 21, 3], [1, 2, 3]])  # 20 and 21 are alike
    rank_R = pool_ranks(ByIndex(), 2, torch.tensor([20, 40]), pool_RP, ties=ties, block=block)
    assert rank_R.tolist() == [rank, 1]


def test_a_pool_of_everything_unseen_ranks_as_the_whole_catalogue_does() -> None:
    dataset = walks()
    whole = evaluate(ByIndex(), dataset, EvaluationConfig(k=(1, 10)))
    pooled = evaluate(ByIndex(), dataset, EvaluationConfig(k=(1, 10), pool=N - 5, block=7))
    assert pooled.rank_E.tolist() == whole.rank_E.tolist()
    assert pooled.metrics == {name: whole.metrics[name] for name in pooled.metrics}
    assert "hr@1" in pooled.metrics
    assert "coverage@10" not in pooled.metrics
    assert pooled.groups == whole.groups


def test_candidates_of_training_alone_fill_pools_and_bar_other_targets() -> None:
    dataset = walks()
    settings = EvaluationConfig(pool=3, candidates="train")
    asks = questions(dataset, "test", settings)
    assert (dataset.train_count_I[asks.item_EP] > 0).all()
    rank_E = evaluate(ByIndex(), dataset, settings).rank_E
    assert np.isinf(rank_E).tolist() == (dataset.train_count_I[asks.events.target_E] == 0).tolist()


def test_the_protocol_keeps_pools_apart(tmp_path) -> None:
    dataset = walks()
    baseline = Popularity(PopularityConfig()).fit(dataset)
    results = [
        evaluate(baseline, dataset, EvaluationConfig(pool=p, pool_seed=s))
        for p, s in ((9, 0), (9, 1), (4, 0))
    ]
    results.append(evaluate(baseline, dataset))
    assert results[0].protocol.pool_seed == 0
    assert results[3].protocol.pool_seed is None
    with pytest.raises(ProtocolError, match=r"\(pool_seed: 0, 1\)"):
        results[0].protocol.require_alike(results[1].protocol)
    with pytest.raises(ProtocolError, match=r"\(pool: 9, 4\)"):
        results[0].protocol.require_alike(results[2].protocol)
    with pytest.raises(ProtocolError, match=r"\(pool: 9, None; pool_seed: 0, None\)"):
        results[0].protocol.require_alike(results[3].protocol)
    results[0].save(tmp_path)
    assert Evaluation.load(tmp_path).protocol == results[0].protocol


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ConfigError, match="pool: its candidates are unseen items; seen=keep has no meaning"):
        EvaluationConfig(pool=9, seen="keep")
    with pytest.raises(RunError, match="ByIndex gives NaN scores for user"):
        evaluate(ByIndex(broken_item=20), walks(), EvaluationConfig(pool=30))


def test_pools_do_not_follow_from_the_order_of_the_catalogue() -> None:
    dataset = walks(1)
    asks = questions(dataset, "test", EvaluationConfig())
    item_EP = draw_pools(dataset, asks.events, 30, 0, asks.is_candidate_I)
    assert item_EP[0].tolist() != sorted(item_EP[0].tolist())
