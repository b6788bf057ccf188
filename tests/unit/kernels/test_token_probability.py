"""Probabilities of chosen tokens: value and every gradient against the dense softmax in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lexrec.kernels import token_filter, token_probability
from lexrec.kernels.token_filter import ShiftedGumbel, choose_tokens
from lexrec.kernels.token_probability import choice_probability
from tests.unit.kernels.conftest import Interpreted

TAU = 0.5
SIZES = [(17, 203, 24, 7), (3, 50, 8, 50), (2, 33, 64, 1), (2, 1025, 64, 33), (70, 130, 5, 3)]
"""M, V, D, K."""


class Inputs:
    """What a call is given."""

    def __init__(self, size: tuple[int, int, int, int], noisy: bool, dtype: torch.dtype) -> None:
        m, v, d, k = size
        torch.manual_seed(m + v)
        self.noise = ShiftedGumbel(v, torch.device("cpu")) if noisy else None
        self.noise_MV = torch.zeros(m, v) if self.noise is None else self.noise.rows(0, m)
        # Of length 1 and short in binary, so that nothing is rounded again.
        self.query_MD, self.token_VD = torch.randn(m, d), F.normalize(torch.randn(v, d), dim=1).to(dtype)
        self.token_MK = choose_tokens(self.query_MD, self.token_VD, k, scale=4.0, noise=self.noise)
        self.pull_MK = torch.randn(m, k)

    def dense(self) -> list[Tensor]:
        """Probabilities and gradients; that of the scale by query."""
        unit_MD = F.normalize(self.query_MD, dim=1).to(self.token_VD.dtype)
        unit_MD, token_VD = (t.detach().double().requires_grad_() for t in (unit_MD, self.token_VD))
        scale_M1 = torch.full((len(unit_MD), 1), 4.0, dtype=torch.float64, requires_grad=True)
        score_MV = scale_M1 * (unit_MD @ token_VD.T) + self.noise_MV
        p_MK = (score_MV / TAU).softmax(1).gather(1, self.token_MK)
        p_MK.backward(self.pull_MK.double())
        return self.found(p_MK, unit_MD, token_VD, scale_M1)

    def ours(self, way: type[torch.autograd.Function], device: str = "cpu") -> list[Tensor]:
        unit_MD = F.normalize(self.query_MD, dim=1).to(self.token_VD.dtype).float()
        unit_MD, token_VD = (t.to(device).requires_grad_() for t in (unit_MD, self.token_VD))
        scale, noise = torch.tensor(4.0, device=device, requires_grad=True), self.noise
        if noise is not None:
            noise.log_3V = noise.log_3V.to(device)
        p_MK = way.apply(unit_MD, token_VD, scale, (self.token_MK.to(device), TAU, noise))
        p_MK.backward(self.pull_MK.to(device))
        return self.found(p_MK, unit_MD, token_VD, scale)

    @staticmethod
    def found(p_MK: Tensor, *leaves: Tensor) -> list[Tensor]:
        return [p_MK.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def assert_near(found: list[Tensor], true: list[Tensor], error: float) -> None:
    """Errors as shares of a tensor's length. What queries pull at the scale nearly cancels, and each pull is
    rounded: its error is measured by their length, not by the little that is left of their sum.
    """
    assert len(found) == len(true) == 4
    for ours, theirs in zip(found[:3], true[:3], strict=True):
        assert (ours.double().cpu() - theirs).norm() <= error * theirs.norm()
    assert (found[3].double().cpu() - true[3].sum()).abs() <= error * true[3].norm()


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_chunks_give_the_dense_softmax(
    size: tuple[int, int, int, int], noisy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_filter, "_CHUNK_CELLS", 3 * size[1])
    inputs = Inputs(size, noisy, torch.float32)
    assert_near(inputs.ours(token_probability._InChunks), inputs.dense(), 1e-4)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_kernels_give_the_dense_softmax(
    size: tuple[int, int, int, int], noisy: bool, interpreted: Interpreted
) -> None:
    interpreted("_token_probability_triton")
    inputs = Inputs(size, noisy, torch.float32)
    assert_near(inputs.ours(token_probability._OnGpu), inputs.dense(), 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("size", [SIZES[0], (700, 5000, 64, 64)])
def test_a_gpu_gives_the_dense_softmax(
    size: tuple[int, int, int, int], dtype: torch.dtype, error: float
) -> None:
    inputs = Inputs(size, True, dtype)
    assert_near(inputs.ours(token_probability._OnGpu, "cuda"), inputs.dense(), error)


def test_the_length_of_a_query_says_nothing() -> None:
    inputs = Inputs(SIZES[0], True, torch.float32)
    scale = torch.tensor(4.0)
    found = [
        choice_probability(
            factor * inputs.query_MD,
            inputs.token_VD,
            inputs.token_MK,
            scale=scale,
            tau=TAU,
            noise=inputs.noise,
        )
        for factor in (1.0, 100.0)
    ]
    torch.testing.assert_close(*found)


def test_inside_torch_func_it_is_the_same() -> None:
    inputs = Inputs(SIZES[0], False, torch.float32)

    def total(scale: Tensor) -> Tensor:
        p_MK = choice_probability(
            inputs.query_MD, inputs.token_VD, inputs.token_MK, scale=scale, tau=TAU, noise=None
        )
        return (p_MK * inputs.pull_MK).sum()

    scale = torch.tensor(4.0, requires_grad=True)
    total(scale).backward()
    torch.testing.assert_close(torch.func.grad(total)(torch.tensor(4.0)), scale.grad)
