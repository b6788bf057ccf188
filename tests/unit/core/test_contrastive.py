"""CL4SRec's views and their contrast."""

import math

import pytest
import torch
from torch.testing import assert_close

from lexrec.data.batch import Batch, collate
from lexrec.objectives.contrastive import Contrastive, _take, nt_xent
from tests import components
from tests.components import N_ITEMS

ROWS = [list(range(1, 11)), [3, 1, 2], [7], []]


def objective(**options: object) -> Contrastive:
    built = components.build_objective("contrastive", **options)
    assert isinstance(built, Contrastive)
    return built


def rows(item_BL: torch.Tensor) -> list[list[int]]:
    return [row[row > 0].tolist() for row in item_BL]


def draws(operator: str, n: int = 200) -> list[list[list[int]]]:
    goal, generator, batch = objective(), torch.Generator().manual_seed(0), collate(ROWS, 12)
    made = [getattr(goal, operator)(batch, generator) for _ in range(n)]
    return [rows(_take(batch.item_BL, m) if operator == "_crop" else m) for m in made]


def test_crop_keeps_a_run_of_its_share() -> None:
    found = draws("_crop")
    starts = {one[0][0] for one in found}
    assert starts == {1, 2, 3, 4, 5}
    for one in found:
        assert one[0] == list(range(one[0][0], one[0][0] + 6))
        assert len(one[1]) == 1
        assert one[2:] == [[7], []]


def test_mask_hides_its_share_in_place() -> None:
    found = draws("_mask")
    hidden = N_ITEMS + 1
    for one in found:
        assert sum(item == hidden for item in one[0]) == 3
        assert all(item in (hidden, i + 1) for i, item in enumerate(one[0]))
        assert one[1:] == [[3, 1, 2], [7], []]
    assert {i for one in found for i, item in enumerate(one[0]) if item == hidden} == set(range(10))


def test_reorder_shuffles_one_run_and_loses_nothing() -> None:
    found = draws("_reorder")
    for one in found:
        assert sorted(one[0]) == ROWS[0]
        moved = [i for i, item in enumerate(one[0]) if item != i + 1]
        assert not moved or moved[-1] - moved[0] < 6
        assert sorted(one[1]) == [1, 2, 3]
        assert one[2:] == [[7], []]
    assert len({tuple(one[0]) for one in found}) > 100


def test_times_stay_with_the_items_of_a_crop() -> None:
    rows_ = [list(range(1, 11))] * 50
    batch = collate(rows_, 12, times=[[100 * item for item in row] for row in rows_])
    view = objective()._view(batch, torch.zeros(50, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert view.time_BL is not None
    assert torch.equal(view.time_BL, 100 * view.item_BL)


def test_operators_leave_the_batch_as_it_was() -> None:
    batch = collate(ROWS, 12)
    before = batch.item_BL.clone()
    objective().prepare(batch, torch.Generator().manual_seed(0))
    assert torch.equal(batch.item_BL, before)


def test_the_two_views_of_a_row_come_from_different_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    goal, seen = objective(), []
    view = goal._view

    def spy(inputs: Batch, which_B: torch.Tensor, generator: torch.Generator) -> Batch:
        seen.append(which_B)
        return view(inputs, which_B, generator)

    monkeypatch.setattr(goal, "_view", spy)
    batch = collate([[1, 2, 3]] * 300, 4)
    targets = goal.prepare(batch, torch.Generator().manual_seed(0))
    assert (seen[0] != seen[1]).all()
    assert len({(a, b) for a, b in zip(*(s.tolist() for s in seen), strict=True)}) == 6
    assert [v.item_BL.shape for v in targets.views] == [(300, 3)] * 2


def test_nt_xent_by_hand() -> None:
    z_VD = torch.randn(6, 4)
    total = 0.0
    for v in range(6):
        others = [u for u in range(6) if u != v]
        denominator = sum(math.exp(float(z_VD[v] @ z_VD[u]) / 0.5) for u in others)
        total -= math.log(math.exp(float(z_VD[v] @ z_VD[(v + 3) % 6]) / 0.5) / denominator)
    assert nt_xent(z_VD, torch.ones(6, dtype=torch.bool), 0.5).item() == pytest.approx(total / 6, rel=1e-4)


def test_rows_without_items_take_no_part() -> None:
    z_VD = torch.randn(6, 4, requires_grad=True)
    is_view_V = torch.tensor([True, False, True] * 2)
    loss = nt_xent(z_VD, is_view_V)
    assert_close(loss, nt_xent(z_VD[is_view_V], torch.ones(4, dtype=torch.bool)))
    loss.backward()
    assert z_VD.grad is not None
    assert z_VD.grad.isfinite().all()
    assert (z_VD.grad[~is_view_V] == 0).all()


def test_the_contrast_is_added_to_the_main_loss() -> None:
    model, batch = components.build("sasrec"), collate(ROWS, 9)
    goal = objective(weight=0.5)
    targets = goal.prepare(batch, torch.Generator().manual_seed(0))
    losses = goal.loss(model, batch, targets)
    assert losses["contrast"] > 0
    assert_close(losses["loss"], losses["ce"] + losses["contrast"])
    plain = objective(weight=0.0).loss(model, batch, targets)
    assert_close(plain["loss"], losses["ce"])
