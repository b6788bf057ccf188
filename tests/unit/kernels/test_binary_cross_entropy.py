"""Targets against sampled items: value and gradients in one kernel against plain float64."""

import pytest
import torch
from torch import Tensor

from lexrec.kernels.binary_cross_entropy import _OnGpu, binary_cross_entropy
from tests.unit.kernels.conftest import Interpreted

BETA, PRIOR = 0.7, -0.4
SIZES = [(1, 5, 8, 1), (70, 40, 64, 1), (45, 9, 24, 5)]
"""States, rows of the table, width, sampled items."""


def problem(N: int, R: int, D: int, K: int, device: str = "cpu") -> tuple[Tensor, ...]:
    torch.manual_seed(N)
    index_NX = torch.randint(R, (N, 1 + K))
    index_NX[0, -1] = index_NX[0, 0]  # a sampled item that is the target
    weight_N = torch.rand(N) * (torch.arange(N) % 7 != 3)
    query_ND, table_RD = torch.randn(N, D), torch.randn(R, D)
    query_ND[-1] *= 30  # scores at which an exponential would overflow
    return tuple(one.to(device) for one in (query_ND, table_RD, index_NX, weight_N))


def plain(query_ND: Tensor, table_RD: Tensor, index_NX: Tensor, weight_N: Tensor) -> Tensor:
    """As the formula has it, in float64."""
    score_NX = (query_ND[:, None].double() * table_RD.double()[index_NX]).sum(-1) + PRIOR
    counts_NK = index_NX[:, 1:] != index_NX[:, :1]
    of_target_N = -BETA * torch.nn.functional.logsigmoid(score_NX[:, 0])
    of_others_N = -(torch.nn.functional.logsigmoid(-score_NX[:, 1:]) * counts_NK).sum(1)
    return ((of_target_N + of_others_N) * weight_N.double()).sum()


def on_pytorch(query_ND: Tensor, table_RD: Tensor, index_NX: Tensor, weight_N: Tensor) -> Tensor:
    return binary_cross_entropy(query_ND, table_RD, index_NX, weight_N, BETA, PRIOR)


def hold(loss: object, given: tuple[Tensor, ...], error: float) -> None:
    """The loss and the gradients of twice the loss are right."""
    own = [one.clone().requires_grad_() for one in given[:2]]
    exact = [one.clone().requires_grad_() for one in given[:2]]
    found, expected = loss(*own, *given[2:]), plain(*exact, *given[2:])  # type: ignore[operator]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    torch.autograd.backward([2 * found, 2 * expected])
    for one, other in zip(own, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert (one.grad - other.grad).norm() <= error * other.grad.norm()


@pytest.mark.parametrize("size", SIZES)
def test_plain(size: tuple[int, int, int, int]) -> None:
    hold(on_pytorch, problem(*size), 1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_kernels(size: tuple[int, int, int, int], interpreted: Interpreted) -> None:
    interpreted("_binary_cross_entropy_triton")
    hold(lambda *given: _OnGpu.apply(*given, BETA, PRIOR), problem(*size), 1e-5)  # type: ignore[no-untyped-call]


@pytest.mark.gpu
@pytest.mark.parametrize("size", [*SIZES, (6400, 10_447, 64, 1), (900, 300, 128, 64)])
def test_a_gpu(size: tuple[int, int, int, int]) -> None:
    def in_16_bits(*given: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return on_pytorch(*given)

    hold(in_16_bits, problem(*size, "cuda"), 1e-5)
