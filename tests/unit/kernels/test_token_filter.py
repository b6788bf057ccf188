"""The choice of tokens and its probabilities: exact for awkward sizes, and sampled as it says."""

import math
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from lexrec.kernels import token_filter
from lexrec.kernels.token_filter import (
    ShiftedGumbel,
    choose_tokens,
    top_k,
    unit_rows,
)
from tests.unit.kernels.conftest import Interpreted

SIZES = [(17, 203, 24, 7), (3, 50, 8, 50), (2, 33, 64, 1), (2, 1025, 64, 33), (70, 1030, 5, 3)]
"""M, V, D, K."""


def sized(
    m: int, v: int, d: int, noisy: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, ShiftedGumbel | None]:
    torch.manual_seed(m + v)
    noise = ShiftedGumbel(v, torch.device("cpu")) if noisy else None
    return torch.randn(m, d), F.normalize(torch.randn(v, d), dim=1).to(dtype), noise


def true_scores(query_MD: Tensor, token_VD: Tensor, scale: float, noise: ShiftedGumbel | None) -> Tensor:
    """Of what is multiplied: interests of length 1, rounded to the tokens' type."""
    unit_MD = F.normalize(query_MD, dim=1).to(token_VD.dtype).double()
    score_MV = scale * unit_MD @ token_VD.double().T
    return score_MV if noise is None else score_MV + noise.rows(0, len(query_MD))


def assert_the_best(token_MK: Tensor, score_MV: Tensor, k: int, error: float = 1e-5) -> None:
    """K different tokens, best first, none better left out; ties within rounding may fall either way."""
    assert token_MK.shape == (len(score_MV), k)
    assert token_MK.dtype == torch.int64
    assert all(len(set(row)) == k for row in token_MK.tolist())
    best_MK = score_MV.topk(k, dim=1).values
    assert_close(score_MV.gather(1, token_MK), best_MK, rtol=0, atol=error)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_the_best_tokens_are_chosen_chunk_by_chunk(
    size: tuple[int, int, int, int], dtype: torch.dtype, noisy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    m, v, d, k = size
    monkeypatch.setattr(token_filter, "_CHUNK_CELLS", 3 * v)
    query_MD, token_VD, noise = sized(m, v, d, noisy, dtype)
    token_MK = choose_tokens(query_MD, token_VD, k, scale=torch.tensor(20.0), noise=noise)
    assert_the_best(token_MK, true_scores(query_MD, token_VD, 20.0, noise), k)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", SIZES[:-1])
def test_kernels_choose_the_best_tokens(
    size: tuple[int, int, int, int], dtype: torch.dtype, noisy: bool, interpreted: Interpreted
) -> None:
    """float16 stands for bfloat16, whose products Triton's interpreter does not know."""
    m, v, d, k = size
    query_MD, token_VD, noise = sized(m, v, d, noisy, dtype)
    kernels = interpreted("_token_filter_triton")
    token_MK = kernels.choose(query_MD, token_VD, k, torch.tensor(20.0), noise)
    assert_the_best(token_MK, true_scores(query_MD, token_VD, 20.0, noise), k)


@pytest.mark.gpu
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [*SIZES, (2000, 32000, 64, 64), (300, 50257, 128, 10), (9, 151936, 64, 50)])
def test_a_gpu_chooses_the_best_tokens(
    size: tuple[int, int, int, int], dtype: torch.dtype, noisy: bool
) -> None:
    m, v, d, k = size
    query_MD, token_VD, noise = sized(m, v, d, noisy, dtype)
    if noise is not None:
        noise.log_3V = noise.log_3V.cuda()
    query_MD, token_VD = query_MD.cuda(), token_VD.cuda()
    token_MK = choose_tokens(query_MD, token_VD, k, scale=torch.tensor(20.0), noise=noise)
    # An entry of an interest between two 16-bit numbers may be rounded either way.
    error = 1e-5 if dtype == torch.float32 else 0.02
    assert_the_best(token_MK, true_scores(query_MD, token_VD, 20.0, noise), k, error)


def test_kernels_choose_chunk_by_chunk(interpreted: Interpreted, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = interpreted("_token_filter_triton")
    query_MD, token_VD, noise = sized(7, 300, 16, True, torch.float32)
    args = (query_MD, token_VD, 4, torch.tensor(3.0), noise)
    whole = kernels.choose(*args)
    monkeypatch.setattr(kernels, "_CELLS", 100)
    assert torch.equal(kernels.choose(*args), whole)


def test_kernels_read_tokens_of_any_stride(interpreted: Interpreted) -> None:
    """As they stand in a projected table, beside keys and values."""
    kernels = interpreted("_token_filter_triton")
    wide_VX = torch.randn(100, 3 * 24)
    unit_VD = kernels.unit_rows(wide_VX[:, :24], torch.float32)
    assert_close(unit_VD, F.normalize(wide_VX[:, :24], dim=1))
    assert_close(unit_rows(wide_VX[:, :24]), unit_VD)
    wide_VX[:, 24:48] = unit_VD
    query_MD = torch.randn(3, 48)[:, ::2].contiguous()
    found = [
        kernels.choose(query_MD, x, 5, torch.tensor(1.0), None) for x in (wide_VX[:, 24:48], unit_VD.clone())
    ]
    assert torch.equal(*found)


def test_scores_that_are_no_numbers_choose_no_token_beyond_the_end(interpreted: Interpreted) -> None:
    """A training that diverged must end in its own error, not in a read beyond the table."""
    kernels: ModuleType = interpreted("_token_filter_triton")
    query_MD, token_VD = torch.full((2, 16), math.nan), torch.randn(101, 16)
    for scale in (1.0, -math.nan):
        token_MK = kernels.choose(query_MD, token_VD, 9, torch.tensor(scale), None)
        assert ((token_MK >= 0) & (token_MK < 101)).all()


@pytest.mark.parametrize(("v", "k"), [(200, 20), (4000, 40)])
def test_equal_scores_choose_different_tokens(v: int, k: int, interpreted: Interpreted) -> None:
    """Then every group has more than one of the best tokens, however many candidates that makes."""
    token_VD = torch.ones(v, 16)
    token_MK = interpreted("_token_filter_triton").choose(
        torch.ones(2, 16), token_VD, k, torch.tensor(1.0), None
    )
    assert all(len(set(row)) == k for row in token_MK.tolist())
    assert ((token_MK >= 0) & (token_MK < v)).all()


@pytest.mark.parametrize(("v", "k"), [(1, 1), (7, 7), (32000, 64), (32000, 1), (262144, 50), (100, 60)])
def test_there_are_groups_enough(v: int, k: int, interpreted: Interpreted) -> None:
    size = interpreted("_token_filter_triton").group_size(v, k)
    assert -(-v // size) >= k
    assert size & (size - 1) == 0


@given(st.integers(1, 9), st.integers(1, 700), st.integers(1, 12), st.integers(0, 99))
def test_top_k_equals_a_full_sort(m: int, v: int, k: int, seed: int) -> None:
    score_MV = torch.randn(m, v, generator=torch.Generator().manual_seed(seed))
    k = min(k, v)
    assert torch.equal(top_k(score_MV, k), score_MV.argsort(dim=1, descending=True)[:, :k])


def test_top_k_with_minus_infinity_everywhere_but_one() -> None:
    score_MV = torch.full((1, 1000), -torch.inf)
    score_MV[0, 777] = 0.0
    assert top_k(score_MV, 3)[0, 0] == 777


def test_no_queries_choose_nothing() -> None:
    assert choose_tokens(torch.zeros(0, 4), torch.eye(4), 2).shape == (0, 2)


def test_noise_samples_from_the_softmax_of_the_scores() -> None:
    """Gumbel-max: the best token is v with probability softmax(scale * cos)[v]."""
    torch.manual_seed(0)
    token_VD = F.normalize(torch.randn(6, 3), dim=1)
    query_MD = torch.randn(1, 3)

    def first() -> Tensor:
        # Rows of one call share a circular draw, so independent samples need calls of their own.
        noise = ShiftedGumbel(6, token_VD.device)
        return choose_tokens(query_MD, token_VD, 1, scale=2.0, noise=noise)[0, 0]

    firsts = torch.stack([first() for _ in range(3000)])
    expected_V = (2 * F.normalize(query_MD, dim=1) @ token_VD.T)[0].softmax(0)
    share_V = firsts.bincount(minlength=6) / len(firsts)
    assert_close(share_V, expected_V, atol=4 * math.sqrt(0.25 / len(firsts)), rtol=0)


def test_each_row_of_shifted_noise_is_a_gumbel_vector() -> None:
    torch.manual_seed(0)
    noise_MV = ShiftedGumbel(4000, torch.device("cpu")).rows(0, 50)
    assert noise_MV.shape == (50, 4000)
    assert noise_MV.mean().item() == pytest.approx(0.5772, abs=0.1)
    assert noise_MV.var().item() == pytest.approx(math.pi**2 / 6, rel=0.15)
    assert not torch.equal(noise_MV[0], noise_MV[1])
    assert torch.equal(noise_MV[0].sort().values, noise_MV[1].sort().values)


def test_kernels_draw_the_same_noise(interpreted: Interpreted) -> None:
    kernels = interpreted("_token_filter_triton")
    torch.manual_seed(0)
    log_3V = kernels.drawn_noise(2000, torch.device("cpu"))
    noise_V = -log_3V[:2000].float()
    assert torch.equal(log_3V, log_3V[:2000].repeat(3))
    assert noise_V.mean().item() == pytest.approx(0.5772, abs=0.1)
    assert noise_V.var().item() == pytest.approx(math.pi**2 / 6, rel=0.15)
    assert len(noise_V.unique()) > 1000
    assert not torch.equal(kernels.drawn_noise(2000, torch.device("cpu")), log_3V)


def test_rows_beyond_the_last_place_begin_anew() -> None:
    noise = ShiftedGumbel(1200, torch.device("cpu"))
    assert noise.n_places == 300
    noise_MV = noise.rows(298, 302)
    assert torch.equal(noise_MV[2:], noise.rows(0, 2))
    assert torch.equal(noise_MV[:2], noise.rows(298, 300))
    assert torch.equal(noise_MV[1], noise_MV[0].roll(-4))
    token_MK = torch.randint(1200, (302, 3))
    assert torch.equal(noise.of(token_MK), noise.rows(0, 302).gather(1, token_MK))


def test_the_same_seed_gives_the_same_choice() -> None:
    query_MD, token_VD = torch.randn(5, 4), F.normalize(torch.randn(90, 4), dim=1)
    chosen = []
    for _ in range(2):
        torch.manual_seed(7)
        noise = ShiftedGumbel(90, token_VD.device)
        chosen.append(choose_tokens(query_MD, token_VD, 5, noise=noise))
    assert torch.equal(*chosen)
