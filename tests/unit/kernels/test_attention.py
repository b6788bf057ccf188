"""Attention over packed rows: each way to compute it against a plain loop over rows in float64."""

import pytest
import torch
from torch import Tensor

from lexrec.kernels.attention import PackedRows, packed_attention
from tests.unit.kernels.conftest import Interpreted

LENGTHS = (5, 0, 50, 1, 33)
N_SLOTS = 96
"""More than the items of all rows: the last ones are unused."""


def rows_of(*lengths: int, causal: bool, device: str = "cpu") -> PackedRows:
    length_B = torch.tensor(lengths, device=device)
    return PackedRows(length_B, max(lengths), causal)


def by_loop(qkv_NM: Tensor, rows: PackedRows, n_heads: int, factor: list[Tensor] | None = None) -> Tensor:
    """`factor` multiplies each row's weights, [H, L, L]."""
    D = qkv_NM.shape[1] // 3
    out_ND = qkv_NM.new_zeros(len(qkv_NM), D)
    for b, (start, length) in enumerate(zip(rows.start_B.tolist(), rows.length_B.tolist(), strict=True)):
        if length == 0:
            continue
        row_NM = qkv_NM[start : start + length].view(length, 3, n_heads, D // n_heads)
        q_HLK, k_HLK, v_HLK = row_NM.permute(1, 2, 0, 3)
        score_HLL = q_HLK @ k_HLK.transpose(1, 2) / (D // n_heads) ** 0.5
        if rows.causal:
            later_LL = torch.ones(length, length, dtype=torch.bool, device=qkv_NM.device).triu(1)
            score_HLL = score_HLL.masked_fill(later_LL, -torch.inf)
        weight_HLL = score_HLL.softmax(-1) * (1 if factor is None else factor[b])
        out_ND[start : start + length] = (weight_HLL @ v_HLK).transpose(0, 1).flatten(1)
    return out_ND


def hold(attend, rows: PackedRows, n_heads: int, D: int, tolerance: float, dtype=torch.float32) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(D)
    device = rows.start_B.device
    qkv_NM = torch.randn(N_SLOTS, 3 * D, device=device).to(dtype).requires_grad_()
    grad_ND = torch.randn(N_SLOTS, D, device=device).to(dtype)
    exact_NM = qkv_NM.detach().double().requires_grad_()
    y_ND, expected_ND = attend(qkv_NM, rows, n_heads, 0.0), by_loop(exact_NM, rows, n_heads)
    y_ND.backward(grad_ND)
    expected_ND.backward(grad_ND.double())
    for found, expected in ((y_ND, expected_ND), (qkv_NM.grad, exact_NM.grad)):
        assert (found.double() - expected).norm() / expected.norm() < tolerance
    assert (y_ND[int(rows.length_B.sum()) :] == 0).all()


SHAPES = [(2, 64), (1, 16), (4, 24)]
"""Heads, width."""


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n_heads", "D"), SHAPES)
def test_rows_side_by_side(n_heads: int, D: int, causal: bool) -> None:
    hold(packed_attention, rows_of(*LENGTHS, causal=causal), n_heads, D, 1e-6)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n_heads", "D"), SHAPES)
def test_kernels(n_heads: int, D: int, causal: bool, interpreted: Interpreted) -> None:
    attend = interpreted("_attention_triton").packed_attention
    hold(attend, rows_of(*LENGTHS, causal=causal), n_heads, D, 1e-6)


def test_what_fits_a_tile(interpreted: Interpreted) -> None:
    fits = interpreted("_attention_triton").fits
    assert fits(128, 64, torch.bfloat16)
    assert fits(50, 128, torch.bfloat16)
    assert not fits(129, 32, torch.bfloat16)
    assert not fits(100, 128, torch.bfloat16)
    assert not fits(50, 256, torch.bfloat16)
    assert not fits(50, 32, torch.float32)


def test_dropout_drops_the_same_weights_both_ways(interpreted: Interpreted) -> None:
    """Values that are unit vectors show each weight; with what was kept, gradients are those of the loop."""
    attend = interpreted("_attention_triton").packed_attention
    n_heads, width, drop = 2, 16, 0.3
    rows = rows_of(16, 16, 9, causal=False)
    N, D = 48, n_heads * width
    qkv_NM, grad_ND = torch.randn(N, 3 * D).requires_grad_(), torch.randn(N, D)
    seen_NM = qkv_NM.detach().clone()
    for start, length in zip(rows.start_B.tolist(), rows.length_B.tolist(), strict=True):
        seen_NM[start : start + length, 2 * D :] = torch.eye(width)[:length].repeat(1, n_heads)
    torch.manual_seed(7)
    weight_ND = attend(seen_NM, rows, n_heads, drop)
    factor = [
        (weight_ND[start : start + length].view(length, n_heads, width).transpose(0, 1)[..., :length] > 0)
        / (1 - drop)
        for start, length in zip(rows.start_B.tolist(), rows.length_B.tolist(), strict=True)
    ]
    torch.manual_seed(7)
    y_ND = attend(qkv_NM, rows, n_heads, drop)
    exact_NM = qkv_NM.detach().double().requires_grad_()
    expected_ND = by_loop(exact_NM, rows, n_heads, factor)
    y_ND.backward(grad_ND)
    expected_ND.backward(grad_ND.double())
    torch.testing.assert_close(y_ND.double(), expected_ND, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(qkv_NM.grad.double(), exact_NM.grad, rtol=1e-5, atol=1e-5)  # type: ignore[union-attr]
    assert not torch.equal(attend(qkv_NM, rows, n_heads, drop), y_ND)


def test_dropout_tosses_fair_and_independent_coins(interpreted: Interpreted) -> None:
    attend = interpreted("_attention_triton").packed_attention
    rows, width, drop = rows_of(*[64] * 4, causal=False), 64, 0.3
    qkv_NM = torch.zeros(256, 3 * 2 * width)
    qkv_NM[:, 4 * width :] = torch.eye(64).repeat(4, 2)
    torch.manual_seed(0)
    keeps = [attend(qkv_NM, rows, 2, drop).view(4, 64, 2, 64).transpose(1, 2) > 0 for _ in range(2)]
    n = keeps[0].numel()
    pairs = {
        "calls": keeps[0] & keeps[1],
        "rows": keeps[0] & keeps[0].roll(1, 0),
        "heads": keeps[0] & keeps[0].roll(1, 1),
        "queries": keeps[0] & keeps[0].roll(1, 2),
        "keys": keeps[0] & keeps[0].roll(1, 3),
    }
    assert abs(keeps[0].float().mean().item() - 0.7) < 4 * (0.21 / n) ** 0.5
    for name, both in pairs.items():
        assert abs(both.float().mean().item() - 0.49) < 6 * (0.25 / n) ** 0.5, name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n_heads", "D"), [*SHAPES, (1, 256)])
def test_a_gpu(n_heads: int, D: int, causal: bool, dtype: torch.dtype) -> None:
    rows = rows_of(*LENGTHS, causal=causal, device="cuda")
    hold(packed_attention, rows, n_heads, D, 2e-2 if dtype == torch.bfloat16 else 1e-5, dtype)
