"""Attention to chosen rows: value and every gradient against plain float64 arithmetic, for awkward sizes."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lexrec.kernels import token_attention
from lexrec.kernels.token_attention import Choice, Dropout, Projection, attend, project
from tests.unit.kernels.conftest import Interpreted


@dataclass(frozen=True)
class Size:
    """U units of Q queries, K of V tokens of width W, H heads of C."""

    U: int
    Q: int
    K: int
    V: int
    W: int
    H: int
    C: int


SIZES = [
    Size(5, 1, 7, 90, 12, 4, 8),  # fewer choices than tokens: a gradient a choice
    Size(9, 1, 16, 33, 10, 2, 16),  # more: a gradient a token
    Size(3, 9, 5, 40, 8, 2, 4),
    Size(4, 20, 12, 30, 8, 3, 16),
    Size(3, 1, 5, 11, 6, 3, 5),
    Size(20, 1, 2, 5, 6, 2, 8),  # tokens are chosen by more than a chunk holds
    Size(2, 70, 3, 9, 6, 1, 16),  # queries in two blocks
]
LARGE = [
    Size(900, 1, 64, 3000, 256, 4, 16),
    Size(30, 50, 64, 3000, 256, 4, 16),
    Size(90, 50, 64, 3000, 96, 4, 16),
]


@dataclass
class Inputs:
    """One call, in one arithmetic."""

    query_UQD: Tensor
    token_UK: Tensor
    interest_UD: Tensor
    scale: Tensor
    table_VW: Tensor
    weight_XW: Tensor
    bias_X: Tensor
    grad_UQD: Tensor

    @staticmethod
    def drawn(size: Size, seed: int = 0) -> "Inputs":
        torch.manual_seed(seed)
        D = size.H * size.C
        token_UK = torch.stack([torch.randperm(size.V)[: size.K] for _ in range(size.U)])
        token_UK[1:, 0] = token_UK[0, 0]
        return Inputs(
            torch.randn(size.U, size.Q, D),
            token_UK,
            torch.randn(size.U, D),
            torch.tensor(20.0),
            torch.randn(size.V, size.W).bfloat16().float(),
            torch.randn(3 * D, size.W) * size.W**-0.5,
            torch.randn(3 * D),
            torch.randn(size.U, size.Q, D),
        )

    def to(self, dtype: torch.dtype, device: str = "cpu") -> "Inputs":
        return Inputs(*(t.to(device, dtype if t.is_floating_point() else None) for t in vars(self).values()))

    def run(self, n_heads: int, learns: bool, by_kernels: bool, dropout: float = 0.0) -> list[Tensor]:
        """Output and gradients: queries, maps, biases, scale."""
        leaves = [self.query_UQD, self.weight_XW, self.bias_X, self.scale]
        query_UQD, weight_XW, bias_X, scale = (t.clone().requires_grad_() for t in leaves)
        projection = project(self.table_VW, weight_XW, bias_X)
        choice = Choice(self.token_UK, self.interest_UD, scale if learns else None)
        drops = Dropout.drawn(dropout, query_UQD.device)
        way = token_attention._by_kernels if by_kernels else attend
        out_UQD = way(query_UQD, choice, projection, n_heads, drops)
        out_UQD.backward(self.grad_UQD.to(out_UQD.dtype))
        found = [query_UQD.grad, weight_XW.grad, bias_X.grad, *([scale.grad] if learns else [])]
        return [out_UQD.detach(), *(g for g in found if g is not None)]


def written_out(inputs: Inputs, n_heads: int, learns: bool) -> list[Tensor]:
    """The equations, one unit and one head at a time."""
    leaves = [inputs.query_UQD, inputs.weight_XW, inputs.bias_X, inputs.scale]
    query_UQD, weight_XW, bias_X, scale = (t.clone().requires_grad_() for t in leaves)
    D = query_UQD.shape[2]
    units = []
    for query_QD, token_K, interest_D in zip(query_UQD, inputs.token_UK, inputs.interest_UD, strict=True):
        aligned_KD, key_KD, value_KD = (inputs.table_VW[token_K] @ weight_XW.T + bias_X).split(D, dim=1)
        cosine_K = (aligned_KD / aligned_KD.norm(dim=1, keepdim=True)) @ (interest_D / interest_D.norm())
        score_K = scale * cosine_K if learns else torch.zeros_like(cosine_K)
        heads = []
        for q_QC, k_KC, v_KC in zip(
            *(x.chunk(n_heads, 1) for x in (query_QD, key_KD, value_KD)), strict=True
        ):
            logit_QK = q_QC @ k_KC.T / q_QC.shape[1] ** 0.5 + score_K - score_K.detach()
            heads.append(logit_QK.softmax(1) @ v_KC)
        units.append(torch.cat(heads, 1))
    out_UQD = torch.stack(units)
    out_UQD.backward(inputs.grad_UQD)
    found = [query_UQD.grad, weight_XW.grad, bias_X.grad, *([scale.grad] if learns else [])]
    return [out_UQD.detach(), *(g for g in found if g is not None)]


def assert_near(found: list[Tensor], true: list[Tensor], error: float) -> None:
    assert len(found) == len(true)
    for ours, theirs in zip(found, true, strict=True):
        assert ours.shape == theirs.shape
        assert (ours.double().cpu() - theirs).norm() <= error * theirs.norm()


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_plain_arithmetic_is_that_of_the_equations(size: Size, learns: bool) -> None:
    inputs = Inputs.drawn(size)
    true = written_out(inputs.to(torch.float64), size.H, learns)
    assert_near(inputs.to(torch.float64).run(size.H, learns, by_kernels=False), true, 1e-12)
    assert_near(inputs.run(size.H, learns, by_kernels=False), true, 1e-5)


@pytest.mark.parametrize("many", [1, 99])
@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_kernels_give_the_values_and_gradients_of_the_equations(
    size: Size, learns: bool, many: int, interpreted: Interpreted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Added up by token, a program a token and a program a chunk."""
    kernels = interpreted("_token_attention_triton")
    monkeypatch.setattr(kernels, "_CHUNK", 16)
    monkeypatch.setattr(kernels, "_WHOLE", 4)
    monkeypatch.setattr(kernels, "_MANY", many)
    inputs = Inputs.drawn(size)
    true = written_out(inputs.to(torch.float64), size.H, learns)
    assert_near(inputs.run(size.H, learns, by_kernels=True), true, 1e-5)


@pytest.mark.parametrize("size", [SIZES[1], SIZES[3]])
def test_kernels_drop_as_many_weights_as_they_say_and_the_same_in_both_passes(
    size: Size, interpreted: Interpreted
) -> None:
    """The mixture is linear in the values: it changes along their gradient by what the gradient says."""
    interpreted("_token_attention_triton")
    inputs = Inputs.drawn(size)
    D, seed = size.H * size.C, 5
    torch.manual_seed(seed)
    out_UQD, _, _, bias_X = inputs.run(size.H, learns=False, by_kernels=True, dropout=0.4)
    inputs.bias_X[2 * D :] += 1.0
    torch.manual_seed(seed)
    moved_UQD = inputs.run(size.H, learns=False, by_kernels=True, dropout=0.4)[0]
    kept_UQD = moved_UQD - out_UQD
    # With 1 added to every value, what is added is the weights that were kept, and they sum to 1 on average.
    assert (kept_UQD * inputs.grad_UQD).sum().item() == pytest.approx(bias_X[2 * D :].sum().item(), rel=1e-3)
    assert kept_UQD.std() > 0.05
    assert kept_UQD.mean().item() == pytest.approx(1, abs=0.15)
    again_UQD = inputs.run(size.H, learns=False, by_kernels=True, dropout=0.4)[0]
    assert not torch.equal(again_UQD, moved_UQD)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 6e-2)])
@pytest.mark.parametrize("size", SIZES + LARGE)
def test_a_gpu_gives_the_values_and_gradients_of_the_equations(
    size: Size, dtype: torch.dtype, error: float
) -> None:
    inputs = Inputs.drawn(size)
    true = written_out(inputs.to(dtype).to(torch.float64), size.H, learns=True)
    on_gpu = inputs.to(dtype, "cuda")
    on_gpu.interest_UD, on_gpu.scale = on_gpu.interest_UD.float(), on_gpu.scale.float()
    assert_near(on_gpu.run(size.H, learns=True, by_kernels=False), true, error)


@pytest.mark.gpu
@pytest.mark.parametrize("size", LARGE)
def test_on_a_gpu_gradients_are_the_same_bits_each_time(size: Size) -> None:
    inputs = Inputs.drawn(size).to(torch.bfloat16, "cuda")
    inputs.scale = inputs.scale.float()
    runs = []
    for _ in range(3):
        torch.manual_seed(1)
        runs.append(inputs.run(size.H, learns=True, by_kernels=False, dropout=0.1))
    for again in runs[1:]:
        assert all(torch.equal(one, two) for one, two in zip(runs[0], again, strict=True))


def test_a_projection_is_made_in_the_arithmetic_of_the_surroundings() -> None:
    table_VW, weight_XW, bias_X = torch.randn(9, 4).bfloat16(), torch.randn(6, 4), torch.randn(6)
    with torch.autocast("cpu", torch.bfloat16):
        found: Projection = project(table_VW, weight_XW.requires_grad_(), bias_X)
    assert found.projected_VX.dtype == torch.bfloat16
    assert not found.projected_VX.requires_grad
