"""Item vectors with their positions at the slots of a batch: kernels against plain PyTorch."""

import pytest
import torch
from torch import Tensor

from lexrec.data.batch import Places
from lexrec.kernels.place import _Placed, placed
from tests.unit.kernels.conftest import Interpreted

B, L, D = 5, 7, 24
SLOTS = [2, 3, 11, 12, 20, 34, B * L, B * L]
USED = 6


def problem() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return (
        torch.randn(B, L, D, requires_grad=True),
        torch.randn(L, D, requires_grad=True),
        torch.tensor(SLOTS),
    )


def test_plain() -> None:
    x_BLD, position_LD, slot_N = problem()
    found_ND = placed(x_BLD, torch.cat([torch.zeros(2, D), position_LD]), Places(B, L, slot_N), 0.0)
    for n, slot in enumerate(SLOTS[:USED]):
        assert torch.equal(found_ND[n], x_BLD[slot // L, slot % L] + position_LD[slot % L])
    everywhere_ND = placed(x_BLD, position_LD, Places(B, L, None), 0.0)
    assert torch.equal(everywhere_ND.view(B, L, D), x_BLD + position_LD)


def on_kernels(x_BLD: Tensor, position_LD: Tensor, slot_N: Tensor, dropout: float) -> Tensor:
    out_ND: Tensor = _Placed.apply(x_BLD, position_LD, slot_N, dropout)  # type: ignore[no-untyped-call]
    return out_ND


def test_kernels_place_alike(interpreted: Interpreted) -> None:
    interpreted("_place_triton")
    x_BLD, position_LD, slot_N = problem()
    # Unused slots, about which the two may differ, are in no loss.
    weight_ND = torch.randn(len(SLOTS), D) * (slot_N < B * L)[:, None]
    ours_ND = on_kernels(x_BLD, position_LD, slot_N, 0.0)
    theirs_ND = placed(x_BLD, position_LD, Places(B, L, slot_N), 0.0)
    assert torch.equal(ours_ND[:USED], theirs_ND[:USED])
    assert not ours_ND[USED:].any()
    ours, theirs = (
        torch.autograd.grad((out_ND * weight_ND).sum(), (x_BLD, position_LD))
        for out_ND in (ours_ND, theirs_ND)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_the_gradient_passes_where_nothing_was_dropped(interpreted: Interpreted) -> None:
    interpreted("_place_triton")
    x_BLD, position_LD, slot_N = problem()
    out_ND = on_kernels(x_BLD, position_LD, slot_N, 0.4)
    (of_x_BLD,) = torch.autograd.grad(out_ND.sum(), x_BLD)
    was_kept_ND = out_ND[:USED].detach() != 0
    assert 0.4 < was_kept_ND.float().mean() < 0.8
    expected_ND = was_kept_ND / 0.6
    torch.testing.assert_close(of_x_BLD.flatten(0, 1)[SLOTS[:USED]], expected_ND)
    assert of_x_BLD.count_nonzero() == was_kept_ND.sum()


@pytest.mark.gpu
def test_a_gpu_places_alike() -> None:
    x_BLD, position_LD, slot_N = problem()
    weight_ND = torch.randn(len(SLOTS), D) * (slot_N < B * L)[:, None]
    places = Places(B, L, slot_N)
    theirs = torch.autograd.grad(
        (placed(x_BLD, position_LD, places, 0.0) * weight_ND).sum(), (x_BLD, position_LD)
    )
    given = [one.detach().cuda().requires_grad_() for one in (x_BLD, position_LD)]
    with torch.autocast("cuda", torch.bfloat16):
        out_ND = placed(given[0], given[1], Places(B, L, slot_N.cuda()), 0.0)
    ours = torch.autograd.grad((out_ND * weight_ND.cuda()).sum(), given)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.cpu(), other)
