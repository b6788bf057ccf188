"""What every backbone promises beyond its shapes: a step that can be captured, and no part without use."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from lexrec.data.batch import Batch, collate
from lexrec.errors import ConfigError
from lexrec.models import _layers
from lexrec.models.base import Encoded, SequenceModel
from lexrec.training.step import Step
from tests import components
from tests.components import DIM, ENCODERS, MAX_LEN, MODELS, OBJECTIVES, build, packed

pairs = pytest.mark.parametrize(("model", "encoder"), [(m, e) for m in MODELS for e in ENCODERS])
AFTER_BLOCK_0 = {"inject": "after_block0"}


def timed(length: int = MAX_LEN) -> Batch:
    """Rows of unlike length, one empty, whose events lie minutes to days apart."""
    rows = [[3, 1, 4, 1, 5, 9, 2, 6, 5][:length], [5], [], [8, 9, 7, 12], [2, 11]]
    times = [[1000 * 3**t for t in range(len(row))] for row in rows]
    return collate(rows, length, times)


def steps(model: str, encoder: str, **options: object) -> Iterator[tuple[Step, Batch]]:
    """The model under each objective that can train it, in training mode, with rows of the right length."""
    for objective in OBJECTIVES:
        try:
            step = Step(build(model, encoder, **options), components.build_objective(objective))
        except ConfigError:
            continue
        yield step.train(), timed(MAX_LEN + step.objective.extra_events)


class Waits(TorchDispatchMode):
    """Notes operations that would make the host wait, or whose result has a shape that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal"}:
            self.found.add(name)
        if name in {"index", "index_put", "index_put_", "_index_put_impl_"}:
            indexes = [one for one in args[1] if one is not None]
            if any(one.dtype == torch.bool for one in indexes):
                self.found.add(f"{name} by a mask")
        return func(*args, **(kwargs or {}))


def test_waiting_is_noticed() -> None:
    x_N, is_wanted_N = torch.arange(3.0), torch.tensor([True, False, True])
    with Waits() as waits:
        x_N.sum().item()
        x_N[is_wanted_N]
    # A mask is turned into indexes before it gets here.
    assert "_local_scalar_dense" in waits.found
    assert waits.found & {"nonzero", "index by a mask"}
    with Waits() as waits:
        torch.where(is_wanted_N, x_N, 0).sum()
    assert waits.found == set()


@pytest.mark.parametrize("model", MODELS)
def test_a_training_step_never_waits_for_the_device(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where nothing is to be waited for, on a CPU, rows are grouped by asking for their lengths.
    monkeypatch.setattr(_layers, "_may_ask", lambda batch: False)
    generator, n_objectives = torch.Generator().manual_seed(0), 0
    for step, batch in steps(model, "id_embedding"):
        with Waits() as waits:
            targets = step.objective.prepare(batch, generator)
            step(batch, targets)["loss"].backward()
        assert waits.found == set(), type(step.objective).__name__
        n_objectives += 1
    assert n_objectives


@pairs
def test_every_parameter_has_a_use(model: str, encoder: str) -> None:
    """Under some objective each parameter gets a gradient that is not zero."""
    idle: set[str] | None = None
    for step, batch in steps(model, encoder):
        targets = step.objective.prepare(batch, torch.Generator().manual_seed(0))
        step(batch, targets)["loss"].backward()
        # What is frozen is the use of others: a language model's.
        named = [(name, p) for name, p in step.model.named_parameters() if p.requires_grad]
        unmoved = {name for name, p in named if p.grad is None or not p.grad.any()}
        idle = unmoved if idle is None else idle & unmoved
    assert idle == set()


@pytest.mark.parametrize("model", MODELS)
def test_an_encoder_may_inject_after_the_first_block(model: str) -> None:
    """What it gives joins the output of block 0: the first block sees the plain vectors, the second more."""
    built, batch = build(model, "mltfr", **AFTER_BLOCK_0), packed(timed())
    with torch.no_grad():
        with_it = inputs_of_blocks(built, batch)
        plain = inputs_of_blocks(without_injection(built), batch)
    assert_close(with_it[0], plain[0])
    if len(with_it) > 1:
        assert not torch.allclose(with_it[1], plain[1])
    assert not torch.allclose(with_it[-1], plain[-1])


def inputs_of_blocks(model: SequenceModel, batch: Batch) -> list[Tensor]:
    """What each block was given, and the states at items."""
    seen: list[Tensor] = []
    handles = [b.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for b in model.blocks]
    encoded: Encoded = model(batch)
    for handle in handles:
        handle.remove()
    assert len(seen) == len(model.blocks)
    return [*seen, encoded.hidden_BLD[batch.is_item_BL]]


def without_injection(model: SequenceModel) -> SequenceModel:
    """The model over the plain vectors of the same encoder."""
    embed = model.items.forward
    model.items.forward = lambda batch: embed(batch)._replace(after_block0_BLD=None)  # type: ignore[method-assign]
    return model


@pairs
def test_a_state_is_the_same_in_any_batch(model: str, encoder: str) -> None:
    """Padded and alone or packed among others: a history has one state. An empty one's is not used."""
    built, batch = build(model, encoder), timed()
    assert batch.time_BL is not None
    with torch.no_grad():
        together_BD = built.encode_next(packed(batch)).hidden_BLD[:, -1]
        for b in batch.length_B.nonzero()[:, 0].tolist():
            alone = Batch(*(part[b : b + 1] for part in batch[:3]), batch.time_BL[b : b + 1])
            assert_close(built.encode_next(alone).hidden_BLD[:, -1], together_BD[b : b + 1])


@pytest.mark.parametrize("model", MODELS)
def test_the_next_state_is_that_of_the_newest_position(model: str) -> None:
    """However little a last block computes for it; a model that reads a [MASK] puts it there first."""
    for built in (build(model), build(model, "mltfr", **AFTER_BLOCK_0)):
        if built.reads_mask:
            continue
        for batch in (timed(), packed(timed())):
            has_items_B = batch.length_B > 0
            with torch.no_grad():
                newest_BD = built(batch).hidden_BLD[:, -1]
                assert_close(built.encode_next(batch).hidden_BLD[has_items_B, 0], newest_BD[has_items_B])


@pytest.mark.parametrize("model", MODELS)
def test_an_empty_history_has_a_state_and_so_has_a_batch_of_them(model: str) -> None:
    built = build(model)
    batch = collate([[], []], MAX_LEN)
    with torch.no_grad():
        for one in (batch, packed(batch)):
            state_B1D = built.encode_next(one).hidden_BLD
            assert state_B1D.shape == (2, 1, DIM)
            assert state_B1D.isfinite().all()
            assert_close(state_B1D[0], state_B1D[1])
