"""Tokens in 8 bits choose what float32 does."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lexrec.kernels import products, short_tokens
from lexrec.kernels.short_tokens import ShortTokens
from lexrec.kernels.token_filter import ShiftedGumbel, choose_tokens


def tokens(v: int, width: int = 64, common: float = 0.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    token_VD = torch.randn(v, width, generator=generator)
    return F.normalize(token_VD + common * torch.randn(width, generator=generator), dim=1)


def assert_the_best(token_MK: Tensor, query_MD: Tensor, token_VD: Tensor, k: int) -> None:
    """K different ones of the largest cosines in float64, in order but for what float32 cannot tell apart."""
    cosine_MV = F.normalize(query_MD.double(), dim=1) @ token_VD.double().T
    found_MK = cosine_MV.gather(1, token_MK)
    torch.testing.assert_close(found_MK, cosine_MV.topk(k, dim=1).values, atol=1e-6, rtol=0)
    assert all(len(set(row)) == k for row in token_MK.tolist())


@pytest.mark.parametrize("common", [0.0, 3.0, 100.0])
@pytest.mark.parametrize(("v", "k"), [(30522, 50), (4096, 64), (2049, 3), (700, 1)])
def test_the_choice_is_that_of_float32(v: int, k: int, common: float) -> None:
    """Also where all tokens are much alike, so that 8 bits tell few of them apart."""
    token_VD, query_MD = tokens(v, common=common), torch.randn(70, 64)
    short = ShortTokens([token_VD])
    assert short.serves(k)
    for scale in (20.0, -1.0):
        token_MK = choose_tokens(query_MD, token_VD, k, scale=torch.tensor(scale), rough=short)
        assert_the_best(token_MK, math.copysign(1, scale) * query_MD, token_VD, k)


def test_a_coordinate_that_stands_out_makes_the_steps_no_coarser() -> None:
    token_VD = tokens(5000)
    sharp_VD = token_VD.clone()
    sharp_VD[:9] = torch.eye(64)[:9]
    plain, sharp = ShortTokens([token_VD]), ShortTokens([sharp_VD])
    assert sharp.off_E.item() < 1.5 * plain.off_E.item()
    query_MD = torch.cat([sharp_VD[:9], torch.randn(5, 64)])
    assert_the_best(sharp.choose(F.normalize(query_MD, dim=1), 20)[0], query_MD, sharp_VD, 20)


@pytest.mark.parametrize("n_queries", [1, 7, 40])
def test_several_tables_are_chosen_from_at_once(monkeypatch: pytest.MonkeyPatch, n_queries: int) -> None:
    monkeypatch.setattr(short_tokens, "_CHUNK_CELLS", 2**16)
    tables = [tokens(v, 24, 1.0, seed=v) for v in (3000, 4096, 2500)]
    query_MD = torch.randn(n_queries, 24)
    token_EMK = ShortTokens(tables).choose(F.normalize(query_MD, dim=1), 17)
    assert token_EMK.shape == (3, n_queries, 17)
    for token_MK, token_VD in zip(token_EMK, tables, strict=True):
        assert_the_best(token_MK, query_MD, token_VD, 17)


def test_without_products_of_bytes_the_choice_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_multiplies_bytes", lambda: False)
    token_VD, query_MD = tokens(5000, common=1.0), torch.randn(9, 64)
    token_MK = ShortTokens([token_VD]).choose(F.normalize(query_MD, dim=1), 20)[0]
    assert_the_best(token_MK, query_MD, token_VD, 20)


@pytest.mark.parametrize("n_near", [5, 40, 2000])
def test_where_scores_end_the_choice_goes_on(n_near: int) -> None:
    """Tokens beside the query, fewer or more than K, all score as high as 8 bits go."""
    token_VD, query_MD = tokens(6000), torch.randn(3, 64)
    token_VD[::3][:n_near] = F.normalize(query_MD[:1] + 0.02 * torch.randn(n_near, 64), dim=1)
    token_MK = ShortTokens([token_VD]).choose(F.normalize(query_MD, dim=1), 20)[0]
    assert_the_best(token_MK, query_MD, token_VD, 20)


def test_few_tokens_are_scored_again(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    by_rows = short_tokens._by_rows

    def counted(row_S, token_S, n_rows):  # type: ignore[no-untyped-def]
        counts.append(len(row_S) // n_rows)
        return by_rows(row_S, token_S, n_rows)

    monkeypatch.setattr(short_tokens, "_by_rows", counted)
    short = ShortTokens([tokens(30522), tokens(30522, common=1.0)])
    short.choose(F.normalize(torch.randn(10, 64), dim=1), 50)
    assert len(counts) == 1
    assert 50 <= counts[0] < 200


@pytest.mark.parametrize("n", [8, 64, 72, 4096, 14 * 256 * 125])
@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_few_of_many_are_found_in_order(n: int, share: float) -> None:
    is_so_N = np.random.default_rng(n).random(n) < share
    np.testing.assert_array_equal(short_tokens._true(is_so_N), np.flatnonzero(is_so_N))


def test_equal_tokens_are_chosen_once_each_and_nothing_asks_for_anything() -> None:
    short = ShortTokens([F.normalize(torch.ones(5000, 8), dim=1)])
    for query_MD in (torch.ones(3, 8), torch.zeros(3, 8)):
        token_MK = short.choose(query_MD, 20)[0]
        assert all(len(set(row)) == 20 for row in token_MK.tolist())
        assert token_MK.min() >= 0
        assert token_MK.max() < 5000


def test_a_query_that_is_no_number_is_answered_and_harms_nobody() -> None:
    token_VD, query_MD = tokens(3000), torch.randn(3, 64)
    query_MD[1] = torch.nan
    token_MK = ShortTokens([token_VD]).choose(F.normalize(query_MD, dim=1), 10)[0]
    assert_the_best(token_MK[[0, 2]], query_MD[[0, 2]], token_VD, 10)
    assert ((token_MK >= 0) & (token_MK < 3000)).all()


def test_long_lists_and_noise_are_left_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    query_MD, token_VD = torch.randn(3, 16), tokens(2048, 16)
    short = ShortTokens([token_VD])
    monkeypatch.setattr(short, "choose", None)
    assert not short.serves(33)
    assert choose_tokens(query_MD, token_VD, 33, rough=short).shape == (3, 33)
    noise = ShiftedGumbel(2048, torch.device("cpu"))
    assert choose_tokens(query_MD, token_VD, 5, rough=short, noise=noise).shape == (3, 5)


def test_they_are_made_where_a_processor_has_the_arithmetic_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True}, raising=False)
    assert ShortTokens.of([tokens(3000), tokens(2000)]) is not None
    # The small table would have to be read as if it were large.
    assert ShortTokens.of([tokens(9000), tokens(300)]) is None
    assert ShortTokens.of([tokens(3000).double()]) is None
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert ShortTokens.of([tokens(3000)]) is None
