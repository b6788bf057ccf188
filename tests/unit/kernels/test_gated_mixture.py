"""The gated mixture: value and gradients against plain float64 arithmetic."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lexrec.kernels import gated_mixture as module
from lexrec.kernels.gated_mixture import gated_mixture
from tests.unit.kernels.conftest import Interpreted

SIZES = [(37, 1, 16), (5, 3, 40), (20, 6, 64)]
"""R, E, D."""


def written_out(gate_RE: Tensor, out_ERD: Tensor, vector_RD: Tensor, cap: float | None) -> Tensor:
    """Row by row."""
    rows = []
    for gate_E, out_ED, vector_D in zip(gate_RE, out_ERD.transpose(0, 1), vector_RD, strict=True):
        mixed_D = gate_E.softmax(0) @ out_ED
        if cap is not None and mixed_D.norm() > cap * vector_D.norm():
            mixed_D = mixed_D / mixed_D.norm() * cap * vector_D.norm().detach()
        rows.append(mixed_D)
    return torch.stack(rows)


def drawn(size: tuple[int, int, int]) -> list[Tensor]:
    torch.manual_seed(0)
    R, E, D = size
    vector_RD = torch.randn(R, D)
    vector_RD[1] = 0  # as at padding
    vector_RD[2:4] *= 100  # far from the cap
    return [torch.randn(R, E), torch.randn(E, R, D), vector_RD, torch.randn(R, D)]


def found(function, inputs: list[Tensor], cap: float | None) -> list[Tensor]:  # type: ignore[no-untyped-def]
    gate_RE, out_ERD, vector_RD, pull_RD = inputs
    gate_RE, out_ERD = (t.clone().requires_grad_() for t in (gate_RE, out_ERD))
    added_RD = function(gate_RE, out_ERD, vector_RD, cap)
    added_RD.backward(pull_RD.to(added_RD.dtype))
    assert gate_RE.grad is not None
    assert out_ERD.grad is not None
    return [added_RD.detach(), gate_RE.grad, out_ERD.grad]


@pytest.mark.parametrize("cap", [None, 0.3])
@pytest.mark.parametrize("size", SIZES)
def test_plain_arithmetic_is_that_of_the_equations(size: tuple[int, int, int], cap: float | None) -> None:
    inputs = [t.double() for t in drawn(size)]
    for ours, true in zip(found(gated_mixture, inputs, cap), found(written_out, inputs, cap), strict=True):
        assert_close(ours, true)


@pytest.mark.parametrize("cap", [None, 0.3])
@pytest.mark.parametrize("size", SIZES)
def test_kernels_give_the_values_and_gradients_of_the_equations(
    size: tuple[int, int, int], cap: float | None, interpreted: Interpreted
) -> None:
    interpreted("_gated_mixture_triton")
    inputs = drawn(size)
    true = found(written_out, [t.double() for t in inputs], cap)
    for ours, theirs in zip(found(module._Mixture.apply, inputs, cap), true, strict=True):
        assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("size", [*SIZES, (6400, 4, 64)])
def test_a_gpu_gives_the_values_and_gradients_of_the_equations(
    size: tuple[int, int, int], dtype: torch.dtype, error: float
) -> None:
    inputs = drawn(size)
    inputs[1] = inputs[1].to(dtype)
    true = found(written_out, [t.double() for t in inputs], 0.3)
    for ours, theirs in zip(found(gated_mixture, [t.cuda() for t in inputs], 0.3), true, strict=True):
        assert (ours.double().cpu() - theirs).norm() <= error * theirs.norm()
