"""Linear layers and layer norms of a training step: values and gradients are PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexrec.kernels.dense import layer_norm, linear
from lexrec.models._layers import LayerNorm, Linear
from tests.unit.kernels.conftest import Interpreted

SIZES = [(1, 8), (37, 64), (150, 24), (60, 200)]
"""Rows, width."""


def error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-12)).item()


@pytest.mark.parametrize(("N", "D"), SIZES)
def test_kernels_sum_columns(
    N: int, D: int, interpreted: Interpreted, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels, x_ND = interpreted("_dense_triton"), torch.randn(N, D)
    monkeypatch.setattr(kernels, "_MOST_STRIPS", 3)
    assert error(kernels.column_sums(x_ND), x_ND.double().sum(0)) < 1e-6


@pytest.mark.parametrize(("N", "D"), SIZES)
def test_kernels_normalise(N: int, D: int, interpreted: Interpreted, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = interpreted("_dense_triton")
    monkeypatch.setattr(kernels, "_MOST_STRIPS", 3)
    x_ND, weight_D, bias_D, grad_ND = (
        3 * torch.randn(N, D) + 2,
        torch.randn(D),
        torch.randn(D),
        torch.randn(N, D),
    )
    exact = [one.double().requires_grad_() for one in (x_ND, weight_D, bias_D)]
    y_ND = F.layer_norm(exact[0], (D,), exact[1], exact[2], 1e-5)
    y_ND.backward(grad_ND.double())
    assert error(kernels.layer_norm(x_ND, weight_D, bias_D, 1e-5, torch.float32), y_ND) < 1e-6
    found = kernels.layer_norm_gradients(grad_ND, x_ND, weight_D, 1e-5)
    for gradient, one in zip(found, exact, strict=True):
        assert error(gradient, one.grad) < 2e-6  # type: ignore[arg-type]


def test_without_a_gpu_they_are_pytorchs_own() -> None:
    x_BLD = torch.randn(2, 3, 8)
    one, norm = nn.Linear(8, 5), nn.LayerNorm(8)
    assert torch.equal(linear(x_BLD, one.weight, one.bias), one(x_BLD))
    assert torch.equal(layer_norm(x_BLD, norm.weight, norm.bias, norm.eps), norm(x_BLD))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(700, 64), (5, 40, 24)])
def test_a_gpu_errs_no_more_than_autocast(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    D = shape[-1]
    ours = nn.Sequential(LayerNorm(D, narrow=True), Linear(D, 96), nn.ReLU(), Linear(96, D), LayerNorm(D))
    theirs, exact = (
        nn.Sequential(nn.LayerNorm(D), nn.Linear(D, 96), nn.ReLU(), nn.Linear(96, D), nn.LayerNorm(D))
        for _ in range(2)
    )
    theirs.load_state_dict(ours.state_dict())
    exact.load_state_dict(ours.state_dict())
    x, weight = torch.randn(shape), torch.randn(shape)
    expected = gradients(exact.double(), x.double(), weight.double())
    with torch.autocast("cuda", torch.bfloat16):
        assert ours.cuda()(x.cuda()).dtype == torch.float32
        found, usual = (gradients(one.cuda(), x.cuda(), weight.cuda()) for one in (ours, theirs))
    for name, gradient in expected.items():
        assert error(found[name].cpu(), gradient) < 1.2 * error(usual[name].cpu(), gradient) + 1e-4, name


def gradients(layers: nn.Module, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Of the input and of every parameter."""
    x = x.requires_grad_()
    y = layers(x)
    torch.autograd.backward((y * weight).sum())
    of = {name: p.grad for name, p in layers.named_parameters()} | {"x": x.grad}
    return {name: gradient for name, gradient in of.items() if gradient is not None}
