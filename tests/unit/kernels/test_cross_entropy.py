"""Cross-entropy without logits: value, gradients and memory against plain float64, at awkward sizes."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lexrec.kernels import cross_entropy as module
from lexrec.kernels.cross_entropy import cross_entropy
from tests.unit.kernels.conftest import Interpreted


@dataclass(frozen=True)
class Size:
    """N states, I items, D wide; the last `unused` states have weight 0, and so has every seventh."""

    N: int
    I: int  # noqa: E741
    D: int
    has_bias: bool = False
    unused: int = 0


SIZES = [
    Size(130, 300, 32, has_bias=True, unused=5),
    Size(7, 5, 8),
    Size(300, 129, 48, has_bias=True, unused=200),
    Size(1, 1000, 64),
    Size(65, 257, 64, unused=65),
    Size(70, 90, 200, has_bias=True, unused=3),
]


@dataclass
class Problem:
    """What the loss is asked, the answer in float64, and how to compare."""

    query_ND: Tensor
    row_ID: Tensor
    target_N: Tensor
    weight_N: Tensor
    bias_I: Tensor | None

    @staticmethod
    def of(size: Size, device: str = "cpu", dtype: torch.dtype = torch.float32) -> "Problem":
        torch.manual_seed(size.N)
        # Representable in 16 bits, so that only arithmetic differs.
        query_ND = torch.randn(size.N, size.D).bfloat16().to(dtype)
        row_ID = torch.randn(size.I, size.D).mul(0.3).bfloat16().to(dtype)
        target_N, weight_N = torch.randint(size.I, (size.N,)), torch.rand(size.N) + 0.1
        bias_I = None
        if size.unused:
            weight_N[size.N - size.unused :] = 0
            weight_N[::7] = 0
        if size.has_bias:
            bias_I = torch.randn(size.I, dtype=dtype)
            bias_I[3], target_N[target_N == 3] = -torch.inf, 4  # an item kept out
            bias_I = bias_I.to(device).requires_grad_()
        leaves = (one.to(device).requires_grad_() for one in (query_ND, row_ID))
        return Problem(*leaves, target_N.to(device), weight_N.to(device), bias_I)

    @property
    def leaves(self) -> list[Tensor]:
        return [one for one in (self.query_ND, self.row_ID, self.bias_I) if one is not None]

    def asked(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        return self.query_ND, self.row_ID, self.target_N, self.weight_N, self.bias_I

    def answer(self) -> tuple[Tensor, list[Tensor]]:
        """Loss and gradients by PyTorch in float64."""
        leaves = [one.detach().double().requires_grad_() for one in self.leaves]
        logit_NI = leaves[0] @ leaves[1].T
        logit_NI = logit_NI + leaves[2] if self.bias_I is not None else logit_NI
        loss_N = F.cross_entropy(logit_NI, self.target_N, reduction="none")
        loss = (loss_N * self.weight_N.double()).sum()
        return loss.detach(), list(torch.autograd.grad(2 * loss, leaves))

    def hold(self, loss: Tensor, tolerance: float) -> None:
        """The loss is right, and so are the gradients of twice the loss."""
        expected, gradients = self.answer()
        torch.autograd.backward(2 * loss)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            assert leaf.grad is not None
            assert leaf.grad.dtype == leaf.dtype
            error = (leaf.grad.double() - gradient).norm() / gradient.norm().clamp(min=1e-12)
            assert error < tolerance, error.item()


@pytest.mark.parametrize("chunk", [600, 10**4, 10**7])
@pytest.mark.parametrize("size", SIZES)
def test_chunks_are_exact(size: Size, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_CELLS", chunk)
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-12)):
        problem = Problem.of(size, dtype=dtype)
        problem.hold(cross_entropy(*problem.asked()), tolerance)


def test_extreme_scores_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_CELLS", 1)
    query_ND = torch.tensor([[300.0], [-300.0], [0.0]], requires_grad=True)
    row_ID = torch.tensor([[1.0], [-1.0], [0.5]], requires_grad=True)
    loss = cross_entropy(query_ND, row_ID, torch.tensor([1, 0, 2]), torch.ones(3))
    assert loss.item() == pytest.approx(1200 + torch.tensor(3.0).log().item())
    loss.backward()
    assert query_ND.grad is not None
    torch.testing.assert_close(query_ND.grad[:, 0], torch.tensor([2.0, -2.0, 1 / 6 - 0.5]))


def test_nobody_asks_for_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_CELLS", 1)
    problem = Problem.of(SIZES[0])
    with torch.no_grad():
        loss = cross_entropy(*problem.asked())
    torch.testing.assert_close(loss.double(), problem.answer()[0], rtol=1e-5, atol=1e-6)
    assert not loss.requires_grad


def test_autocast_rounds_operands_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_CELLS", 1)
    problem = Problem.of(SIZES[0])
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy(*problem.asked())
    assert loss.dtype == torch.float32
    expected, gradients = problem.answer()
    torch.testing.assert_close(loss.double(), expected, rtol=2e-3, atol=0)
    loss.backward()
    for leaf, gradient in zip(problem.leaves, gradients, strict=True):
        assert (2 * leaf.grad.double() - gradient).norm() / gradient.norm() < 0.01  # type: ignore[union-attr]


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, Tensor):
                self.n = max(self.n, one.numel())
        return made


def test_no_tensor_of_states_by_items_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_CELLS", 2**16)
    N, n_items, D = 600, 2000, 8
    problem = Problem.of(Size(N, n_items, D))
    with Largest() as largest:
        cross_entropy(*problem.asked()).backward()
    assert largest.n <= max(module._CHUNK_CELLS, module._CHUNK_ROWS * n_items) < N * n_items / 15


def test_unused_states_at_the_end_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_CELLS", 1)
    flops = []
    for unused in (0, 64):
        problem = Problem.of(Size(32, 50, 4))
        query_ND = F.pad(problem.query_ND, (0, 0, 0, unused))
        target_N, weight_N = F.pad(problem.target_N, (0, unused)), F.pad(problem.weight_N, (0, unused))
        with FlopCounterMode(display=False) as counter:
            cross_entropy(query_ND, problem.row_ID, target_N, weight_N).backward()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] == 6 * 32 * 50 * 4


@pytest.mark.parametrize("tiles", [(128, 64), (64, 128)])
@pytest.mark.parametrize("size", SIZES)
def test_kernels_are_exact(
    size: Size, tiles: tuple[int, int], interpreted: Interpreted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float16: the interpreter has no bfloat16."""
    kernels, problem = interpreted("_cross_entropy_triton"), Problem.of(size)
    for name in ("_STATES", "_ITEMS"):
        monkeypatch.setattr(kernels, name, kernels.Plan(*tiles, 4, 3))
    problem.hold(kernels.cross_entropy(*problem.asked(), torch.float16), 1e-3)


def test_kernels_share_a_long_catalogue(interpreted: Interpreted, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = interpreted("_cross_entropy_triton")
    plan = kernels.Plan(128, 128, 4, 3)
    assert kernels._shares(100, 10_445, plan) == (14, 768)
    assert kernels._shares(51_200, 10_445, plan) == (1, 10_496)
    monkeypatch.setattr(kernels, "_PROGRAMS", 1)
    problem = Problem.of(Size(130, 400, 16))
    problem.hold(kernels.cross_entropy(*problem.asked(), torch.float16), 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [*SIZES, Size(1000, 10_445, 64, True, 100), Size(500, 2000, 200, unused=3)])
def test_a_gpu_is_exact(size: Size) -> None:
    problem = Problem.of(size, "cuda")
    with torch.autocast("cuda", torch.bfloat16):
        loss = cross_entropy(*problem.asked())
    problem.hold(loss, 4e-3)


@pytest.mark.gpu
def test_a_gpu_holds_no_logits() -> None:
    N, n_items, D = 51_200, 100_000, 64
    problem = Problem.of(Size(N, n_items, D), "cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", torch.bfloat16):
        cross_entropy(*problem.asked()).backward()
    # Gradients and their parts, 16-bit copies; the logits alone would be 10 GB in 16 bits.
    assert torch.cuda.max_memory_allocated() - before < 24 * (N + n_items) * D
