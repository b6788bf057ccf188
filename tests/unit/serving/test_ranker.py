import numpy as np
import pytest
import torch

from lexrec.serving import scorer_ranker
from lexrec.serving.ranker import Ranker
from lexrec.serving.scorer_ranker import ScorerRanker
from tests.unit.serving.scorers import Summing

HISTORIES = [[3, 7, 7, 1], [], [250], list(range(1, 80)), [9, 8]]


def by_hand(scorer: Summing, history: list[int], exclude=(), allow=None) -> list[int]:
    """All items that may be shown, best first, equal scores by index."""
    allowed = range(1, scorer.n_items + 1) if allow is None else allow
    score_I = scorer.of(history)
    return sorted(set(allowed) - set(exclude), key=lambda item: (-float(score_I[item]), item))


def test_lists_are_those_of_sorting_every_score():
    scorer = Summing(300)
    ranker: Ranker = ScorerRanker(scorer)
    item_BK, score_BK = ranker.rank(HISTORIES, 20, HISTORIES)
    assert (item_BK.dtype, score_BK.dtype) == (np.int64, np.float32)
    for history, items, scores in zip(HISTORIES, item_BK, score_BK, strict=True):
        assert items.tolist() == by_hand(scorer, history, history)[:20]
        assert scores.tolist() == scorer.of(history)[items].tolist()


def test_without_exclude_the_history_competes_too():
    scorer = Summing(30)
    item_BK, _ = ScorerRanker(scorer).rank([[4, 5]], 30)
    assert item_BK[0].tolist() == by_hand(scorer, [4, 5])


def test_only_allowed_items_are_listed_and_padding_ends_a_short_list():
    scorer, allow = Summing(300), np.array([5, 17, 299, 300])
    item_BK, score_BK = ScorerRanker(scorer).rank([[17, 2], [1]], 6, [[17, 2], []], allow)
    assert item_BK[0].tolist() == [*by_hand(scorer, [17, 2], [17, 2], allow), 0, 0, 0]
    assert item_BK[1].tolist() == [*by_hand(scorer, [1], (), allow), 0, 0]
    assert np.isneginf(score_BK[item_BK == 0]).all()


def test_more_allow_lists_than_are_kept_are_still_right():
    scorer = Summing(40)
    ranker = ScorerRanker(scorer)
    for round_ in range(2):
        for item in range(1, 20):
            allow = np.array([item, item + round_ + 1])
            assert ranker.rank([[30]], 1, None, allow).item_BK[0, 0] == by_hand(scorer, [30], (), allow)[0]


def test_lists_are_never_longer_than_the_catalogue():
    assert ScorerRanker(Summing(7)).rank([[1], [2]], 100).item_BK.shape == (2, 7)


def test_no_histories_no_lists():
    assert ScorerRanker(Summing(7)).rank([], 3).item_BK.shape == (0, 3)


@pytest.mark.parametrize("trims", [True, False])
def test_batches_change_nothing_and_short_histories_share_short_rows(monkeypatch, trims):
    whole = ScorerRanker(Summing(300)).rank(HISTORIES, 5, HISTORIES)
    monkeypatch.setattr(scorer_ranker, "_BATCH", 2)
    scorer = Summing(300, trims=trims)
    parts = ScorerRanker(scorer).rank(HISTORIES, 5, HISTORIES)
    np.testing.assert_array_equal(whole.item_BK, parts.item_BK)
    np.testing.assert_array_equal(whole.score_BK, parts.score_BK)
    wanted = [(2, 1), (2, 4), (1, 50)] if trims else [(2, 50), (2, 50), (1, 50)]
    assert scorer.seen_shapes == wanted


def test_arrays_are_histories_too():
    scorer = Summing(30)
    histories = [np.array([3, 4], dtype=np.int32), np.array([], dtype=np.int64)]
    item_BK, _ = ScorerRanker(scorer).rank(histories, 4, histories)
    assert item_BK[0].tolist() == by_hand(scorer, [3, 4], [3, 4])[:4]


def test_a_scorer_without_experts_has_nothing_to_inspect():
    assert ScorerRanker(Summing(7)).inspect([1, 2]) == []


class Watched(Summing):
    """Notes on how many threads it is asked."""

    n_threads = 0

    def encode(self, batch):
        self.n_threads = torch.get_num_threads()
        return super().encode(batch)


@pytest.mark.parametrize(("n_histories", "n_threads"), [(1, 1), (100, 3)])
def test_little_work_is_done_by_one_thread_and_the_callers_threads_stay(monkeypatch, n_histories, n_threads):
    monkeypatch.setattr(scorer_ranker, "_ALONE", 1000)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        scorer = Watched(100)
        ScorerRanker(scorer).rank([[1]] * n_histories, 2)
        assert (scorer.n_threads, torch.get_num_threads()) == (n_threads, 3)
    finally:
        torch.set_num_threads(before)
