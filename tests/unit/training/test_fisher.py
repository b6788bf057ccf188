"""Fisher importance: exact against a loop of gradients, and where it is known in closed form."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from lexrec.config import FisherConfig
from lexrec.data.batch import Batch, collate
from lexrec.item_encoders.base import Embedded, ItemEncoder, ScoringTable
from lexrec.models.base import Encoded, SequenceModel
from lexrec.objectives import _losses
from lexrec.training import fisher
from lexrec.training.fisher import importance
from lexrec.training.step import Step
from tests import components
from tests.components import MAX_LEN, N_ITEMS

DATA = FisherConfig(kind="diag", labels="data")
ROWS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 2], [8, 9, 7], [], [7, 7, 7, 1]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Said(ItemEncoder):
    """Item vectors that are given, and one parameter: the hidden state itself."""

    causal = True

    def __init__(self, table_ID: Tensor) -> None:
        super().__init__()
        self.n_items = len(table_ID)
        self.table_ID = table_ID
        expert = nn.Module()
        expert.theta = nn.Parameter(torch.tensor([0.3, -0.2, 0.5]))
        self.experts = nn.ModuleList([expert])

    def lookup(self, item: Tensor) -> Tensor:
        return F.embedding(item - 1, self.table_ID)

    def forward(self, batch: Batch) -> Embedded:
        theta_D = self.experts[0].theta
        return Embedded(theta_D.expand(*batch.item_BL.shape, -1), {})

    def scoring(self) -> ScoringTable:
        return ScoringTable(
            self.n_items, lambda first, last: self.table_ID[first - 1 : last - 1], self.lookup
        )


class Says(SequenceModel):
    """Predicts from its encoder's one state, whatever the history."""

    causal, layout = True, "fixed"

    def __init__(self) -> None:
        super().__init__()
        self.items, self.blocks, self.max_len = Said(torch.randn(N_ITEMS, 3, generator=generator(5))), [], 2

    def forward(self, batch: Batch) -> Encoded:
        return Encoded(self.items(batch).x_BLD, {})


def says(loss: str, objective: str = "last_item", **options: Any) -> tuple[Step, Tensor, Tensor]:
    """The step, its item table and its hidden state."""
    model = Says()
    step = Step(model, components.build_objective(objective, loss=loss, **options))
    return step, model.items.table_ID, model.items.experts[0].theta.detach()


def pairs(n: int) -> Batch:
    return collate([[1, i % N_ITEMS + 1] for i in range(n)], 3)


def test_a_softmax_has_the_fisher_information_of_its_closed_form() -> None:
    step, table_ID, theta_D = says("ce")
    p_I = (table_ID @ theta_D).softmax(0)
    variance_D = p_I @ table_ID.square() - (p_I @ table_ID).square()
    config = FisherConfig(kind="diag", labels="model", n_samples=40000)
    found = importance(step, [pairs(40000)], config, ["experts.0.theta"], generator())
    assert_close(found["experts.0.theta"], variance_D.double(), rtol=0.03, atol=0)


def test_data_labels_take_the_targets() -> None:
    step, table_ID, theta_D = says("ce")
    residual_ID = table_ID - (table_ID @ theta_D).softmax(0) @ table_ID
    found = importance(step, [pairs(N_ITEMS)], DATA, ["experts.0.theta"], generator())
    assert_close(found["experts.0.theta"], residual_ID.double().square().mean(0))


@pytest.mark.parametrize("loss", ["bce", "gbce"])
def test_pairs_are_bernoulli(loss: str) -> None:
    step, table_ID, theta_D = says(loss, n_negatives=3)
    batch, n = pairs(40000), 40000
    targets = step.objective.prepare(batch, generator())
    item_NK = torch.cat([targets.target_N[:, None], targets.negative_NK], 1)
    prior = math.log(_losses.positive_power(step.objective.config, N_ITEMS) / 3)
    p_NK = (table_ID @ theta_D + prior).sigmoid()[item_NK - 1]
    information_D = ((p_NK * (1 - p_NK))[..., None] * table_ID[item_NK - 1].square()).sum(1).mean(0)
    config = FisherConfig(kind="diag", labels="model", n_samples=n)
    found = importance(step, [batch], config, ["experts.0.theta"], generator())
    assert_close(found["experts.0.theta"], information_D.double(), rtol=0.03, atol=0)


def test_the_gradient_of_a_batch_is_that_of_a_training_step() -> None:
    step, _, theta_D = says("bce")
    batch = pairs(10)
    loss = step(batch, step.objective.prepare(batch, generator()))["loss"]
    (gradient_D,) = torch.autograd.grad(loss, step.model.items.experts[0].theta)
    config = FisherConfig(kind="diag", labels="data", gradients="batch")
    found = importance(step, [batch], config, ["experts.0.theta"], generator())
    assert_close(found["experts.0.theta"], gradient_D.double().square(), rtol=1e-5, atol=0)
    assert theta_D.grad is None


def test_only_so_many_samples_count_and_empty_rows_are_none() -> None:
    step, *_ = says("ce")
    names, rows = ["experts.0.theta"], [[1, 5], [], [4], [1, 7], [1, 9]]
    few = FisherConfig(kind="diag", labels="data", n_samples=2)
    found = importance(step, [collate(rows, 3), pairs(5)], few, names, generator())
    alone = importance(step, [collate([[1, 5], [1, 7]], 3)], DATA, names, generator())
    assert_close(found["experts.0.theta"], alone["experts.0.theta"])


def mltfr(model: str, objective: str, loss: str, **options: Any) -> Step:
    built = components.build(model, "mltfr", **options)
    return Step(built, components.build_objective(objective, loss=loss)).double().train()


def by_hand(step: Step, batch: Batch, names: list[str]) -> dict[str, Tensor]:
    """Data labels, one row and one backward pass at a time."""
    step.eval()
    targets, known = (
        step.objective.prepare(batch, generator()),
        dict(step.model.items.named_parameters()),
    )
    L, sums, n = targets.inputs.item_BL.shape[1], dict.fromkeys(names, 0.0), 0
    parameters = [known[name] for name in names]
    for row in range(len(batch.item_BL)):
        mine_N = (targets.position_N // L == row) & (targets.weight_N > 0)
        if not mine_N.any():
            continue
        inputs = Batch(
            targets.inputs.item_BL[row, None], targets.inputs.length_B[row, None], batch.user_B[:1]
        )
        if step.objective.sampling == "prefix":
            hidden_ND = step.model.encode_next(inputs).hidden_BLD[0]
        else:
            hidden_ND = step.model(inputs).hidden_BLD[0, targets.position_N[mine_N] % L]
        table, target_N = step.model.scoring(), targets.target_N[mine_N]
        if targets.negative_NK is None:
            log_p = -F.cross_entropy(table.score(hidden_ND), target_N - 1, reduction="sum")
        else:
            yes = table.score_items(hidden_ND, target_N[:, None])
            no = table.score_items(hidden_ND, targets.negative_NK[mine_N])
            log_p = F.logsigmoid(yes).sum() + F.logsigmoid(-no).sum()
        found = torch.autograd.grad(log_p, parameters)
        sums = {name: sums[name] + g.square() for name, g in zip(names, found, strict=True)}
        n += 1
    return {name: value / n for name, value in sums.items()}


@pytest.mark.parametrize(
    ("model", "objective", "loss"),
    [
        ("sasrec", "next_item", "ce"),
        ("sasrec", "contrastive", "bce"),
        ("hstu", "next_item", "bce"),
        ("gru4rec", "next_item", "ce"),
        ("id_decoder", "next_item", "ce"),
        ("bert4rec", "cloze", "ce"),
        ("bert4rec", "last_item", "ce"),
        ("linrec", "cloze", "bce"),
        ("fmlprec", "last_item", "bce"),
        ("bsarec", "last_item", "ce"),
    ],
)
def test_gradients_are_those_of_single_rows(model: str, objective: str, loss: str) -> None:
    step = mltfr(model, objective, loss)
    names = [n for n, _ in step.model.items.named_parameters() if n.startswith("experts.")]
    rows = [row[-MAX_LEN:] for row in ROWS]
    batch = collate(rows, MAX_LEN + step.objective.extra_events)
    expected = by_hand(step, batch, names)
    step.train()
    found = importance(step, [batch], DATA, names, generator())
    assert step.training
    assert all(p.grad is None for p in step.parameters())
    # The pairs' answers are float32; all else is float64.
    assert_close(found, expected, rtol=1e-6, atol=1e-18)
    assert max(float(value.max()) for value in found.values()) > 0


@pytest.mark.parametrize("at_once", [1, 3, 99])
def test_the_papers_filter_has_gradients_too(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows' gradients of an aligned table there is memory for: of 70 tokens, 32 wide."""
    monkeypatch.setattr(fisher, "_TABLE_CELLS", at_once * 70 * 32)
    step = mltfr("bert4rec", "cloze", "ce", preset="paper")
    names = [n for n, _ in step.model.items.named_parameters() if n.startswith("experts.0.a")]
    batch = collate(ROWS, MAX_LEN)
    found = importance(step, [batch], DATA, names, generator())
    assert_close(found, by_hand(step, batch, names), rtol=1e-6, atol=1e-18)
    assert found["experts.0.align.weight"].sum() > 0


@pytest.mark.parametrize("model", ["bert4rec", "hstu", "gru4rec"])
def test_the_releases_filter_is_measured_without_its_noise(model: str) -> None:
    objective, more = ("cloze", {}) if model == "bert4rec" else ("next_item", {"allow_leak": True})
    built = components.build(model, "mltfr", preset="release")
    step = Step(built, components.build_objective(objective, loss="ce", **more)).double().train()
    quiet = components.build(model, "mltfr", preset="release", eval_noise=False)
    quiet.load_state_dict(built.state_dict())
    names = [n for n, _ in built.items.named_parameters() if ".attention." in n]
    batch = collate([row[-MAX_LEN:] for row in ROWS], MAX_LEN + step.objective.extra_events)
    found = importance(step, [batch], DATA, names, generator())
    assert_close(found, by_hand(Step(quiet.double(), step.objective), batch, names), rtol=1e-6, atol=1e-18)
    assert max(float(value.max()) for value in found.values()) > 0
    step.eval()
    hidden_BLD = [step.model(targets_of(step, batch)).hidden_BLD for _ in range(2)]
    assert not torch.equal(*hidden_BLD), "its noise came back"


def targets_of(step: Step, batch: Batch) -> Batch:
    return step.objective.prepare(batch, generator()).inputs


def test_scalar_is_the_mean_over_an_experts_elements() -> None:
    step = mltfr("sasrec", "next_item", "ce")
    names = [n for n, _ in step.model.items.named_parameters() if ".attention." in n]
    batch = collate(ROWS, MAX_LEN + 1)
    each = importance(step, [batch], DATA, names, generator())
    one = importance(step, [batch], FisherConfig(kind="scalar", labels="data"), names, generator())
    for m in "01":
        mine = [name for name in names if name.startswith(f"experts.{m}.")]
        mean = torch.cat([each[name].flatten() for name in mine]).mean()
        for name in mine:
            assert_close(one[name], mean)
    assert one[names[0]] != one[names[-1]]
