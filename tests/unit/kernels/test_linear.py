"""A linear layer with a norm or an activation before, dropout and a residual after: against plain float64."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexrec.kernels.dense import Activation, Norm, activated, added_linear, normed_linear
from tests.unit.kernels.conftest import Interpreted


@dataclass(frozen=True)
class Size:
    """N rows, D wide in, E wide out."""

    N: int
    D: int
    E: int


SIZES = [Size(1, 8, 5), Size(70, 64, 130), Size(150, 100, 24)]


def error(found: Tensor | None, expected: Tensor | None) -> float:
    assert found is not None
    assert expected is not None
    difference = (found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-12)
    return float(difference.detach())


def rounded(*shape: int) -> Tensor:
    """Representable in 16 bits, so that only arithmetic differs."""
    return torch.randn(shape).bfloat16().float()


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [one.detach().double().requires_grad_() for one in tensors]


@pytest.mark.parametrize("has_beside", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_kernels_norm_first(
    size: Size, has_beside: bool, interpreted: Interpreted, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = interpreted("_linear_triton")
    for name, value in {"_INPUT_STRIPS": 2, "_WEIGHT_STRIPS": 2, "_X_ROWS": 32, "_W_ROWS": 16}.items():
        monkeypatch.setattr(kernels, name, value)
    N, D, E = size.N, size.D, size.E
    x_ND, weight_ED, bias_E = 3 * rounded(N, D) + 1, rounded(E, D), torch.randn(E)
    scale_D, shift_D, grad_NE = torch.randn(D), torch.randn(D), rounded(N, E)
    beside_ND = torch.randn(N, D) if has_beside else None
    exact = leaves(x_ND, scale_D, shift_D, weight_ED, bias_E)
    normed_ND = F.layer_norm(exact[0], (D,), exact[1], exact[2], 1e-5)
    y_NE = F.linear(normed_ND, exact[3], exact[4])
    torch.autograd.backward(y_NE, grad_NE.double())
    layer = kernels.Layer(weight_ED, bias_E, (scale_D, shift_D), 1e-5, "", 0.0, torch.float16)
    assert error(kernels.forward(x_ND, layer, None, None), y_NE) < 1e-3
    of = kernels.normed_gradients(grad_NE.half(), x_ND, layer, beside_ND)
    expected_ND = exact[0].grad if beside_ND is None else exact[0].grad + beside_ND.double()  # type: ignore[operator]
    found = (of.x_ND, *of.norm_D, of.weight_ED, of.bias_E)
    for gradient, expected in zip(found, (expected_ND, *(one.grad for one in exact[1:])), strict=True):
        assert gradient.dtype == torch.float32
        # One row of width 8 has little left of its gradient after a norm.
        assert error(gradient, expected) < (5e-3 if N == 1 else 2e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("activation", ["", "relu", "gelu"])
@pytest.mark.parametrize("size", SIZES)
def test_kernels_add_to_a_residual(
    size: Size,
    activation: Activation,
    dropout: float,
    interpreted: Interpreted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernels = interpreted("_linear_triton")
    for name in ("_ADDED", "_WIDE_ADDED"):
        monkeypatch.setattr(kernels, name, getattr(kernels, name)._replace(n_programs=2))
    N, D, E = size.N, size.D, size.E
    x_ND, weight_ED, bias_E = rounded(N, D), rounded(E, D), torch.randn(E)
    onto_NE, grad_NE, seed_1 = torch.randn(N, E), rounded(N, E), torch.tensor([77], dtype=torch.int32)
    layer = kernels.Layer(weight_ED, bias_E, None, 0.0, activation, dropout, torch.float16)
    y_NE = kernels.forward(x_ND.half(), layer, onto_NE, seed_1)
    bias_alone = layer._replace(weight_ED=torch.zeros_like(weight_ED), bias_E=torch.ones_like(bias_E))
    kept_NE = kernels.forward(x_ND.half(), bias_alone, torch.zeros_like(onto_NE), seed_1)
    exact = leaves(x_ND, weight_ED, bias_E)
    expected_NE = onto_NE + F.linear(activated(exact[0], activation), exact[1], exact[2]) * kept_NE
    torch.autograd.backward(expected_NE, grad_NE.double())
    assert error(y_NE, expected_NE) < 1e-3
    of = kernels.added_gradients(grad_NE, x_ND.half(), layer, seed_1)
    assert of.norm_D is None
    for gradient, one in zip((of.x_ND, of.weight_ED, of.bias_E), exact, strict=True):
        assert error(gradient, one.grad) < 2e-3


def test_kernels_drop_the_share_they_are_told(interpreted: Interpreted) -> None:
    kernels = interpreted("_linear_triton")
    N, E = 400, 64
    layer = kernels.Layer(torch.zeros(E, 16), torch.ones(E), None, 0.0, "", 0.25, torch.float16)
    x_ND, onto_NE = torch.zeros(N, 16).half(), torch.zeros(N, E)
    one, other = (kernels.forward(x_ND, layer, onto_NE, torch.tensor([s], dtype=torch.int32)) for s in (1, 2))
    assert one.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    was_dropped_NE, was_other_NE = one == 0, other == 0
    assert was_dropped_NE.float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert (was_dropped_NE & was_other_NE).float().mean().item() == pytest.approx(0.25**2, abs=0.01)
    assert was_dropped_NE.float().mean(0).std() < 0.04
    assert was_dropped_NE.float().mean(1).std() < 0.08


def test_without_a_gpu_they_are_pytorchs_own() -> None:
    norm, up, down = nn.LayerNorm(8), nn.Linear(8, 5), nn.Linear(5, 8)
    x_ND = torch.randn(6, 8)
    inner_NE, same_ND = normed_linear(x_ND, Norm(norm.weight, norm.bias, norm.eps), up.weight, up.bias)
    assert same_ND is x_ND
    assert torch.equal(inner_NE, up(norm(x_ND)))
    found_ND = added_linear(inner_NE, down.weight, down.bias, x_ND, 0.0, "gelu")
    assert torch.equal(found_ND, x_ND + down(F.gelu(inner_NE)))
    dropped_ND = added_linear(inner_NE, down.weight, down.bias, x_ND, 0.5)
    assert (dropped_ND == x_ND).float().mean().item() == pytest.approx(0.5, abs=0.25)
    assert torch.equal(added_linear(inner_NE, down.weight, down.bias, None, 0.0), down(inner_NE))


class Sublayer(nn.Module):
    """Two layers with a residual, as a block has them."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, inner), nn.Linear(inner, dim)

    def forward(self, x_ND: Tensor) -> Tensor:
        out_ND: Tensor = x_ND + self.down(F.gelu(self.up(self.norm(x_ND))))
        return out_ND

    def fused(self, x_ND: Tensor) -> Tensor:
        norm = Norm(self.norm.weight, self.norm.bias, self.norm.eps)
        inner_NE, x_ND = normed_linear(x_ND, norm, self.up.weight, self.up.bias)
        return added_linear(inner_NE, self.down.weight, self.down.bias, x_ND, 0.0, "gelu")


@pytest.mark.gpu
@pytest.mark.parametrize(("N", "D", "inner"), [(700, 64, 256), (6400, 64, 256), (333, 128, 96), (51, 24, 48)])
def test_a_gpu_errs_no_more_than_autocast(N: int, D: int, inner: int) -> None:
    torch.manual_seed(0)
    layer, exact = Sublayer(D, inner).cuda(), Sublayer(D, inner).double()
    exact.load_state_dict(layer.state_dict())
    x_ND, weight_ND = torch.randn(N, D), torch.randn(N, D)
    exact_ND = x_ND.double().requires_grad_()
    (exact(exact_ND) * weight_ND.double()).sum().backward()
    expected = [exact_ND.grad, *(p.grad for p in exact.parameters())]

    def errors(forward: object) -> list[float]:
        own_ND = x_ND.cuda().requires_grad_()
        layer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            y_ND = forward(own_ND)  # type: ignore[operator]
        assert y_ND.dtype == torch.float32
        (y_ND * weight_ND.cuda()).sum().backward()
        found = [own_ND.grad, *(p.grad for p in layer.parameters())]
        return [error(one.cpu(), other) for one, other in zip(found, expected, strict=True)]  # type: ignore[union-attr]

    for ours, theirs in zip(errors(layer.fused), errors(layer), strict=True):
        assert ours < 1.2 * theirs + 1e-4


def test_seeds_of_a_step_are_drawn_together(interpreted: Interpreted) -> None:
    dropout, cpu = interpreted("_dropout_triton"), torch.device("cpu")
    torch.manual_seed(0)
    with dropout.seeds_together(cpu):
        together = [dropout.draw_seed(cpu).item() for _ in range(dropout._AT_ONCE + 2)]
    alone = dropout.draw_seed(cpu).item()
    assert len({*together, alone}) == dropout._AT_ONCE + 3
    torch.manual_seed(0)
    with dropout.seeds_together(cpu):
        assert [dropout.draw_seed(cpu).item() for _ in range(3)] == together[:3]
