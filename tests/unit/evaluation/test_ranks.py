"""Ranks by blocks against the plainest possible ranking of one row at a time."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lexrec.data.batch import Batch
from lexrec.evaluation import ranks
from lexrec.evaluation.events import Pairs
from lexrec.evaluation.ranks import Aside, NanScoreError, ranks_and_lists, target_ranks, top_k

TIES = {"expected": 0.5, "optimistic": 0.0, "pessimistic": 1.0}
NOTHING = Aside.of()


class Table:
    """Scores given outright; refuses to be asked for PAD or MASK."""

    max_len, trims = 1, True

    def __init__(self, score_BI: list[list[float]] | Tensor) -> None:
        self.score_BI = torch.as_tensor(score_BI, dtype=torch.float32)
        self.n_items = self.score_BI.shape[1]
        self.asked: list[tuple[int, int]] = []

    def encode(self, batch: Batch) -> None:
        raise AssertionError("not part of ranking")

    def score(self, query: None, first: int, last: int) -> Tensor:
        assert 1 <= first < last <= self.n_items + 1
        self.asked.append((first, last))
        return self.score_BI[:, first - 1 : last - 1].clone()


@st.composite
def rankings(draw):
    """Few distinct scores, infinities among them, so that nearly everything ties somewhere."""
    B, n_items = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    value = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 2.0, math.inf])
    item = st.integers(1, n_items)
    score_BI = [draw(st.lists(value, min_size=n_items, max_size=n_items)) for _ in range(B)]
    target_B = [draw(item) for _ in range(B)]
    exclude_B = [draw(st.lists(item, max_size=8)) for _ in range(B)]
    allowed = draw(st.none() | st.sets(item))
    return score_BI, target_B, exclude_B, allowed, draw(st.integers(1, n_items + 2))


def mask(allowed: set[int] | None, n_items: int) -> Tensor | None:
    if allowed is None:
        return None
    return torch.tensor([i in allowed for i in range(n_items + 2)])


def plain_rank(scores, target, exclude, allowed, share):
    if allowed is not None and target not in allowed:
        return math.inf
    rivals = set(range(1, len(scores) + 1)) - set(exclude) - {target}
    rivals = rivals if allowed is None else rivals & allowed
    greater = sum(scores[i - 1] > scores[target - 1] for i in rivals)
    return 1 + greater + share * sum(scores[i - 1] == scores[target - 1] for i in rivals)


@given(rankings(), st.sampled_from(sorted(TIES)))
def test_ranks_are_those_of_a_plain_count_for_every_block_size(ranking, ties):
    score_BI, target_B, exclude_B, allowed, block = ranking
    scorer = Table(score_BI)
    rank_B = target_ranks(
        scorer,
        None,
        torch.tensor(target_B),
        Aside.of(Pairs.of(exclude_B), mask(allowed, scorer.n_items)),
        ties=ties,
        block=block,
    )
    rows = zip(score_BI, target_B, exclude_B, strict=True)
    assert rank_B.tolist() == [plain_rank(s, t, e, allowed, TIES[ties]) for s, t, e in rows]


@given(rankings(), st.sampled_from(sorted(TIES)))
def test_what_scores_zero_competes_as_zero_the_target_too(ranking, ties):
    score_BI, target_B, zero_B, allowed, block = ranking
    scorer = Table(score_BI)
    aside = Aside(Pairs.of([]), Pairs.of(zero_B), mask(allowed, scorer.n_items))
    rank_B = target_ranks(scorer, None, torch.tensor(target_B), aside, ties=ties, block=block)
    zeroed = [
        [0.0 if i + 1 in zero else score for i, score in enumerate(scores)]
        for scores, zero in zip(score_BI, zero_B, strict=True)
    ]
    rows = zip(zeroed, target_B, strict=True)
    assert rank_B.tolist() == [plain_rank(s, t, [], allowed, TIES[ties]) for s, t in rows]
    top = top_k(scorer, None, 3, aside, block=block)
    expected = top_k(Table(zeroed), None, 3, Aside.of(None, aside.is_allowed_I), block=block)
    assert top.item_BK.tolist() == expected.item_BK.tolist()


@given(rankings(), st.integers(1, 14))
def test_top_k_is_a_stable_sort_for_every_block_size(ranking, k):
    score_BI, _, exclude_B, allowed, block = ranking
    scorer = Table(score_BI)
    is_allowed_I = mask(allowed, scorer.n_items)
    top = top_k(scorer, None, k, Aside.of(Pairs.of(exclude_B), is_allowed_I), block=block)
    for row, (scores, exclude) in enumerate(zip(score_BI, exclude_B, strict=True)):
        items = [i for i in range(1, len(scores) + 1) if allowed is None or i in allowed]
        shown = [i for i in items if i not in exclude and scores[i - 1] > -math.inf]
        best = sorted(shown, key=lambda i: -scores[i - 1])[:k]
        rest = k - len(best)
        assert top.item_BK[row].tolist() == best + [0] * rest
        assert top.score_BK[row].tolist() == [scores[i - 1] for i in best] + [-math.inf] * rest


@pytest.mark.parametrize("n_distinct", [3, 10_000])
@pytest.mark.parametrize("block", [700, 5000])
def test_top_k_among_the_maxima_of_chunks_is_exact_on_large_blocks(n_distinct, block):
    generator = torch.Generator().manual_seed(0)
    score_BI = torch.randint(n_distinct, (5, 3001), generator=generator).float() - n_distinct / 2
    top = top_k(Table(score_BI), None, 7, NOTHING, block=block)
    order = torch.sort(score_BI, dim=1, descending=True, stable=True)
    assert torch.equal(top.item_BK, order.indices[:, :7] + 1)
    assert torch.equal(top.score_BK, order.values[:, :7])


@pytest.mark.parametrize(("ties", "rank"), [("optimistic", 2), ("expected", 3), ("pessimistic", 4)])
def test_ties_by_hand(ties, rank):
    scorer = Table([[3.0, 1.0, 1.0, 1.0, 0.0]])
    assert target_ranks(scorer, None, torch.tensor([3]), NOTHING, ties=ties).tolist() == [rank]


def test_half_a_place_a_tie():
    scorer = Table([[1.0, 1.0, 0.0]])
    assert target_ranks(scorer, None, torch.tensor([1]), NOTHING).tolist() == [1.5]


def test_a_target_competes_though_it_was_seen():
    scorer = Table([[5.0, 4.0, 3.0]])
    assert target_ranks(scorer, None, torch.tensor([2]), Aside.of(Pairs.of([[1, 2]]))).tolist() == [1]
    assert top_k(scorer, None, 2, Aside.of(Pairs.of([[1, 2]]))).item_BK.tolist() == [[3, 0]]


def test_a_constant_score_is_worth_the_middle_of_the_catalogue():
    scorer = Table(torch.zeros(1, 101))
    assert target_ranks(scorer, None, torch.tensor([7]), NOTHING, block=10).tolist() == [51]


@pytest.mark.parametrize("block", [2, 5])
def test_a_nan_is_an_error_wherever_it_stands(block):
    for item in range(5):
        score_BI = torch.zeros(3, 5)
        score_BI[1, item] = torch.nan
        with pytest.raises(NanScoreError, match="row 1 of the batch has NaN scores") as caught:
            target_ranks(Table(score_BI), None, torch.tensor([1, 2, 3]), NOTHING, block=block)
        assert caught.value.row == 1
        with pytest.raises(NanScoreError):
            top_k(Table(score_BI), None, 2, NOTHING, block=block)


def test_no_rows_have_no_ranks_and_no_lists():
    nobody = Rows(torch.zeros(0, 9))
    rank_B, top = ranks_and_lists(nobody, nobody.score_BI, torch.zeros(0, dtype=torch.int64), 3, NOTHING)
    assert (rank_B.shape, top.item_BK.shape) == ((0,), (0, 3))


def test_a_nan_that_may_not_be_shown_hides_no_list():
    score_BI = torch.tensor([[1.0, torch.nan, 3.0]])
    top = top_k(Table(score_BI), None, 2, Aside.of(Pairs.of([[2]])))
    assert top.item_BK.tolist() == [[3, 1]]


class Dot(Table):
    """Rounds as matrix products do: the same item may score differently in a block of another shape."""

    def __init__(self, query_BD: Tensor, row_ID: Tensor) -> None:
        super().__init__(query_BD @ row_ID.T)
        self.query_BD, self.row_ID = query_BD, row_ID

    def score(self, query: None, first: int, last: int) -> Tensor:
        noise = 1 + 1e-7 * ((last - first) % 7)
        return self.query_BD @ self.row_ID[first - 1 : last - 1].T * noise


@pytest.mark.parametrize("block", [1, 3, 64, 100, 1000])
def test_rounding_never_puts_the_target_above_or_below_its_equals(block):
    generator = torch.Generator().manual_seed(1)
    query_BD = torch.randn(9, 64, generator=generator)
    # A last block of another width would round its items differently from equal ones in other blocks.
    row_ID = torch.randn(1, 64, generator=generator).expand(block * (300 // block or 1), -1).contiguous()
    target_B = torch.arange(9) * (len(row_ID) - 1) // 8 + 1
    rank_B = target_ranks(Dot(query_BD, row_ID), None, target_B, NOTHING, block=block)
    assert rank_B.tolist() == [(len(row_ID) + 1) / 2] * 9


class Rows(Table):
    """The query is the scores themselves, row by row, so it can be parted."""

    def score(self, query: Tensor, first: int, last: int) -> Tensor:
        self.asked.append((len(query), first, last))
        return query[:, first - 1 : last - 1].clone()


@given(rankings(), st.sampled_from(sorted(TIES)), st.integers(1, 3), st.integers(1, 14))
def test_rows_ranked_some_at_a_time_give_the_same_ranks_and_lists_at_once(ranking, ties, n_rows, k):
    score_BI, target_B, exclude_B, allowed, block = ranking
    rows = Rows(score_BI)
    aside = Aside.of(Pairs.of(exclude_B), mask(allowed, rows.n_items))
    target = torch.tensor(target_B)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "_FEWEST_ROWS", n_rows)
        patch.setitem(ranks._TILES, "cpu", ranks._Tile(n_rows * block, block))
        rank_B, top = ranks_and_lists(rows, rows.score_BI, target, k, aside, ties=ties)
        assert torch.equal(rank_B, target_ranks(rows, rows.score_BI, target, aside, ties=ties))
        assert torch.equal(top.item_BK, top_k(rows, rows.score_BI, k, aside).item_BK)
    assert max(n for n, _, _ in rows.asked) <= n_rows
    whole = Table(score_BI)
    assert torch.equal(rank_B, target_ranks(whole, None, target, aside, ties=ties))
    wanted = top_k(whole, None, k, aside)
    assert torch.equal(top.item_BK, wanted.item_BK)
    assert torch.equal(top.score_BK, wanted.score_BK)


def test_the_row_of_a_nan_is_its_place_in_the_batch_though_rows_are_parted(monkeypatch):
    monkeypatch.setattr(ranks, "_FEWEST_ROWS", 2)
    monkeypatch.setitem(ranks._TILES, "cpu", ranks._Tile(2, 100))
    score_BI = torch.zeros(7, 9)
    score_BI[5, 3] = torch.nan
    scorer = Rows(score_BI)
    for rank in (
        lambda: target_ranks(scorer, score_BI, torch.ones(7, dtype=torch.int64), NOTHING),
        lambda: top_k(scorer, score_BI, 2, NOTHING),
        lambda: ranks_and_lists(scorer, score_BI, torch.ones(7, dtype=torch.int64), 2, NOTHING),
        lambda: ranks_and_lists(scorer, score_BI, torch.full((7,), 4), 2, Aside.of(Pairs.of([[4]] * 7))),
    ):
        with pytest.raises(NanScoreError) as caught:
            rank()
        assert caught.value.row == 5


def test_a_catalogue_of_one_block_is_scored_once_and_target_free_blocks_once():
    scorer = Table(torch.rand(2, 10))
    target_ranks(scorer, None, torch.tensor([1, 2]), NOTHING, block=10)
    assert scorer.asked == [(1, 11)]
    scorer.asked.clear()
    target_ranks(scorer, None, torch.tensor([1, 2]), NOTHING, block=4)
    assert scorer.asked == [(1, 5), (1, 5), (5, 9), (9, 11)]


def test_blocks_without_an_allowed_item_are_never_scored():
    scorer = Table(torch.rand(1, 10))
    top = top_k(scorer, None, 2, Aside.of(None, mask({9}, 10)), block=2)
    assert (scorer.asked, top.item_BK.tolist()) == ([(9, 11)], [[9, 0]])


def test_an_empty_allow_list_shows_nothing():
    top = top_k(Table(torch.rand(2, 4)), None, 2, Aside.of(None, mask(set(), 4)), block=2)
    assert top.item_BK.tolist() == [[0, 0], [0, 0]]


@pytest.mark.gpu
@pytest.mark.parametrize("block", [700, 5000])
def test_a_gpu_gives_the_same_ranks_and_lists(block):
    generator = torch.Generator().manual_seed(0)
    on_cpu = Table(torch.randint(500, (5, 3001), generator=generator).float())
    on_gpu = Table(on_cpu.score_BI)
    on_gpu.score_BI = on_cpu.score_BI.cuda()
    target_B, exclude = torch.tensor([1, 2, 3000, 3001, 7]), Pairs.of([[1, 9], [], [5], [3001], [2, 2]])
    allowed = mask(set(range(1, 2500)), 3001)
    for is_allowed_I in (None, allowed):
        aside = Aside.of(exclude, is_allowed_I)
        ranks = [target_ranks(scorer, None, target_B, aside, block=block) for scorer in (on_cpu, on_gpu)]
        assert ranks[0].tolist() == ranks[1].tolist()
        lists = [top_k(scorer, None, 9, aside, block=block) for scorer in (on_cpu, on_gpu)]
        assert lists[0].item_BK.tolist() == lists[1].item_BK.tolist()
