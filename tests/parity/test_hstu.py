"""HSTU against its equations, one pair of positions at a time, in float64; its time buckets by hand."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lexrec.data.batch import Batch, collate
from lexrec.models.hstu import HSTU, HSTUConfig, asked_at, time_buckets
from tests import components
from tests.components import packed

ROWS = [[3, 1, 4, 1, 5, 9, 2, 6], [5], [], [8, 9, 7]]
TIMES = [[10, 10, 75, 900, 901, 5_000, 90_000, 1_000_000], [4], [], [50, 7_000, 7_001]]
TIMES_OR_NONE = pytest.mark.parametrize("times", [TIMES, None], ids=["times", "no-times"])


def build(now: str = "next", encoder: str = "id_embedding", **options: object) -> HSTU:
    torch.manual_seed(0)
    config = HSTUConfig(dim=8, max_len=8, n_heads=2, now=now)
    model = HSTU(config, components.build_encoder(encoder, 8, **options)).eval()
    with torch.no_grad():
        for parameter in [*model.blocks.parameters(), *model.position.parameters()]:
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model


def layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-6).sqrt()


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def by_hand(model: HSTU, items: list[int], times: list[int] | None) -> list[Tensor]:
    """Eq. 1-3 of the paper, one pair of positions and one head at a time."""
    config, n = model.config, len(items)
    d, width = config.dim, config.dim // config.n_heads
    table, position = model.items.embedding.weight, model.position.weight
    x = [math.sqrt(d) * table[item] + position[config.max_len - n + t] for t, item in enumerate(items)]
    for block in model.blocks:
        u, v, q, k = zip(*[silu(block.uvqk.weight @ layer_norm(one)).chunk(4) for one in x], strict=True)
        new = []
        for t in range(n):
            heads = []
            for h in range(config.n_heads):
                at, total = slice(h * width, (h + 1) * width), torch.zeros(width, dtype=torch.float64)
                for s in range(t + 1):
                    logit = q[t][at] @ k[s][at] + block.position_bias[t - s]
                    if times is not None:
                        now = times[t] if config.now == "own" or t == n - 1 else times[t + 1]
                        bucket = int(math.log(max(1, abs(now - times[s]))) / 0.301)
                        logit = logit + block.time_bias[bucket]
                    total = total + silu(logit) / config.max_len * v[s][at]
                heads.append(total)
            gated = u[t] * layer_norm(torch.cat(heads))
            new.append(x[t] + block.out.weight @ gated + block.out.bias)
        x = new
    return x


@pytest.mark.parametrize("now", ["next", "own"])
@TIMES_OR_NONE
def test_hstu_equals_its_equations_and_so_do_gradients(now: str, times: list[list[int]] | None) -> None:
    model, batch = build(now).double(), packed(collate(ROWS, 8, times))
    found_BLD = model(batch).hidden_BLD
    expected = [by_hand(model, row, times and times[b]) for b, row in enumerate(ROWS) if row]
    assert_close(found_BLD[batch.is_item_BL], torch.stack([one for states in expected for one in states]))
    weight_D = torch.randn(8, dtype=torch.float64)
    parameters = list(model.parameters())
    mine = torch.autograd.grad(
        (found_BLD[batch.is_item_BL] @ weight_D).square().sum(), parameters, allow_unused=True
    )
    by_hand_loss = sum(((s @ weight_D) ** 2 for states in expected for s in states), torch.tensor(0.0))
    theirs = torch.autograd.grad(by_hand_loss, parameters, allow_unused=True)
    assert [one is None for one in mine].count(True) == (0 if times else 2), "time biases, one a block"
    for one, other in zip(mine, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_close(one, other)


def test_time_buckets_by_hand() -> None:
    """ln(dt) / .301: 0 for dt <= 1; 2 -> 2.3; 10 -> 7.6; 99 -> 15.3; 109 -> 15.6."""
    time_BL = torch.tensor([[0, 1, 11, 110]])
    own = [[0, 0, 7, 15], [0, 0, 7, 15], [7, 7, 0, 15], [15, 15, 15, 0]]
    assert time_buckets(asked_at(time_BL, "own"), time_BL, 1.0)[0].tolist() == own
    # Position t is asked at the time of event t + 1; the newest at its own.
    assert time_buckets(asked_at(time_BL, "next"), time_BL, 1.0)[0].tolist() == [
        own[1],
        own[2],
        own[3],
        own[3],
    ]


def test_microseconds_are_told_apart_and_scaled_to_seconds() -> None:
    century = 4_000_000_000_000_000
    time_BL = torch.tensor([[century, century + 1, century + 10_000_000]])
    assert time_buckets(asked_at(time_BL, "own"), time_BL, 1.0)[0, 0].tolist() == [
        0,
        0,
        int(math.log(1e7) / 0.301),
    ]
    assert time_buckets(asked_at(time_BL, "own"), time_BL, 1e-6)[0, 0].tolist() == [0, 0, 7]
    assert time_buckets(asked_at(time_BL, "own"), time_BL, 1e30)[0, 0, 1].item() == 128


@TIMES_OR_NONE
def test_neither_padding_nor_packing_nor_a_step_changes_a_state(times: list[list[int]] | None) -> None:
    model = build()
    rows, ages = ROWS[3:], times and times[3:]
    with torch.no_grad():
        wide_BD = model.begin(collate(rows, 8, ages)).hidden_BD
        narrow_BD = model.begin(collate(rows, 3, ages)).hidden_BD
        packed_BD = model.begin(packed(collate(rows, 8, ages))).hidden_BD
        state = model.begin(collate([rows[0][:2]], 8, ages and [ages[0][:2]]))
        time_B = torch.tensor([ages[0][2]]) if ages else None
        stepped_BD = model.step(state, torch.tensor([rows[0][2]]), time_B).hidden_BD
    for other_BD in (narrow_BD, packed_BD, stepped_BD):
        assert_close(other_BD, wide_BD)


@pytest.mark.parametrize(("now", "first"), [("next", 4), ("own", 5)])
def test_a_time_reaches_no_position_that_is_asked_before_it(now: str, first: int) -> None:
    """With now=next the position before the event is asked at its time; none before that."""
    model, batch = build(now), collate(ROWS[:1], 8, TIMES[:1])
    assert batch.time_BL is not None
    later_BL = batch.time_BL.clone()
    later_BL[:, 5:] += 10_000_000
    with torch.no_grad():
        before_LD, after_LD = (
            model(batch).hidden_BLD[0],
            model(batch._replace(time_BL=later_BL)).hidden_BLD[0],
        )
    assert torch.equal(before_LD[:first], after_LD[:first])
    assert not torch.allclose(before_LD[first], after_LD[first])


def test_scores_are_cosines_over_the_temperature() -> None:
    model = build()
    state_D, table = torch.randn(8), model.items.embedding.weight
    found = model.scoring().score(state_D[None])[0]
    cosine = torch.nn.functional.cosine_similarity(state_D[None], table[1 : components.N_ITEMS + 1])
    assert_close(found, cosine / 0.05)


def test_what_is_injected_after_block_0_has_the_scale_of_item_vectors() -> None:
    model = build(encoder="mltfr", inject="after_block0")
    batch: Batch = collate(ROWS[:1], 8)
    with torch.no_grad():
        added_BLD = model.items(batch).after_block0_BLD
        outputs = []
        model.blocks[0].register_forward_hook(lambda _, __, out: outputs.append(out))
        model.blocks[1].register_forward_pre_hook(lambda _, given: outputs.append(given[0]))
        model(batch)
    assert_close(outputs[1] - outputs[0], math.sqrt(8) * added_BLD[0])
