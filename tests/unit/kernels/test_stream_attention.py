"""Attention over a stream of histories: values and gradients against each history alone, in float64."""

import pytest
import torch
from torch import Tensor

from lexrec.kernels import stream_attention as module
from lexrec.kernels.stream_attention import Look, places, stream_attention
from tests.unit.kernels.conftest import Interpreted

LENGTHS = [(1,), (5, 1, 7, 20, 3), (9, 20, 1, 17), (16, 16), (50, 2)]
HEADS = [(1, 1, 8), (4, 2, 16), (9, 3, 64)]
"""Of queries, of keys, their width."""
SCALE = 0.3
Case = tuple[Tensor, Tensor, list[Tensor]]


def drawn(lengths: tuple[int, ...], heads: tuple[int, int, int], P: int = 0) -> tuple[Tensor, ...]:
    """Histories, positions and is_token of a stream with gaps and unused slots; q, k, v, keys and values of a
    prefix, and a pull."""
    torch.manual_seed(0)
    history_N = torch.cat([torch.full((n,), 3 * i) for i, n in enumerate((*lengths, 3))])
    is_token_N = torch.rand(len(history_N)) < 0.8
    is_token_N[-3:] = False
    position_N = torch.cat([part.cumsum(0) for part in is_token_N.split([*lengths, 3])]) - 1
    (H, G, K), N = heads, len(history_N)
    sizes = (N, H), (N, G), (N, G), (P, G), (P, G)
    given = (torch.randn(1, n, heads, K).transpose(1, 2) for n, heads in sizes)
    return history_N, position_N.clamp(min=0) + P, is_token_N, *given, torch.randn(1, N, H, K)


def written_out(inputs: tuple[Tensor, ...], reach: int | None) -> list[Tensor]:
    """Slot by slot and head by head."""
    history_N, position_N, is_token_N, *given, pull_1NHK = inputs
    given = [x.detach().double().requires_grad_() for x in given]
    q_1HNK, k_1GNK, v_1GNK, k_1GPK, v_1GPK = given
    H, N, n_shared = q_1HNK.shape[1], len(history_N), q_1HNK.shape[1] // k_1GNK.shape[1]
    rows = []
    for n in range(N):
        looks = [t for t in range(n) if history_N[t] == history_N[n] and is_token_N[t]]
        looks = [t for t in looks if reach is None or position_N[n] - position_N[t] < reach] + [n]
        begun = [p for p in range(k_1GPK.shape[2]) if reach is None or position_N[n] - p < reach]
        heads = []
        for h in range(H):
            g = h // n_shared
            k_TK, v_TK = (
                torch.cat([one[0, g, begun], other[0, g, looks]])
                for one, other in ((k_1GPK, k_1GNK), (v_1GPK, v_1GNK))
            )
            heads.append((k_TK @ q_1HNK[0, h, n] * SCALE).softmax(0) @ v_TK)
        rows.append(torch.stack(heads))
    y_1NHK = torch.stack(rows)[None]
    return [y_1NHK.detach(), *torch.autograd.grad(y_1NHK, given, pull_1NHK.double())]


def found(inputs: tuple[Tensor, ...], reach: int | None, dtype: torch.dtype) -> list[Tensor]:
    *facts, q, k, v, k_1GPK, v_1GPK, pull_1NHK = inputs
    given = [x.detach().to(dtype).requires_grad_() for x in (q, k, v, k_1GPK, v_1GPK)]
    y_1NHK = stream_attention(*given[:3], Look(places(*facts), reach, SCALE), (given[3], given[4]))
    return [y_1NHK.detach(), *torch.autograd.grad(y_1NHK, given, pull_1NHK.to(dtype))]


def error(one: Tensor, true: Tensor) -> float:
    return ((one.double().cpu() - true).norm() / true.norm().clamp(min=1)).item()


def test_places_are_those_of_the_histories() -> None:
    history_N = torch.tensor([4, 4, 0, 7, 7, 7])
    found_4N = places(history_N, torch.arange(6), torch.tensor([True, False, True, True, True, True]))
    assert found_4N.dtype == torch.int32
    assert found_4N[:2].tolist() == [[0, 0, 2, 3, 3, 3], [2, 2, 3, 6, 6, 6]]
    assert places(history_N[:1], history_N[:1], history_N[:1] > 0)[:2].tolist() == [[0], [1]]


@pytest.mark.parametrize(("reach", "P"), [(None, 0), (4, 0), (None, 1), (4, 3)])
def test_plain_arithmetic_is_that_of_each_slot(reach: int | None, P: int) -> None:
    inputs = drawn(LENGTHS[1], HEADS[1], P)
    for one, true in zip(found(inputs, reach, torch.float64), written_out(inputs, reach), strict=True):
        torch.testing.assert_close(one, true)


@pytest.mark.parametrize(
    ("lengths", "heads", "reach", "P"),
    [(lengths, HEADS[1], None, 0) for lengths in LENGTHS]
    + [(LENGTHS[1], heads, 9, 0) for heads in HEADS]
    + [(LENGTHS[1], HEADS[1], None, 1), (LENGTHS[2], HEADS[0], 9, 17)],
)
def test_kernels_give_values_and_gradients(
    lengths: tuple[int, ...],
    heads: tuple[int, int, int],
    reach: int | None,
    P: int,
    interpreted: Interpreted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernels = interpreted("_stream_attention_triton")
    inputs = drawn(lengths, heads, P)
    true = found(inputs, reach, torch.float64)
    monkeypatch.setattr(kernels, "_CELLS", 16 * heads[2])  # several blocks
    monkeypatch.setattr(module, "serves", lambda v_1GNK, P: True)
    for dtype, close in ((torch.float32, 2e-6), (torch.float16, 3e-3)):
        for one, other in zip(found(inputs, reach, dtype), true, strict=True):
            assert one.dtype == dtype
            assert error(one, other) < close


@pytest.mark.gpu
@pytest.mark.parametrize(("reach", "P"), [(None, 0), (9, 1), (None, 20)])
@pytest.mark.parametrize("heads", [*HEADS[1:], (4, 1, 256)])
@pytest.mark.parametrize("lengths", [*LENGTHS[1:4], (7,) * 60, (150, 20)])
def test_a_gpu_gives_values_and_gradients(
    lengths: tuple[int, ...], heads: tuple[int, int, int], reach: int | None, P: int
) -> None:
    inputs = drawn(lengths, heads, P)
    rounded = (*inputs[:3], *(x.bfloat16() for x in inputs[3:]))
    true = found(rounded, reach, torch.float64)
    with torch.autocast("cuda", torch.bfloat16):
        first, again = (found(tuple(x.cuda() for x in rounded), reach, torch.bfloat16) for _ in range(2))
    for one, two, other in zip(first, again, true, strict=True):
        assert error(one, other) < 2e-2
        assert torch.equal(one, two)
