"""Products at inference on a CPU: those of float64, whichever library makes them."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from lexrec.kernels import products
from lexrec.kernels.products import ByteProducts, ScoredRows, product

THREADS = [1, 2]
LARGE, SMALL = (170, 64, 64), (3, 5, 7)
"""Rows, width in, width out: above and below what oneDNN is asked for."""


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    ("N", "D", "E"), [LARGE, SMALL, (1, 64, 9001), (129, 100, 333), (4097, 8, 16), (0, 8, 9)]
)
def test_products_are_those_of_float64(N: int, D: int, E: int, has_bias: bool) -> None:
    x_ND, weight_ED, bias_E = torch.randn(N, D), torch.randn(E, D), torch.randn(E) if has_bias else None
    exact_NE = F.linear(x_ND.double(), weight_ED.double(), None if bias_E is None else bias_E.double())
    with torch.no_grad():
        y_NE = product(x_ND, weight_ED, bias_E)
        y_1NE = product(x_ND[None], weight_ED, bias_E)
        of_columns_NE = product(x_ND.T.contiguous().T, weight_ED, bias_E)
    torch.testing.assert_close(y_NE.double(), exact_NE, atol=1e-4, rtol=1e-5)
    assert torch.equal(y_1NE, y_NE[None])
    torch.testing.assert_close(of_columns_NE, y_NE, atol=1e-5, rtol=1e-5)


@pytest.fixture(params=THREADS)
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("n_threads")
@pytest.mark.parametrize("is_laid_out", [False, True])
@pytest.mark.parametrize(("E", "D"), [(12101, 64), (1003, 32), (70, 24)])
def test_scores_depend_on_neither_place_nor_number_of_rows(
    E: int, D: int, is_laid_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_laid_out:
        monkeypatch.setattr(products, "_MOST_LAID_OUT", 0)
    x_ND, weight_ED = torch.randn(85, D), torch.randn(E, D)
    places = [3, E // 3, E - 6, E - 1]
    weight_ED[places] = weight_ED[7].clone()
    rows = ScoredRows(weight_ED)
    with torch.no_grad():
        all_NE = rows.scores(x_ND, 0, E)
        torch.testing.assert_close(all_NE, x_ND @ weight_ED.T, atol=1e-4, rtol=1e-4)
        for n in (*range(1, 14), 63, 64):
            y_NE = rows.scores(x_ND[:n], 0, E)
            assert torch.equal(y_NE, all_NE[:n])
            assert torch.equal(y_NE[:, places], y_NE[:, 7, None].expand(-1, 4))
        torch.testing.assert_close(rows.scores(x_ND, 5, E - 5), all_NE[:, 5:-5], atol=1e-5, rtol=1e-5)
        assert rows.scores(x_ND[:0], 0, E).shape == (0, E)


def test_without_the_operators_pytorch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_has_operator", lambda: False)
    monkeypatch.setattr(products, "_multiplied", None)
    x_ND, weight_ED = torch.randn(200, 64), torch.randn(999, 64)
    with torch.no_grad():
        assert torch.equal(product(x_ND, weight_ED), F.linear(x_ND, weight_ED))
        assert torch.equal(ScoredRows(weight_ED).scores(x_ND, 0, 999), F.linear(x_ND, weight_ED))


def test_few_shapes_are_compiled() -> None:
    assert [products._round(n) for n in (1, 3, 8, 9, 16, 17, 1025, 1792)] == [1, 3, 8, 10, 16, 20, 1280, 1792]
    rounded = {n: products._round(n) for n in range(1, 4097)}
    assert len(set(rounded.values())) == 8 + 4 * 9
    assert all(n <= found < 1.25 * n for n, found in rounded.items())


def test_where_a_gradient_is_asked_for_there_is_one() -> None:
    N, D, E = LARGE
    x_ND, weight_ED = torch.randn(N, D, requires_grad=True), torch.randn(E, D)
    product(x_ND, weight_ED).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(x_ND.grad, weight_ED.sum(0).expand(N, D), atol=1e-4, rtol=1e-4)


def test_autocast_and_transformations_are_left_to_pytorch() -> None:
    N, D, E = LARGE
    x_ND, weight_ED = torch.randn(N, D), torch.randn(E, D)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert product(x_ND, weight_ED).dtype == torch.bfloat16
        each = torch.func.vmap(lambda x_D: product(x_D[None].expand(N, D), weight_ED))(x_ND[:3])
        assert each.shape == (3, N, E)
        assert product(x_ND.double(), weight_ED.double()).dtype == torch.float64


@pytest.fixture(params=[True, False], ids=["one_pass", "several"])
def has_operator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways to products of bytes; one may be missing here."""
    if request.param and not products._multiplies_bytes():
        pytest.skip("this processor or PyTorch has no products of bytes in one pass")
    monkeypatch.setattr(products, "_multiplies_bytes", lambda: request.param)
    return bool(request.param)


@pytest.mark.usefixtures("has_operator")
@pytest.mark.parametrize(("N", "D", "E"), [(1, 64, 512), (7, 64, 1000), (33, 24, 260), (2, 100, 64)])
def test_products_of_bytes_are_exact_but_for_their_last_rounding(N: int, D: int, E: int) -> None:
    x_ND, row_ED = torch.randint(-127, 128, (N, D)), torch.randint(-127, 128, (E, D))
    x_ND[0], row_ED[0], row_ED[1] = 127, 127, -127
    unit = 255 / (127**2 * D**0.5)
    found_NE = ByteProducts(row_ED.to(torch.int8), unit)(x_ND.float())
    assert found_NE.dtype == torch.uint8
    exact_NE = ((x_ND @ row_ED.T).double() * unit).clamp(0, 255)
    assert (found_NE.double() - exact_NE).abs().max() <= 0.5 + 1e-4
    assert found_NE[0, :2].tolist() == [255, 0]
    assert 0 < (found_NE > 0).double().mean() < 1
