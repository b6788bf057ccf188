"""The k best of rows of scores, plain and as a GPU kernel, against sorting everything."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lexrec.kernels import ranking
from lexrec.kernels.ranking import NO_KEY, best_keys, best_keys_by_groups, items_of, make_keys, scores_of
from tests.unit.kernels.conftest import Interpreted

WIDTHS = [(1, 1), (7, 20), (300, 5), (2048, 3), (5003, 20)]
"""Items of a row, and k."""


def draw(kind: str, n_rows: int, n_items: int) -> Tensor:
    generator = torch.Generator().manual_seed(n_items)
    score_BJ = torch.randn(n_rows, n_items, generator=generator)
    if kind == "few values":
        return score_BJ.round()
    if kind == "equal":
        return torch.zeros(n_rows, n_items).copysign(score_BJ)  # 0.0 and -0.0 are equal
    if kind == "next to each other":
        bits = torch.randint(4, score_BJ.shape, generator=generator, dtype=torch.int32)
        return (torch.tensor(-1.5).view(torch.int32) + bits).view(torch.float32)
    if kind == "infinite":
        score_BJ[score_BJ > 1.5] = torch.inf
        score_BJ[score_BJ < 1] = -torch.inf
    if kind == "one heap":
        # The k best are a run of neighbours, and behind them many equal ones.
        score_BJ = torch.arange(n_items).float().clamp(max=n_items // 2).expand(n_rows, -1).contiguous()
        score_BJ[:, n_items // 3 : n_items // 3 + 9] += n_items
    return score_BJ


KINDS = ["random", "few values", "equal", "next to each other", "infinite", "one heap"]


def sorted_best(score_BJ: Tensor, first: int, k: int) -> list[list[tuple[float, int]]]:
    """By score, then by item; what scores -inf is not shown."""
    lists = []
    for score_J in score_BJ.double().numpy():
        order_J = np.lexsort((np.arange(len(score_J)), -score_J))[:k]
        lists.append([(score_J[j], first + int(j)) for j in order_J if score_J[j] > -math.inf])
    return lists


def lists_of(key_BM: Tensor, k: int) -> list[list[tuple[float, int]]]:
    key_BK = key_BM.sort(dim=1, descending=True).values[:, :k].cpu()
    rows = zip(scores_of(key_BK).tolist(), items_of(key_BK).tolist(), strict=True)
    return [[(s, i) for s, i in zip(scores, items, strict=True) if s > -math.inf] for scores, items in rows]


@pytest.mark.parametrize(("n_items", "k"), WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_k_best_are_those_of_sorting_everything(kind, n_items, k, interpreted: Interpreted, monkeypatch):
    score_BJ = draw(kind, 3, n_items)
    wanted = sorted_best(score_BJ, 11, k)
    kernel = interpreted("_ranking_triton")
    for found in (best_keys_by_groups(score_BJ, 11, k), kernel.best_keys(score_BJ, 11, k)):
        assert lists_of(found, k) == wanted
    # As where there are many of them.
    monkeypatch.setattr(ranking, "_FEW", 0)
    assert lists_of(best_keys_by_groups(score_BJ, 11, k), k) == wanted


def test_the_kernel_keeps_little_more_than_the_best_and_finishes_crowded_rows_otherwise(interpreted):
    kernel = interpreted("_ranking_triton")
    score_BJ = torch.cat([draw("random", 1, 5003), draw("equal", 1, 5003)])
    n_kept_B = (kernel.best_keys(score_BJ, 1, 20) != NO_KEY).sum(1)
    assert 20 <= n_kept_B[0] < 64
    assert n_kept_B[1] == 20


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nan_comes_before_everything(sign, interpreted):
    nan = torch.tensor(torch.nan).copysign(torch.tensor(sign))
    score_BJ = draw("infinite", 2, 3000)
    score_BJ[1, 2222] = nan
    for find in (best_keys_by_groups, interpreted("_ranking_triton").best_keys):
        best_B = find(score_BJ, 1, 4).amax(1)
        assert scores_of(best_B).isnan().tolist() == [False, True]
        assert items_of(best_B)[1] == 2223


def test_keys_sort_by_score_then_by_lower_item_and_are_read_back():
    score = torch.tensor([-math.inf, -1e-45, -0.0, 0.0, 1e-45, 3.5, math.inf])
    low, high = make_keys(score, torch.tensor(1)), make_keys(score, torch.tensor(2**31))
    assert (low > high).all()
    assert (low[1:] > low[:-1]).tolist() == [True, True, False, True, True, True]
    assert torch.equal(scores_of(high), score)
    assert set(items_of(high).tolist()) == {2**31}
    assert (low > NO_KEY).all()
    assert scores_of(torch.tensor(NO_KEY)) == -math.inf


def test_rivals_are_counted_without_nan():
    score_BJ = torch.tensor(
        [[1.0, math.nan, 2.0, 2.0, math.inf], [-math.inf, math.nan, 0.0, -0.0, -math.inf]]
    )
    greater_B, tied_B = ranking.count_rivals(score_BJ, torch.tensor([2.0, -math.inf]))
    assert (greater_B.tolist(), tied_B.tolist()) == ([1, 2], [2, 2])


def rows_with_goals(n_items):
    score_BJ = draw("few values", 7, n_items)
    score_BJ[2, ::3], score_BJ[3] = math.nan, -math.inf
    return score_BJ, score_BJ[:, n_items // 2].nan_to_num(1.0, neginf=-math.inf)


@pytest.mark.parametrize("n_items", [1, 5000, 2**15 + 3])
def test_the_kernel_counts_rivals_alike(n_items, interpreted):
    score_BJ, goal_B = rows_with_goals(n_items)
    found = interpreted("_ranking_triton").count_rivals(score_BJ, goal_B)
    for one, other in zip(found, ranking.count_rivals(score_BJ, goal_B), strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("n_items", [1, 5000, 100_003])
def test_a_gpu_counts_rivals_alike(n_items):
    score_BJ, goal_B = rows_with_goals(n_items)
    found = ranking.count_rivals(score_BJ.cuda(), goal_B.cuda())
    for one, other in zip(found, ranking.count_rivals(score_BJ, goal_B), strict=True):
        assert torch.equal(one.cpu(), other)


@pytest.mark.gpu
@pytest.mark.parametrize(("n_items", "k"), [*WIDTHS, (100_000, 100), (100_001, 512), (30_000, 513)])
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_the_k_best_are_those_of_sorting_everything(kind, n_items, k):
    score_BJ = draw(kind, 40, n_items)
    on_gpu = score_BJ.cuda()
    wanted = sorted_best(score_BJ, 11, k)
    assert lists_of(best_keys(on_gpu, 11, k), k) == wanted
    assert lists_of(best_keys_by_groups(on_gpu, 11, k), k) == wanted
