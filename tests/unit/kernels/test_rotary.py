"""Rotary positions: values and gradients against float64."""

import pytest
import torch
from torch import Tensor

from lexrec.kernels import rotary as module
from lexrec.kernels.rotary import rotary
from tests.unit.kernels.conftest import Interpreted

SIZES = [(1, 37, 3, 1, 8), (2, 5, 4, 2, 64), (3, 4, 2, 2, 20), (1, 1, 9, 3, 2)]
"""R, S, H, G, K."""
Size = tuple[int, int, int, int, int]


def written_out(x_RHSK: Tensor, cos_RSK: Tensor, sin_RSK: Tensor) -> Tensor:
    """Number by number: a half and the other one, at the other's place."""
    half = x_RHSK.shape[-1] // 2
    y_RHSK = torch.empty_like(x_RHSK)
    for k in range(2 * half):
        other = -x_RHSK[..., k + half] if k < half else x_RHSK[..., k - half]
        y_RHSK[..., k] = x_RHSK[..., k] * cos_RSK[:, None, :, k] + other * sin_RSK[:, None, :, k]
    return y_RHSK


def drawn(size: Size, n_rows_of_angles: int | None = None) -> list[Tensor]:
    """Queries and keys as linear maps write them, angles of which no half is like the other, and pulls."""
    torch.manual_seed(0)
    R, S, H, G, K = size
    q, k, q_pull, k_pull = (torch.randn(R, S, heads, K).transpose(1, 2) for heads in (H, G, H, G))
    cos, sin = (torch.randn(n_rows_of_angles or R, S, K) for _ in range(2))
    return [q, k, cos, sin, q_pull, k_pull]


def expected(inputs: list[Tensor]) -> list[Tensor]:
    q, k, cos, sin, q_pull, k_pull = (one.double() for one in inputs)
    q, k = q.requires_grad_(), k.requires_grad_()
    made = written_out(q * 1, cos, sin), written_out(k * 1, cos, sin)
    return [*(one.detach() for one in made), *torch.autograd.grad(made, (q, k), (q_pull, k_pull))]


def found(inputs: list[Tensor]) -> list[Tensor]:
    q, k, cos, sin, q_pull, k_pull = inputs
    q, k = q.detach().requires_grad_(), k.detach().requires_grad_()
    made = rotary(q, k, cos, sin)
    pulls = q_pull.to(made[0].dtype), k_pull.to(made[1].dtype).contiguous()
    return [*(one.detach() for one in made), *torch.autograd.grad(made, (q, k), pulls)]


def error(one: Tensor, true: Tensor) -> float:
    return ((one.double().cpu() - true).norm() / true.norm()).item()


@pytest.mark.parametrize("size", SIZES)
def test_plain_arithmetic_is_that_of_the_equations(size: Size) -> None:
    inputs = [one.double() for one in drawn(size)]
    for one, true in zip(found(inputs), expected(inputs), strict=True):
        torch.testing.assert_close(one, true)


@pytest.mark.parametrize("n_rows_of_angles", [None, 1])
@pytest.mark.parametrize("size", SIZES)
def test_the_kernel_gives_values_and_gradients(
    size: Size, n_rows_of_angles: int | None, interpreted: Interpreted, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreted("_rotary_triton")
    inputs = drawn(size, n_rows_of_angles)
    true = expected(inputs)
    monkeypatch.setattr(module, "trains_in_16_bits", lambda x: True)
    ours = found(inputs)
    assert [one.dtype for one in ours] == [torch.float16] * 2 + [torch.float32] * 2
    for one, other in zip(ours, true, strict=True):
        assert error(one, other) < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("size", [*SIZES, (1, 1454, 9, 3, 64)])
def test_a_gpu_gives_values_and_gradients(size: Size) -> None:
    inputs = drawn(size)
    true = expected(inputs)
    with torch.autocast("cuda", torch.bfloat16):
        ours = found([one.cuda() for one in inputs])
    assert ours[0].dtype == torch.bfloat16
    for one, other in zip(ours, true, strict=True):
        assert error(one, other) < 5e-3
