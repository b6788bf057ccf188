"""What every backbone, item encoder and objective obeys. A new file inherits these tests."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from lexrec import registry
from lexrec.data.batch import Batch, collate
from lexrec.errors import ConfigError
from lexrec.evaluation.ranks import Aside, target_ranks
from lexrec.evaluation.scorer import ModelScorer
from lexrec.models.base import SequenceModel
from lexrec.training.step import Step
from tests import components
from tests.components import ENCODERS, MAX_LEN, MODELS, N_ITEMS, OBJECTIVES, build, cycles, packed, ragged

pairs = pytest.mark.parametrize(("model", "encoder"), [(m, e) for m in MODELS for e in ENCODERS])


def hidden(model: SequenceModel, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model(batch).hidden_BLD


@pytest.mark.parametrize("kind", ["models", "item_encoders", "objectives", "baselines"])
def test_the_file_is_the_registration(kind: str) -> None:
    for name in registry.names(kind):
        assert registry.config_class(registry.load(kind, name))().name == name


def learns(model: str, encoder: str, objective: str, **options: object) -> None:
    """Train on cycles until the next item of each is ranked first."""
    # Cloze has one or two targets a row and rests on plateaus for hundreds of steps: whether a fast rate gets
    # past them is chance.
    tries = ((1e-2, 300), (3e-3, 800)) if objective == "cloze" else ((1e-2, 150), (1e-2, 300))
    assert any(share_learnt(model, encoder, objective, *how, **options) > 0.95 for how in tries)


def share_learnt(
    model: str, encoder: str, objective: str, lr: float, n_steps: int, **options: object
) -> float:
    """Share of users whose next item is ranked first after training on cycles."""
    trained, goal = build(model, encoder), components.build_objective(objective, **options)
    try:
        step = Step(trained, goal)
    except ConfigError:
        pytest.skip(f"{objective} refuses {model} + {encoder}")
    batch, generator = cycles(length=MAX_LEN + goal.extra_events), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(step.parameters(), lr=lr)
    step.train()
    for _ in range(n_steps):
        loss = step(batch, goal.prepare(batch, generator))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    newest_BL = batch.item_BL[:, -MAX_LEN:]
    scorer = ModelScorer(trained)
    query = scorer.encode(batch._replace(item_BL=newest_BL, length_B=(newest_BL > 0).sum(1)))
    target_B = newest_BL[:, -1] % N_ITEMS + 1
    return float((target_ranks(scorer, query, target_B, Aside.of()) == 1).float().mean())


def lessons() -> list[tuple[str, str, str]]:
    """Who learns what: every backbone under every objective, two under every encoder, all with MLTFR.

    A language model takes ten times as long, and is asked for what its recipes train.
    """
    found = [(m, "id_embedding", o) for m in MODELS for o in OBJECTIVES if m != "idiomoe"]
    found += [("idiomoe", "id_embedding", "next_item")]
    found += [(m, e, o) for m in ("sasrec", "bert4rec") for e in ENCODERS for o in OBJECTIVES]
    found += [(m, "mltfr", "last_item") for m in MODELS if m != "idiomoe"]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(("model", "encoder", "objective"), lessons())
def test_learns_the_cycle(model: str, encoder: str, objective: str) -> None:
    learns(model, encoder, objective)


@pytest.mark.parametrize("objective", ["next_item", "last_item"])
@pytest.mark.parametrize("loss", ["sampled_softmax", "bce", "gbce"])
def test_every_loss_learns_the_cycle(loss: str, objective: str) -> None:
    learns("sasrec", "id_embedding", objective, loss=loss, n_negatives=4)


@pairs
def test_a_causal_model_never_sees_a_later_item(model: str, encoder: str) -> None:
    built = build(model, encoder)
    if not built.is_causal:
        pytest.skip(f"{model} + {encoder} declares that it is not causal")
    batch = collate([[1, 2, 3, 4, 5, 6, 7, 8], [9, 8, 7]], MAX_LEN)
    changed_BL = batch.item_BL.clone()
    changed_BL[:, 6:] = 12
    before, after = hidden(built, batch), hidden(built, batch._replace(item_BL=changed_BL))
    assert torch.equal(before[0, :6], after[0, :6])
    assert torch.equal(before[1, 5:6], after[1, 5:6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


@pairs
def test_a_model_that_is_not_causal_says_so(model: str, encoder: str) -> None:
    built = build(model, encoder)
    if built.is_causal:
        pytest.skip(f"{model} + {encoder} is causal")
    batch = collate([[1, 2, 3, 4, 5, 6, 7, 8]], MAX_LEN)
    changed_BL = batch.item_BL.clone()
    changed_BL[:, 6:] = 12
    changed = hidden(built, batch._replace(item_BL=changed_BL))
    assert not torch.allclose(hidden(built, batch)[0, :6], changed[0, :6], atol=1e-6)


@pairs
def test_one_users_history_changes_no_other_users_output(model: str, encoder: str) -> None:
    built, batch = build(model, encoder), ragged()
    changed_BL = batch.item_BL.clone()
    changed_BL[0] = 12
    before, after = hidden(built, batch), hidden(built, batch._replace(item_BL=changed_BL))
    assert_close(before[1:], after[1:])
    assert not torch.allclose(before[0], after[0])


@pairs
def test_packing_changes_nothing(model: str, encoder: str) -> None:
    built, batch = build(model, encoder), ragged()
    is_item_BL = batch.is_item_BL
    assert_close(hidden(built, packed(batch))[is_item_BL], hidden(built, batch)[is_item_BL])


@pairs
def test_more_padding_changes_nothing(model: str, encoder: str) -> None:
    built = build(model, encoder)
    if built.layout == "fixed":
        pytest.skip(f"{model} needs rows of max_len")
    short = hidden(built, collate([[1, 2, 3]], 3))[:, -1]
    assert_close(short, hidden(built, collate([[1, 2, 3]], MAX_LEN))[:, -1])


@pytest.mark.parametrize("objective", OBJECTIVES)
@pairs
def test_gradients_are_finite_with_empty_and_one_item_histories(
    model: str, encoder: str, objective: str
) -> None:
    goal = components.build_objective(objective)
    try:
        step = Step(build(model, encoder).train(), goal)
    except ConfigError:
        pytest.skip(f"{objective} refuses {model} + {encoder}")
    batch = collate([[], [4], [1, 2, 3], [5, 6]], MAX_LEN + goal.extra_events)
    losses = step(batch, goal.prepare(batch, torch.Generator().manual_seed(0)))
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    assert losses["loss"] > 0
    for name, parameter in step.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("objective", OBJECTIVES)
@pairs
def test_a_batch_without_targets_costs_nothing(model: str, encoder: str, objective: str) -> None:
    goal = components.build_objective(objective)
    try:
        step = Step(build(model, encoder), goal)
    except ConfigError:
        pytest.skip(f"{objective} refuses {model} + {encoder}")
    # An objective that finds its targets inside the window can ask for a lone event too.
    histories = [[], [4]] if goal.extra_events else [[], []]
    batch = collate(histories, MAX_LEN + goal.extra_events)
    assert step(batch, goal.prepare(batch, torch.Generator().manual_seed(0)))["loss"] == 0


@pairs
def test_step_equals_reading_the_longer_history(model: str, encoder: str) -> None:
    built = build(model, encoder)
    with torch.no_grad():
        state = built.begin(collate([[1, 2, 3], [5, 6, 7, 8, 9, 10, 11, 12]], MAX_LEN))
        for item_B in (torch.tensor([4, 1]), torch.tensor([5, 2])):
            state = built.step(state, item_B)
        rows = [[1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 10, 11, 12, 1, 2]]
        whole = built.begin(collate(rows, MAX_LEN))
    assert_close(state.hidden_BD, whole.hidden_BD)
    assert torch.equal(state.batch.length_B, whole.batch.length_B)


@pairs
def test_step_lengthens_a_row_that_is_not_full(model: str, encoder: str) -> None:
    built = build(model, encoder)
    if built.layout == "fixed":
        pytest.skip(f"{model} needs rows of max_len")
    with torch.no_grad():
        state = built.step(built.begin(collate([[1, 2, 3]], 3)), torch.tensor([4]))
        whole = built.begin(collate([[1, 2, 3, 4]], MAX_LEN))
    assert_close(state.hidden_BD, whole.hidden_BD)


@pairs
def test_freezing_changes_nothing_and_training_thaws(model: str, encoder: str) -> None:
    built, batch = build(model, encoder), ragged()
    is_item_BL = batch.is_item_BL
    plain = hidden(built, batch)
    assert_close(hidden(built.freeze(), batch)[is_item_BL], plain[is_item_BL])
    built.train()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    built.eval()
    changed = hidden(built, batch)
    assert not torch.allclose(changed[is_item_BL], plain[is_item_BL])
    assert_close(hidden(built.freeze(), batch)[is_item_BL], changed[is_item_BL])


@pairs
def test_scores_come_alike_whole_by_block_and_by_item(model: str, encoder: str) -> None:
    table = build(model, encoder).scoring()
    state_ND = torch.randn(5, components.DIM)
    whole_NI = table.score(state_ND)
    blocks = [table.score(state_ND, *ends) for ends in ((1, 6), (6, 7), (7, N_ITEMS + 1))]
    item_NK = torch.arange(1, N_ITEMS + 1).expand(5, -1)
    assert whole_NI.shape == (5, N_ITEMS)
    assert_close(torch.cat(blocks, dim=1), whole_NI)
    assert_close(table.score_items(state_ND, item_NK), whole_NI)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_padding_has_no_vector(encoder: str) -> None:
    torch.manual_seed(0)
    built, batch = components.build_encoder(encoder).eval(), ragged()
    with torch.no_grad():
        x_BLD = built(batch).x_BLD
    assert (x_BLD[~batch.is_item_BL] == 0).all()
    assert (x_BLD[batch.is_item_BL].abs().sum(-1) > 0).all()
    assert (built.lookup(torch.tensor([0])) == 0).all()


@pairs
def test_evaluation_has_no_chance_in_it(model: str, encoder: str) -> None:
    built, batch = build(model, encoder), ragged()
    assert torch.equal(hidden(built, batch), hidden(built, batch))


def test_next_item_refuses_a_model_that_sees_the_future() -> None:
    leaky = build("sasrec", "mltfr", interest="sequence")
    assert leaky.causal
    assert not leaky.is_causal
    with pytest.raises(ConfigError, match="Mltfr lets a position see later ones"):
        Step(leaky, components.build_objective("next_item"))
    Step(leaky, components.build_objective("next_item", allow_leak=True))
    Step(leaky, components.build_objective("last_item"))


def test_recipes_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEXREC_CACHE", str(tmp_path))  # where texts' states are kept
    from lexrec.config import RunConfig, load_recipe, recipe_names
    from lexrec.item_encoders.base import Catalogue
    from lexrec.models import build_model, model_width

    for name in recipe_names():
        config = load_recipe(name)
        if not isinstance(config, RunConfig):
            registry.load("baselines", config.baseline.name)
            continue
        config = components.with_tiny_lm(config)
        tables = tuple(components.table(n, 60, 256) for n in config.item_encoder.table_names)
        model = build_model(config, Catalogue(N_ITEMS, model_width(config), tables, components.item_table()))
        goal = registry.load("objectives", config.objective.name)(config.objective, N_ITEMS)
        batch = collate([[1, 2, 3, 4]], model.max_len + goal.extra_events)
        step = Step(model, goal)
        assert step(batch, goal.prepare(batch, torch.Generator()))["loss"] > 0
