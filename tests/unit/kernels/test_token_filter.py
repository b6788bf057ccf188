"""The choice of tokens: exact for awkward sizes, and sampled as it says."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lexrec.kernels import token_filter
from lexrec.kernels.token_filter import ShiftedGumbel, choose_tokens, top_k


@given(st.integers(1, 9), st.integers(1, 700), st.integers(1, 12), st.integers(0, 99))
def test_top_k_equals_a_full_sort(m: int, v: int, k: int, seed: int) -> None:
    score_MV = torch.randn(m, v, generator=torch.Generator().manual_seed(seed))
    k = min(k, v)
    assert torch.equal(top_k(score_MV, k), score_MV.argsort(dim=1, descending=True)[:, :k])


def test_top_k_with_minus_infinity_everywhere_but_one() -> None:
    score_MV = torch.full((1, 1000), -torch.inf)
    score_MV[0, 777] = 0.0
    assert top_k(score_MV, 3)[0, 0] == 777


@pytest.mark.parametrize("chunk", [1, 1000, 10**9])
def test_chosen_tokens_are_the_nearest_whatever_the_chunk(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_filter, "_CHUNK_CELLS", chunk)
    torch.manual_seed(0)
    query_MD = torch.randn(13, 8)
    token_VD = torch.nn.functional.normalize(torch.randn(1003, 8), dim=1)
    cosine_MV = torch.nn.functional.cosine_similarity(query_MD[:, None], token_VD[None], dim=2)
    chosen_MK = choose_tokens(query_MD, token_VD, 7, scale=5.0)
    assert torch.equal(chosen_MK, cosine_MV.argsort(dim=1, descending=True)[:, :7])


def test_no_queries_choose_nothing() -> None:
    assert choose_tokens(torch.zeros(0, 4), torch.eye(4), 2).shape == (0, 2)


def test_noise_samples_from_the_softmax_of_the_scores() -> None:
    """Gumbel-max: the best token is v with probability softmax(scale * cos)[v]."""
    torch.manual_seed(0)
    token_VD = torch.nn.functional.normalize(torch.randn(6, 3), dim=1)
    query_MD = torch.randn(1, 3)
    def drawn() -> ShiftedGumbel:
        return ShiftedGumbel(1, 6, token_VD.device)

    # Rows of one call share a circular draw, so independent samples need calls of their own.
    firsts = [choose_tokens(query_MD, token_VD, 1, scale=2.0, noise=drawn())[0, 0] for _ in range(3000)]
    expected_V = (2 * torch.nn.functional.normalize(query_MD, dim=1) @ token_VD.T)[0].softmax(0)
    share_V = torch.stack(firsts).bincount(minlength=6) / len(firsts)
    assert_close(share_V, expected_V, atol=4 * math.sqrt(0.25 / len(firsts)), rtol=0)


def test_each_row_of_shifted_noise_is_a_gumbel_vector() -> None:
    torch.manual_seed(0)
    noise_MV = ShiftedGumbel(50, 4000, torch.device("cpu")).rows(0, 50)
    assert noise_MV.shape == (50, 4000)
    assert noise_MV.mean().item() == pytest.approx(0.5772, abs=0.1)
    assert noise_MV.var().item() == pytest.approx(math.pi**2 / 6, rel=0.15)
    assert not torch.equal(noise_MV[0], noise_MV[1])
    assert torch.equal(noise_MV[0].sort().values, noise_MV[1].sort().values)


def test_the_same_seed_gives_the_same_choice() -> None:
    query_MD, token_VD = torch.randn(5, 4), torch.nn.functional.normalize(torch.randn(90, 4), dim=1)
    chosen = []
    for _ in range(2):
        torch.manual_seed(7)
        noise = ShiftedGumbel(5, 90, token_VD.device)
        chosen.append(choose_tokens(query_MD, token_VD, 5, noise=noise))
    assert torch.equal(*chosen)
