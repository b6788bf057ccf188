"""Gated feed-forward layers: values and gradients against float64."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lexrec.kernels import gated as module
from lexrec.kernels.gated import ACTIVATIONS, Activation, activated, gated, gated_halves, narrow_linear
from tests.unit.kernels.conftest import Interpreted

SHAPES = [(1, 3), (37, 48), (2, 5, 200), (3, 1025)]
"""The last dimension is the inner width."""


def halves(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    return gated_halves(torch.cat([gate, up], -1), activation)


def written_out(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    exact = {
        "silu": lambda x: x / (1 + torch.exp(-x)),
        "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
        "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
        "relu": lambda x: x * (x > 0),
    }
    return exact[activation](gate) * up


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    gate, up, pull = (torch.randn(shape) for _ in range(3))
    gate.flatten()[:3] = torch.tensor(
        [-30.0, 30.0, 8.0]
    )  # where the activation is flat, and where it is straight
    return [one.to(dtype) for one in (gate, up, pull)]


def found(function: Callable[..., Tensor], inputs: list[Tensor], activation: Activation) -> list[Tensor]:
    gate, up, pull = inputs
    gate, up = gate.detach().requires_grad_(), up.detach().requires_grad_()
    y = function(gate, up, activation)
    assert y.dtype == gate.dtype
    return [y.detach(), *torch.autograd.grad(y, (gate, up), pull)]


def error(one: Tensor, true: Tensor) -> float:
    return ((one.double().cpu() - true).norm() / true.norm()).item()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_plain_arithmetic_is_that_of_the_equations(activation: Activation) -> None:
    inputs = drawn((37, 48), torch.float64)
    true = found(written_out, inputs, activation)
    for function in (gated, halves):
        for one, other in zip(found(function, inputs, activation), true, strict=True):
            torch.testing.assert_close(one, other)
    assert torch.equal(activated(inputs[0], "relu"), inputs[0].clamp(min=0))


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float16, 1e-3)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_give_values_and_gradients(
    shape: tuple[int, ...],
    activation: Activation,
    dtype: torch.dtype,
    close: float,
    interpreted: Interpreted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interpreted("_gated_triton")
    inputs = drawn(shape, dtype)
    true = found(written_out, [one.double() for one in inputs], activation)
    monkeypatch.setattr(module, "trains_in_16_bits", lambda x: True)
    for function in (gated, halves):
        for one, other in zip(found(function, inputs, activation), true, strict=True):
            assert error(one, other) < close


@pytest.mark.parametrize("n_weights", [1, 2])
def test_products_have_the_gradients_of_each(n_weights: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(2, 5, 12), [torch.randn(7 + i, 12) for i in range(n_weights)]
    pull = torch.randn(2, 5, sum(len(one) for one in weights))

    def gradients(x: Tensor, weights: list[Tensor]) -> list[Tensor]:
        x, weights = x.detach().requires_grad_(), [one.detach().requires_grad_() for one in weights]
        y = narrow_linear(x, *weights)
        return [y.detach(), *torch.autograd.grad(y, (x, *weights), pull.to(y.dtype))]

    exact = gradients(x.double(), [one.double() for one in weights])
    torch.testing.assert_close(exact[0].float(), torch.cat([F.linear(x, one) for one in weights], -1))
    monkeypatch.setattr(module, "trains_in_16_bits", lambda x: True)
    narrow = gradients(x, weights)
    assert [one.dtype for one in narrow] == [torch.float16, *[torch.float32] * (1 + n_weights)]
    for one, true in zip(narrow, exact, strict=True):
        assert error(one, true) < 2e-3


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [*SHAPES, (1454, 1536)])
def test_a_gpu_gives_values_and_gradients(shape: tuple[int, ...], activation: Activation) -> None:
    inputs = drawn(shape, torch.bfloat16)
    true = found(written_out, [one.double() for one in inputs], activation)
    with torch.autocast("cuda", torch.bfloat16):
        for function in (gated, halves):
            ours = found(function, [one.cuda() for one in inputs], activation)
            for one, other in zip(ours, true, strict=True):
                assert error(one, other) < 5e-3


@pytest.mark.gpu
def test_a_gpu_gives_float32_gradients_of_weights() -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(3, 50, 64), [torch.randn(96, 64) for _ in range(2)]
    pull = torch.randn(3, 50, 192).bfloat16()
    exact = pull.double().flatten(0, 1).T @ x.bfloat16().double().flatten(0, 1)
    given = [one.cuda().requires_grad_() for one in weights]
    with torch.autocast("cuda", torch.bfloat16):
        y = narrow_linear(x.cuda(), *given)
    assert y.dtype == torch.bfloat16
    found = torch.cat(torch.autograd.grad(y, given, pull.cuda()))
    assert found.dtype == torch.float32
    assert error(found, exact) < 1e-5
