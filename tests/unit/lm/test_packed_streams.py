"""Packed histories never see each other's tokens, blocks or not, and each reads as if it were alone."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lexrec.lm import loading
from lexrec.lm.routing import Route
from lexrec.lm.settings import LmConfig
from lexrec.lm.stream import KeyValues, Reach, Seen, in_rows, packed
from tests.language_models import FAMILIES, N_LAYERS, WIDTH, folder

families = pytest.mark.parametrize("family", FAMILIES)
LENGTHS = (5, 1, 7, 3, 7, 2, 6)


def load(family: str = "llama", **options: object) -> loading.LanguageModel:
    return loading.load(LmConfig(model=str(folder(family)), **options))


def histories(lengths: Sequence[int] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, WIDTH, generator=generator) for length in lengths]


def one_row(parts: list[Tensor], n_unused: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Vectors, histories, positions and is_token of all parts in one row, with unused slots behind."""
    unused = torch.zeros(n_unused, WIDTH)
    x_1NW = torch.cat([*parts, unused])[None]
    history_N = torch.cat([torch.full((len(p),), i) for i, p in enumerate([*parts, unused])])
    position_N = torch.cat([torch.arange(len(p)) for p in [*parts, unused]])
    is_token_N = torch.arange(x_1NW.shape[1]) < sum(len(p) for p in parts)
    return x_1NW, history_N, position_N, is_token_N


@families
@pytest.mark.parametrize("longest", [7, 9, 50])
@torch.no_grad()
def test_packed_equals_each_alone_as_the_family_itself_reads_it(family: str, longest: int) -> None:
    lm, parts = load(family), histories()
    x_1NW, *facts = one_row(parts)
    stream = packed(*facts, longest, Reach(None, lm.window))
    # Nobody looks at nothing, not even what is no token: some kernels make NaN of that.
    assert all(mask.any(-1).all() for mask in stream.masks.values())
    together_1NW = lm.decode(x_1NW, stream)
    alone_NW = torch.cat([lm.decoder(inputs_embeds=part[None], use_cache=False)[0][0] for part in parts])
    assert_close(together_1NW[0, : len(alone_NW)], alone_NW, atol=1e-5, rtol=1e-4)


@families
@pytest.mark.parametrize("lengths", [LENGTHS, (30, 160, 7, 159, 101)])
def test_gradients_are_those_of_each_alone(family: str, lengths: Sequence[int]) -> None:
    lm, parts = load(family), [part.requires_grad_() for part in histories(lengths)]
    x_1NW, *facts = one_row(parts)
    assert max(lengths) < x_1NW.shape[1] // 2, "in blocks"
    asked_NW = torch.randn(sum(lengths), WIDTH, generator=torch.Generator().manual_seed(1))
    together_1NW = lm.decode(x_1NW, packed(*facts, max(lengths), Reach(None, lm.window)))
    together = torch.autograd.grad((together_1NW[0, : len(asked_NW)] * asked_NW).sum(), parts)
    alone_NW = torch.cat([lm.decoder(inputs_embeds=part[None], use_cache=False)[0][0] for part in parts])
    alone = torch.autograd.grad((alone_NW * asked_NW).sum(), parts)
    for ours, theirs in zip(together, alone, strict=True):
        assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@families
@torch.no_grad()
def test_long_histories_are_cut_into_parts_and_read_alike(family: str) -> None:
    lm, parts = load(family), histories((30, 160, 7, 159, 101))
    x_1NW, *facts = one_row(parts)
    stream = packed(*facts, 160, Reach(None, lm.window))
    assert stream.masks[None].shape == (12, 1, 40, 200)
    together_1NW = lm.decode(x_1NW, stream)
    alone_NW = torch.cat([lm.decoder(inputs_embeds=part[None], use_cache=False)[0][0] for part in parts])
    assert_close(together_1NW[0, : len(alone_NW)], alone_NW, atol=1e-5, rtol=1e-4)


@families
@torch.no_grad()
def test_a_history_does_not_feel_its_neighbours(family: str) -> None:
    lm, parts = load(family), histories()
    x_1NW, *facts = one_row(parts)
    stream = packed(*facts, 7, Reach(None, lm.window))
    before_1NW = lm.decode(x_1NW, stream)
    changed_1NW = x_1NW.clone()
    changed_1NW[0, 6:13] += 1  # the third history
    after_1NW = lm.decode(changed_1NW, stream)
    is_changed_N = (before_1NW - after_1NW).abs().amax(-1)[0] > 1e-6
    assert torch.equal(is_changed_N.nonzero()[:, 0], torch.arange(6, 13))


@torch.no_grad()
def test_what_is_no_token_is_seen_by_nobody() -> None:
    lm, (part, *_) = load(), histories()
    with_hole = torch.cat([part[:2], torch.ones(2, WIDTH), part[2:]])
    is_token_N = torch.tensor([True, True, False, False, True, True, True])
    position_N = torch.tensor([0, 1, 2, 3, 2, 3, 4])
    history_N = torch.zeros(7, dtype=torch.int64)
    holed_1NW = lm.decode(with_hole[None], packed(history_N, position_N, is_token_N, 7, Reach()))
    whole_1NW = lm.decode(part[None], packed(*one_row([part], 0)[1:], 5, Reach()))
    assert_close(holed_1NW[:, is_token_N], whole_1NW)


@pytest.mark.parametrize("longest", [7, 50])
@torch.no_grad()
def test_a_budget_of_tokens_is_how_far_a_token_looks(longest: int) -> None:
    lm = load()
    x_1NW, *facts = one_row(histories())
    stream = packed(*facts, longest, Reach(tokens=3))
    changed_1NW = x_1NW.clone()
    changed_1NW[0, 6] += 1  # the first token of the third history, of 7
    first_layer = lm.layers[0]
    seen: list[Tensor] = []
    first_layer.register_forward_hook(lambda _, __, out: seen.append(out))
    lm.decode(x_1NW, stream)
    lm.decode(changed_1NW, stream)
    is_changed_N = (seen[0] - seen[1]).abs().amax(-1)[0] > 0
    assert torch.equal(is_changed_N.nonzero()[:, 0], torch.tensor([6, 7, 8]))


@families
@torch.no_grad()
def test_rows_with_a_cache_equal_rows_read_whole(family: str) -> None:
    lm = load(family)
    reach = Reach(None, lm.window)
    x_BSW = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(1))
    is_token_BS = torch.ones(2, 9, dtype=torch.bool)
    is_token_BS[1, :3] = False  # left-padded
    position_BS = (is_token_BS.cumsum(1) - 1).clamp(min=0)
    nothing = Seen.nothing(position_BS[:, :0])
    whole_BSW = lm.decode(x_BSW, in_rows(position_BS, is_token_BS, nothing, reach))
    seen, states = nothing, []
    for first, last in ((0, 5), (5, 6), (6, 9)):
        cache = KeyValues(seen.keys_values, N_LAYERS)
        position, is_token = position_BS[:, first:last], is_token_BS[:, first:last]
        states.append(lm.decode(x_BSW[:, first:last], in_rows(position, is_token, seen, reach), cache))
        seen = seen.with_(cache, position, is_token)
    assert seen.length_B1.flatten().tolist() == [9, 6]
    assert_close(torch.cat(states, 1)[is_token_BS], whole_BSW[is_token_BS])


def test_each_token_passes_its_own_expert_once() -> None:
    route = Route.strided(3, 2, torch.device("cpu"))
    x_1NW = torch.arange(9.0)[None, :, None]
    asked: dict[str, list[float]] = {}

    def expert(name: str, sign: int):
        def run(x_MW: Tensor) -> Tensor:
            asked[name] = x_MW.flatten().tolist()
            return sign * x_MW

        return run

    y_1NW = route.apply(x_1NW, expert("item", -1), expert("text", 1))
    assert asked == {"item": [0.0, 3.0, 6.0], "text": [1.0, 2.0, 4.0, 5.0, 7.0, 8.0]}
    assert y_1NW.flatten().tolist() == [0, 1, 2, -3, 4, 5, -6, 7, 8]
    x_1NW.requires_grad_()
    wanted_1NW = torch.arange(1.0, 10)[None, :, None]
    y_1NW = route.apply(x_1NW, expert("item", -1), expert("text", 1))
    (slope_1NW,) = torch.autograd.grad((y_1NW * wanted_1NW).sum(), x_1NW)
    assert slope_1NW.flatten().tolist() == [-1, 2, 3, -4, 5, 6, -7, 8, 9]


def test_without_texts_the_text_expert_is_not_run() -> None:
    def never(_: Tensor) -> Tensor:
        raise AssertionError("run")

    x_1NW = torch.ones(1, 4, 2)
    assert torch.equal(
        Route.strided(4, 0, torch.device("cpu")).apply(x_1NW, lambda x: 2 * x, never), 2 * x_1NW
    )
