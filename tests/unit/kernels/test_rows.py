"""Rows by index and their dot products: values and gradients are those of plain float64 arithmetic."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap
from torch.testing import assert_close

from lexrec.kernels import rows
from lexrec.kernels.rows import dot_rows, pick_rows, score_rows, take_rows
from tests.unit.kernels.conftest import Interpreted

SIZES = [(70, 9, 24, 3), (1, 5, 64, 1), (33, 100, 8, 20)]
"""N states, R rows, D wide, K chosen rows of each."""


def drawn(N: int, R: int, D: int, K: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(N)
    query_ND, table_RD = torch.randn(N, D, device=device), torch.randn(R, D, device=device)
    return query_ND.requires_grad_(), table_RD.requires_grad_(), torch.randint(R, (N, K), device=device)


def summed(grad_NKD: Tensor, index_NK: Tensor, n_rows: int) -> Tensor:
    """Sum by index in float64; row 0 left out."""
    out_RD = grad_NKD.new_zeros(n_rows, grad_NKD.shape[-1], dtype=torch.float64)
    out_RD.index_add_(0, index_NK.flatten(), grad_NKD.double().flatten(0, -2))
    out_RD[0] = 0
    return out_RD


def scored(
    query_ND: Tensor, table_RD: Tensor, index_NK: Tensor, grad_NK: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and gradients in float64."""
    query_ND, table_RD = (one.detach().double().requires_grad_() for one in (query_ND, table_RD))
    score_NK = (query_ND[:, None] * table_RD[index_NK]).sum(-1)
    score_NK.backward(grad_NK.double())
    assert query_ND.grad is not None
    assert table_RD.grad is not None
    return score_NK.detach(), query_ND.grad, table_RD.grad


@pytest.mark.parametrize("size", SIZES)
def test_kernels_take_and_add_up(size: tuple[int, int, int, int], interpreted: Interpreted) -> None:
    kernels = interpreted("_rows_triton")
    _, table_RD, index_NK = drawn(*size)
    assert torch.equal(kernels.take(table_RD.detach(), index_NK), table_RD[index_NK])
    grad_NKD = torch.randn(*index_NK.shape, size[2])
    grad_NKD[::3] = 0  # of unused slots
    found_RD = kernels.add_up(grad_NKD, index_NK, size[1], 0)
    assert_close(found_RD.double(), summed(grad_NKD, index_NK, size[1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_kernels_score(size: tuple[int, int, int, int], interpreted: Interpreted) -> None:
    kernels = interpreted("_rows_triton")
    query_ND, table_RD, index_NK = (one.detach() for one in drawn(*size))
    grad_NK = torch.randn(index_NK.shape)
    grad_NK[::3] = 0
    expected = scored(query_ND, table_RD, index_NK, grad_NK)
    found = (
        kernels.score(query_ND, table_RD, index_NK),
        *kernels.score_gradients(grad_NK, query_ND, table_RD, index_NK),
    )
    for one, other in zip(found, expected, strict=True):
        assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_without_a_gpu(size: tuple[int, int, int, int]) -> None:
    query_ND, table_RD, index_NK = drawn(*size)
    grad_NK = torch.randn(index_NK.shape)
    score_NK = score_rows(query_ND, table_RD, index_NK)
    score_NK.backward(grad_NK)
    for one, other in zip(
        (score_NK, query_ND.grad, table_RD.grad), scored(query_ND, table_RD, index_NK, grad_NK), strict=True
    ):
        assert_close(one.double(), other, rtol=1e-5, atol=1e-5)  # type: ignore[union-attr]
    assert_close(dot_rows(query_ND, table_RD[index_NK]), score_NK)
    assert torch.equal(take_rows(table_RD, index_NK, 0), F.embedding(index_NK, table_RD))
    assert torch.equal(pick_rows(table_RD, index_NK[:, 0]), table_RD[index_NK[:, 0]])


def test_many_of_few_rows_are_read_from_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_CHUNK_CELLS", 1500)
    query_ND, table_RD, index_NK = drawn(40, 100, 8, 20)
    grad_NK = torch.randn(index_NK.shape)
    expected = scored(query_ND, table_RD, index_NK, grad_NK)
    score_NK = score_rows(query_ND, table_RD, index_NK)
    assert "Read" in type(score_NK.grad_fn).__name__
    assert "Read" not in type(score_rows(query_ND, table_RD, index_NK[:, :16]).grad_fn).__name__
    found = score_NK, *torch.autograd.grad(score_NK, (query_ND, table_RD), grad_NK)
    for one, other in zip(found, expected, strict=True):
        assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def test_scores_have_gradients_sample_by_sample() -> None:
    """As Fisher importance takes them."""
    query_SND, table_RD = torch.randn(3, 4, 8), torch.randn(50, 8)
    index_SNK = torch.randint(50, (3, 4, 20))

    def of(score):  # type: ignore[no-untyped-def]
        loss = lambda table, query, index: score(query, table, index).square().sum()  # noqa: E731
        return vmap(grad(loss), (None, 0, 0))(table_RD, query_SND, index_SNK)

    expected = of(lambda query, table, index: dot_rows(query, F.embedding(index, table)))
    assert_close(of(score_rows), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [*SIZES, (6400, 10_447, 64, 2), (500, 1000, 200, 257)])
def test_a_gpu(size: tuple[int, int, int, int]) -> None:
    query_ND, table_RD, index_NK = drawn(*size, device="cuda")
    grad_NK = torch.randn(index_NK.shape, device="cuda")
    expected = scored(query_ND, table_RD, index_NK, grad_NK)
    with torch.autocast("cuda", torch.bfloat16):
        score_NK = score_rows(query_ND, table_RD, index_NK)
        taken_NKD = take_rows(table_RD, index_NK, 0)
    found = score_NK, *torch.autograd.grad(score_NK, (query_ND, table_RD), grad_NK)
    for one, other in zip(found, expected, strict=True):
        assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
    assert torch.equal(taken_NKD, table_RD[index_NK])
    grad_NKD = torch.randn_like(taken_NKD)
    (of_table_RD,) = torch.autograd.grad(taken_NKD, table_RD, grad_NKD)
    assert_close(of_table_RD.double(), summed(grad_NKD, index_NK, size[1]), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_a_gpu_copies_no_chosen_rows() -> None:
    query_ND, table_RD, index_NK = drawn(5000, 1000, 64, 256, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", torch.bfloat16):
        score_rows(query_ND, table_RD, index_NK).sum().backward()
    # Scores and their gradient, a few times over; a copy of the rows would be 328 MB.
    assert torch.cuda.max_memory_allocated() - before < 32e6
