"""RMS norm: value and gradients against plain float64 arithmetic."""

import pytest
import torch
from torch import Tensor

from lexrec.kernels import rms_norm as module
from lexrec.kernels.rms_norm import RmsForm, rms_norm
from tests.unit.kernels.conftest import Interpreted

SHAPES = [(1, 8), (37, 64), (5, 3, 24), (9, 200), (3, 4100)]
"""The last dimension is the width."""
FORMS = [RmsForm(1e-6, 0.0), RmsForm(1e-2, 1.0)]


def written_out(x: Tensor, weight_D: Tensor, form: RmsForm) -> Tensor:
    """Row by row."""
    rows = [
        row * (form.offset + weight_D) / ((row @ row) / len(row) + form.eps).sqrt()
        for row in x.flatten(0, -2)
    ]
    return torch.stack(rows).view(x.shape)


def drawn(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(shape)
    x.view(-1, shape[-1])[0] *= 1e-3  # where eps matters
    return x, torch.randn(shape[-1]), torch.randn(shape)


def expected(shape: tuple[int, ...], form: RmsForm) -> list[Tensor]:
    x, weight_D, pull = (one.double() for one in drawn(shape))
    y = written_out(x.requires_grad_(), weight_D.requires_grad_(), form)
    return [y.detach(), *torch.autograd.grad((y * pull).sum(), (x, weight_D))]


def found(inputs: tuple[Tensor, ...], form: RmsForm, dtype: torch.dtype) -> list[Tensor]:
    x, weight_D, pull = inputs
    x, weight_D = x.detach().requires_grad_(), weight_D.detach().requires_grad_()
    y = rms_norm(x, weight_D, form, dtype)
    assert y.dtype == dtype
    return [y.detach(), *torch.autograd.grad((y * pull.to(dtype)).sum(), (x, weight_D))]


def error(one: Tensor, true: Tensor) -> float:
    return ((one.double().cpu() - true).norm() / true.norm()).item()


@pytest.fixture
def in_kernels(interpreted: Interpreted, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = interpreted("_rms_norm_triton")
    monkeypatch.setattr(kernels, "_MOST_STRIPS", 2)
    monkeypatch.setattr(module, "trains_in_16_bits", lambda x: True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_plain_arithmetic_is_that_of_the_equation(shape: tuple[int, ...], form: RmsForm) -> None:
    inputs = tuple(one.double() for one in drawn(shape))
    for one, true in zip(found(inputs, form, torch.float64), expected(shape, form), strict=True):
        torch.testing.assert_close(one, true)


@pytest.mark.usefixtures("in_kernels")
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 2e-6), (torch.float16, 1e-3)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_give_values_and_gradients(
    shape: tuple[int, ...], form: RmsForm, dtype: torch.dtype, close: float
) -> None:
    for one, true in zip(found(drawn(shape), form, dtype), expected(shape, form), strict=True):
        assert error(one, true) < close


@pytest.mark.usefixtures("in_kernels")
def test_heads_are_read_where_they_lie() -> None:
    form = FORMS[0]
    x, weight_D, pull = drawn((2, 5, 3, 8))
    true = expected((2, 5, 3, 8), form)
    x_RHSK, pull_RHSK = (one.transpose(1, 2).detach() for one in (x, pull))
    for given in (x_RHSK, torch.cat([x_RHSK, x_RHSK], -1)[..., :8], x_RHSK.contiguous()):
        given, weight_D = given.detach().requires_grad_(), weight_D.detach().requires_grad_()
        y_RHSK = rms_norm(given, weight_D, form, torch.float32)
        of_x, of_weight_D = torch.autograd.grad((y_RHSK * pull_RHSK).sum(), (given, weight_D))
        assert error(y_RHSK.transpose(1, 2).detach(), true[0]) < 1e-6
        assert error(of_x.transpose(1, 2), true[1]) < 1e-6
        assert error(of_weight_D, true[2]) < 1e-6


@pytest.mark.usefixtures("in_kernels")
def test_a_frozen_weight_costs_no_gradient() -> None:
    x, weight_D, pull = drawn((7, 40))
    y = rms_norm(x.requires_grad_(), weight_D, FORMS[1], torch.float32)
    (of_x,) = torch.autograd.grad((y * pull).sum(), x)
    assert error(of_x, expected((7, 40), FORMS[1])[1]) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [*SHAPES, (1454, 576), (1454, 9, 64)])
def test_a_gpu_gives_values_and_gradients(
    shape: tuple[int, ...], form: RmsForm, dtype: torch.dtype, close: float
) -> None:
    true, inputs = expected(shape, form), tuple(one.cuda() for one in drawn(shape))
    with torch.autocast("cuda", torch.bfloat16):
        first, again = found(inputs, form, dtype), found(inputs, form, dtype)
    for one, two, three in zip(first, again, true, strict=True):
        assert error(one, three) < close
        assert torch.equal(one, two)
