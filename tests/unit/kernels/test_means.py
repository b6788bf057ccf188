"""Means of known vectors: against a loop, in plain arithmetic and by kernels."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lexrec.kernels.means import prefix_means, row_means
from tests.unit.kernels.conftest import Interpreted

SIZES = [(1, 1, 3), (5, 7, 8), (3, 90, 5), (2, 130, 70)]
"""B, L, D."""


def drawn(size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    is_known_BL = torch.rand(size[:2]) < 0.4
    is_known_BL[0] = False
    return torch.randn(size), is_known_BL


def by_hand(x_BLD: Tensor, is_known_BL: Tensor) -> Tensor:
    mean_BLD = x_BLD.clone()
    for b, is_known_L in enumerate(is_known_BL):
        for position in range(len(is_known_L)):
            known = x_BLD[b, : position + 1][is_known_L[: position + 1]]
            if len(known):
                mean_BLD[b, position] = known.mean(0)
    return mean_BLD


@pytest.mark.parametrize("size", SIZES)
def test_means_are_those_of_a_loop(size: tuple[int, int, int]) -> None:
    x_BLD, is_known_BL = drawn(size)
    true_BLD = by_hand(x_BLD, is_known_BL)
    assert_close(prefix_means(x_BLD, is_known_BL), true_BLD, rtol=1e-4, atol=1e-5)
    assert_close(row_means(x_BLD, is_known_BL), true_BLD[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_kernels_give_the_same(size: tuple[int, int, int], interpreted: Interpreted) -> None:
    kernels, (x_BLD, is_known_BL) = interpreted("_means_triton"), drawn(size)
    true_BLD = by_hand(x_BLD, is_known_BL)
    assert_close(kernels.prefix_means(x_BLD, is_known_BL), true_BLD, rtol=1e-4, atol=1e-5)
    assert_close(kernels.row_means(x_BLD, is_known_BL), true_BLD[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [*SIZES, (128, 50, 64)])
def test_a_gpu_gives_the_same(size: tuple[int, int, int]) -> None:
    x_BLD, is_known_BL = drawn(size)
    true_BLD = by_hand(x_BLD, is_known_BL)
    found_BLD = prefix_means(x_BLD.cuda(), is_known_BL.cuda())
    assert_close(found_BLD.cpu(), true_BLD, rtol=1e-4, atol=1e-5)
    assert torch.equal(row_means(x_BLD.cuda(), is_known_BL.cuda()), found_BLD[:, -1])


def test_a_gradient_passes_where_it_is_asked_for() -> None:
    x_BLD, is_known_BL = drawn((3, 6, 4))
    x_BLD.requires_grad_()
    for mean in (prefix_means(x_BLD, is_known_BL), row_means(x_BLD, is_known_BL)):
        (found_BLD,) = torch.autograd.grad(mean.sum(), x_BLD)
        assert found_BLD.abs().sum() > 0
