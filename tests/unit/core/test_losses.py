"""Losses by hand, and negatives that are never the target."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lexrec.data.batch import Batch, collate
from lexrec.item_encoders.base import ScoringTable
from lexrec.objectives import _losses
from lexrec.objectives._losses import LossConfig, draw_negatives, mean_loss
from lexrec.objectives.base import Targets
from tests import components

NO_BATCH = Batch(torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0), torch.zeros(0))


def scoring(weight_ID: torch.Tensor, **head: object) -> ScoringTable:
    padded = torch.cat([torch.zeros(1, weight_ID.shape[1]), weight_ID])
    table = ScoringTable(len(weight_ID), lambda first, last: padded[first:last], lambda item: padded[item])
    return table.with_(**head)  # type: ignore[arg-type]


def targets(target_N: torch.Tensor, negative_NK: torch.Tensor | None = None) -> Targets:
    return Targets(NO_BATCH, target_N, target_N, torch.ones(len(target_N)), negative_NK)


def each(hidden_ND: torch.Tensor, table: ScoringTable, given: Targets, config: LossConfig) -> torch.Tensor:
    """The loss of each target, as the mean over it alone."""
    one_NN = torch.eye(len(given.target_N))
    return torch.stack([mean_loss(hidden_ND, table, given._replace(weight_N=w_N), config) for w_N in one_NN])


def test_ce_is_the_full_softmax() -> None:
    weight_ID, hidden_ND, target_N = torch.randn(9, 4), torch.randn(3, 4), torch.tensor([1, 9, 4])
    loss_N = each(hidden_ND, scoring(weight_ID), targets(target_N), LossConfig())
    assert_close(loss_N, -(hidden_ND @ weight_ID.T).log_softmax(1)[torch.arange(3), target_N - 1])


def test_bce_by_hand() -> None:
    weight_ID = torch.tensor([[1.0], [2.0], [-1.0]])
    given, sigmoid = targets(torch.tensor([2]), torch.tensor([[1, 3]])), lambda x: 1 / (1 + math.exp(-x))
    loss = mean_loss(torch.tensor([[0.5]]), scoring(weight_ID), given, LossConfig(loss="bce", n_negatives=2))
    prior = math.log(1 / 2)
    wrong = math.log(1 - sigmoid(0.5 + prior)) + math.log(1 - sigmoid(-0.5 + prior))
    assert loss.item() == pytest.approx(-math.log(sigmoid(1.0 + prior)) - wrong)


@pytest.mark.parametrize(("loss", "k"), [("bce", 1), ("bce", 8), ("gbce", 8)])
def test_a_common_vector_is_nothing_to_learn_at_first(loss: str, k: int) -> None:
    """With all scores equal the derivative by a common shift of them is 0, however many negatives."""
    config = LossConfig(loss=loss, n_negatives=k)  # type: ignore[arg-type]
    target_N = torch.arange(1, 7)
    negative_NK = draw_negatives(target_N, 40, config, torch.Generator().manual_seed(0))
    shift = torch.zeros((), requires_grad=True)
    table = scoring(torch.zeros(40, 4), bias_I=shift.expand(40))
    mean_loss(torch.randn(6, 4), table, targets(target_N, negative_NK), config).backward()
    assert_close(shift.grad, torch.zeros(()), rtol=0, atol=1e-6)


def test_gbce_lies_between_bce_and_full_calibration() -> None:
    """beta = alpha (t (1 - 1/alpha) + 1/alpha), alpha the sampling rate: 1 at t = 0, alpha at t = 1."""
    assert _losses.gbce_beta(10, 101, 0.0) == pytest.approx(1.0)
    assert _losses.gbce_beta(10, 101, 1.0) == pytest.approx(0.1)
    assert _losses.gbce_beta(10, 101, 0.75) == pytest.approx(0.1 * (0.75 * (1 - 10) + 10))
    positive_N, negative_NK = torch.tensor([0.3]), torch.tensor([[0.1, -2.0]])
    is_wrong_NK = torch.ones(1, 2, dtype=torch.bool)
    for beta in (1.0, 0.1):
        prior = math.log(beta / 2)
        expected = -beta * F.logsigmoid(positive_N + prior) - F.logsigmoid(-negative_NK - prior).sum(1)
        assert_close(_losses.bce(positive_N, negative_NK, is_wrong_NK, beta), expected)


def test_sampled_softmax_with_every_negative_is_the_full_softmax() -> None:
    logit_NI = torch.randn(4, 7)
    negative_NK, is_wrong_NK = logit_NI[:, 1:], torch.ones(4, 6, dtype=torch.bool)
    loss_N = _losses.sampled_softmax(logit_NI[:, 0], negative_NK, is_wrong_NK, 7)
    assert_close(loss_N, -logit_NI.log_softmax(1)[:, 0])


def test_the_correction_makes_few_negatives_stand_for_all() -> None:
    """The mean over draws of exp(negatives' logsumexp) equals the sum over all wrong items."""
    torch.manual_seed(0)
    logit_I, target_N = torch.randn(50), torch.full((20_000,), 3)
    config = LossConfig(loss="sampled_softmax", n_negatives=5)
    negative_NK = draw_negatives(target_N, 50, config, torch.Generator().manual_seed(0))
    assert negative_NK is not None
    sampled = (logit_I[negative_NK - 1] + math.log(49 / 5)).exp().sum(1).mean()
    wrong = logit_I.exp().sum() - logit_I[2].exp()
    assert sampled.item() == pytest.approx(wrong.item(), rel=0.02)


@pytest.mark.parametrize("shared", [False, True])
def test_negatives_cover_the_catalogue_and_the_target_never_counts(shared: bool) -> None:
    config = LossConfig(loss="bce", n_negatives=40, shared_negatives=shared)
    target_N = torch.arange(1, 6)
    negative_NK = draw_negatives(target_N, 5, config, torch.Generator().manual_seed(0))
    assert negative_NK is not None
    assert negative_NK.min() == 1
    assert negative_NK.max() == 5
    if not shared:
        assert (negative_NK != target_N[:, None]).all()
        return
    assert negative_NK.shape == (1, 40)
    weight_ID, hidden_ND = torch.randn(5, 4), torch.randn(5, 4)
    found_N = each(hidden_ND, scoring(weight_ID), targets(target_N, negative_NK), config)
    logit_NI, prior = hidden_ND @ weight_ID.T, math.log(40)
    for n in range(5):
        wrong = [i - 1 for i in negative_NK[0].tolist() if i != n + 1]
        expected = F.softplus(-logit_NI[n, n] + prior) + F.softplus(logit_NI[n, wrong] - prior).sum()
        assert_close(found_N[n], expected)


def test_a_head_normalises_scales_and_shifts() -> None:
    weight_ID, hidden_ND, bias_I = torch.randn(6, 4), torch.randn(3, 4), torch.randn(6)
    table = scoring(weight_ID, bias_I=bias_I, scale=20.0, normalise=True)
    cosine_NI = F.cosine_similarity(hidden_ND[:, None], weight_ID[None], dim=2)
    assert_close(table.score(hidden_ND), 20 * cosine_NI + bias_I)
    assert_close(table.score(hidden_ND, 3, 5), (20 * cosine_NI + bias_I)[:, 2:4])
    stored = replace(table, table_RD=torch.cat([torch.zeros(1, 4), weight_ID]))
    few_NK = torch.tensor([[1, 6], [2, 2], [5, 3]])
    for item_NK in (few_NK, few_NK.repeat(1, 20)):  # As many as rows or more are read another way.
        wanted_NK = (20 * cosine_NI + bias_I).gather(1, item_NK - 1)
        assert_close(table.score_items(hidden_ND, item_NK), wanted_NK)
        assert_close(stored.score_items(hidden_ND, item_NK), wanted_NK)


def test_weights_leave_unused_slots_out() -> None:
    weight_ID, hidden_ND, target_N = torch.randn(9, 4), torch.randn(3, 4), torch.tensor([1, 9, 4])
    for config in (LossConfig(), LossConfig(loss="bce", n_negatives=2)):
        negative_NK = draw_negatives(target_N, 9, config, torch.Generator().manual_seed(0))
        given, table = targets(target_N, negative_NK), scoring(weight_ID)
        loss_N = each(hidden_ND, table, given, config)
        some = given._replace(weight_N=torch.tensor([1.0, 1.0, 0.0]))
        assert_close(mean_loss(hidden_ND, table, some, config), loss_N[:2].mean())
        assert mean_loss(hidden_ND, table, given._replace(weight_N=torch.zeros(3)), config) == 0.0


def test_next_item_pairs_each_item_with_its_successor() -> None:
    goal = components.build_objective("next_item")
    batch = collate([[1, 2, 3], [7], [4, 5]], 5)._replace(capacity=6)
    made = goal.prepare(batch, torch.Generator())
    L = made.inputs.item_BL.shape[1]
    used = made.weight_N > 0
    row_N, place_N = made.position_N[used] // L, made.position_N[used] % L
    pairs = zip(made.inputs.item_BL[row_N, place_N].tolist(), made.target_N[used].tolist(), strict=True)
    assert list(pairs) == [(1, 2), (2, 3), (4, 5)]
    assert made.inputs.length_B.tolist() == [2, 0, 1]
    assert len(made.position_N) == 6


def test_last_item_predicts_the_newest_of_each_row() -> None:
    goal = components.build_objective("last_item")
    made = goal.prepare(collate([[1, 2, 3], [7], [4, 5]], 5), torch.Generator())
    assert made.target_N[made.weight_N > 0].tolist() == [3, 5]
    assert made.inputs.item_BL.tolist() == [[0, 0, 1, 2], [0, 0, 0, 0], [0, 0, 0, 4]]
    assert made.inputs.length_B.tolist() == [2, 0, 1]
