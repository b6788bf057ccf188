"""Cloze: which items are masked, what is asked for, and whom it can train."""

import pytest
import torch
from torch.testing import assert_close

from lexrec.config import load_recipe
from lexrec.data.batch import Batch, collate
from lexrec.errors import ConfigError
from lexrec.models.base import SequenceModel
from lexrec.models.bert4rec import BERT4Rec
from lexrec.objectives._losses import LossConfig, mean_loss
from lexrec.objectives.base import Targets
from lexrec.training.step import Step
from tests.components import MAX_LEN, N_ITEMS, build, build_objective

MASK = N_ITEMS + 1


def rows_of(*lengths: int) -> Batch:
    return collate([[(u + t) % N_ITEMS + 1 for t in range(n)] for u, n in enumerate(lengths)], MAX_LEN)


def prepare(batch: Batch, seed: int = 0, **options: object) -> Targets:
    return build_objective("cloze", **options).prepare(batch, torch.Generator().manual_seed(seed))


def test_of_each_row_its_share_is_masked_and_one_item_at_least() -> None:
    batch = rows_of(0, 1, 2, 3, 5, 8)
    inputs = prepare(batch, mask_rate=0.4, mask_last=0).inputs
    is_masked_BL = inputs.item_BL == MASK
    assert is_masked_BL.sum(1).tolist() == [0, 1, 1, 1, 2, 3]
    assert torch.equal(inputs.item_BL[~is_masked_BL], batch.item_BL[~is_masked_BL])
    assert (batch.item_BL[is_masked_BL] > 0).all()


@pytest.mark.parametrize("mask_last", [0.0, 0.5, 1.0])
def test_targets_are_the_items_that_were_masked(mask_last: float) -> None:
    batch = rows_of(0, 1, 2, 3, 5, 8)
    made = prepare(batch, mask_rate=0.4, mask_last=mask_last)
    inputs, position_N, target_N, weight_N = made[:4]
    is_used_N = weight_N == 1
    used = position_N[is_used_N]
    assert used.tolist() == (inputs.item_BL.flatten() == MASK).nonzero()[:, 0].tolist()
    assert torch.equal(target_N[is_used_N], batch.item_BL.flatten()[used])
    assert (position_N[~is_used_N] == batch.item_BL.numel()).all()
    assert (target_N[~is_used_N] == 1).all()
    assert (weight_N[~is_used_N] == 0).all()
    assert made.negative_NK is None


def test_a_share_of_rows_asks_for_the_newest_item_alone() -> None:
    batch = rows_of(0, 1, 2, 8)
    assert prepare(batch, mask_last=1).inputs.item_BL.tolist() == [
        [0] * 8,
        [0] * 7 + [MASK],
        [0] * 6 + [3, MASK],
        [*batch.item_BL[3, :7].tolist(), MASK],
    ]
    many = prepare(rows_of(*[8] * 2000), mask_rate=0.5, mask_last=0.3).inputs.item_BL == MASK
    is_last_B = many.sum(1) == 1
    assert many[is_last_B, -1].all()
    assert (many[~is_last_B].sum(1) == 4).all()
    # Five standard deviations of a share of .3 among 2,000.
    assert abs(is_last_B.float().mean() - 0.3) < 0.052


def test_every_position_is_masked_equally_often() -> None:
    is_masked_BL = prepare(rows_of(*[6] * 3000), mask_rate=0.5, mask_last=0).inputs.item_BL == MASK
    assert (is_masked_BL[:, :2] == 0).all()
    assert ((is_masked_BL[:, 2:].float().mean(0) - 0.5).abs() < 0.046).all()


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.6, 0.99])
@pytest.mark.parametrize(
    "lengths", [(1, 1, 1, 1), (8, 8, 8), (0, 1, 2, 3, 4, 5, 6, 7, 8), (3,), (0, 0)], ids=str
)
@pytest.mark.parametrize("mask_last", [0.0, 1.0])
def test_no_target_is_lost_and_shapes_are_static(
    rate: float, lengths: tuple[int, ...], mask_last: float
) -> None:
    batch = rows_of(*lengths)
    for capacity in (int(batch.length_B.sum()), None):
        made = prepare(batch._replace(capacity=capacity), mask_rate=rate, mask_last=mask_last)
        assert made.weight_N.sum() == (made.inputs.item_BL == MASK).sum()
        slots = capacity if capacity is not None else batch.item_BL.numel()
        assert len(made.inputs.slot_N) == slots
        assert (made.inputs.slot_N < batch.item_BL.numel()).sum() == batch.length_B.sum()
        assert made.position_N.shape == made.target_N.shape == made.weight_N.shape
        emptied = batch._replace(item_BL=batch.item_BL * 0, capacity=capacity)
        assert len(prepare(emptied, mask_rate=rate).weight_N) == len(made.weight_N)
        assert len(made.weight_N) <= rate * slots + len(lengths) + 1


def test_every_draw_comes_from_the_generator() -> None:
    batch, options = rows_of(*[8] * 20), {"loss": "bce", "n_negatives": 3}
    before = torch.get_rng_state()
    one, again, other = (prepare(batch, seed, **options) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.inputs.item_BL, again.inputs.item_BL)
    assert torch.equal(one.negative_NK, again.negative_NK)
    assert not torch.equal(one.inputs.item_BL, other.inputs.item_BL)
    assert (one.negative_NK != one.target_N[:, None]).all()
    assert one.negative_NK.min() >= 1
    assert one.negative_NK.max() <= N_ITEMS


def test_times_and_lengths_stay() -> None:
    batch = collate([[1, 2, 3], [4]], MAX_LEN, [[10, 20, 30], [40]])._replace(capacity=5)
    inputs = prepare(batch).inputs
    assert torch.equal(inputs.time_BL, batch.time_BL)
    assert torch.equal(inputs.length_B, batch.length_B)
    assert inputs.capacity is None


@pytest.mark.parametrize("loss", ["ce", "sampled_softmax", "bce", "gbce"])
def test_the_loss_is_the_mean_over_masked_items(loss: str) -> None:
    options = {"loss": loss, "n_negatives": 4, "mask_rate": 0.5, "mask_last": 0.2}
    model, goal, batch = build("bert4rec"), build_objective("cloze", **options), rows_of(0, 1, 5, 8)
    made = goal.prepare(batch, torch.Generator().manual_seed(3))
    found = goal.loss(model, batch, made)
    assert set(found) == {"loss", loss}
    hidden_BLD, one_by_one = model(made.inputs._replace(slot_N=None)).hidden_BLD, []
    for i in (made.weight_N > 0).nonzero()[:, 0].tolist():
        row, place = divmod(int(made.position_N[i]), MAX_LEN)
        assert made.inputs.item_BL[row, place] == MASK
        negative = None if made.negative_NK is None else made.negative_NK[i : i + 1]
        alone = made._replace(target_N=batch.item_BL[row, place][None], negative_NK=negative)
        given = LossConfig(loss=loss, n_negatives=4)
        alone = alone._replace(weight_N=torch.ones(1))
        one_by_one.append(mean_loss(hidden_BLD[row, place][None], model.scoring(), alone, given))
    assert_close(found["loss"], torch.stack(one_by_one).mean())


@pytest.mark.parametrize("interest", ["prefix", "sequence"])
def test_token_tables_are_chosen_by_what_is_not_masked(interest: str) -> None:
    model = build("bert4rec", "mltfr", interest=interest).train()
    step, batch = Step(model, build_objective("cloze")), rows_of(0, 1, 2, 8)
    step(batch, prepare(batch))["loss"].backward()
    for expert in model.items.experts:
        assert expert.align.weight.grad.isfinite().all()
        assert expert.align.weight.grad.abs().max() > 0
    # Moving the vector of [MASK] moves no interest: what is chosen stays the same.
    model.eval()
    with torch.no_grad():
        row = collate([[1, MASK, 2, MASK, 3]], MAX_LEN)
        chosen = model.items.inspect(row)
        model.items.items.embedding.weight[MASK] += 5.0
        again = model.items.inspect(row)
    for one, other in zip(chosen, again, strict=True):
        assert torch.equal(one.token_BK, other.token_BK)
        assert_close(one.weight_BK, other.weight_BK)


class NewestReader(BERT4Rec):
    """Bidirectional, and read at the newest item, as the models that filter frequencies are."""

    reads_mask = False
    encode_next = SequenceModel.encode_next


def test_models_that_cloze_cannot_train_are_refused() -> None:
    goal = build_objective("cloze")
    for encoder in ("id_embedding", "mltfr"):
        with pytest.raises(ConfigError) as refused:
            Step(build("sasrec", encoder), goal)
        assert str(refused.value) == (
            "objective cloze trains the states of masked items, and SASRec is causal: at a masked item it "
            "cannot see what follows; use objective.name=next_item or last_item"
        )
    bert = build("bert4rec")
    with pytest.raises(ConfigError) as refused:
        Step(NewestReader(bert.config, bert.items), goal)
    assert str(refused.value) == (
        "objective cloze trains the states of masked items, and NewestReader reads the next item at the "
        "newest one and puts no [MASK] after it; use objective.name=last_item"
    )
    with pytest.raises(ConfigError, match="BERT4Rec lets a position see later ones"):
        Step(bert, build_objective("next_item"))
    for fits in ("cloze", "last_item"):
        Step(bert, build_objective(fits))


@pytest.mark.parametrize("override", ["mask_rate=0", "mask_rate=1", "mask_last=-0.1", "mask_last=1.5"])
def test_shares_out_of_range_are_named(override: str) -> None:
    with pytest.raises(ConfigError, match=rf"objective\.{override.split('=')[0]}: "):
        load_recipe("bert4rec", [f"objective.{override}"])
