"""A whole step through the kernels of a GPU, interpreted on a CPU, has the gradients of plain PyTorch."""

import pytest
import torch
from torch import Tensor

from lexrec.data.batch import collate
from lexrec.kernels import binary_cross_entropy, dense, place, rows
from lexrec.training.step import Step
from tests import components
from tests.unit.kernels.conftest import Interpreted
from tests.unit.kernels.conftest import interpreted as interpreted

HISTORIES = [[1, 2, 3, 4, 5], [2, 3], [7], [], [5, 4, 3, 2, 1, 6, 7]]


def gradients(model: str, objective: str, loss: str) -> dict[str, Tensor]:
    """Of the loss of one batch, by parameter."""
    torch.manual_seed(0)
    goal = components.build_objective(objective, loss=loss)
    step = Step(components.build(model), goal)
    for module in step.modules():
        # What is dropped differs: numbers of one generator against hashes of places.
        for name in ("p", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    batch = collate(HISTORIES, components.MAX_LEN + goal.extra_events)
    targets = goal.prepare(batch, torch.Generator().manual_seed(1))
    torch.autograd.backward(step.train()(batch, targets)["loss"])
    return {name: p.grad for name, p in step.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize(("model", "objective"), [("sasrec", "next_item"), ("bert4rec", "cloze")])
def test_gradients_of_a_step(
    model: str, objective: str, loss: str, interpreted: Interpreted, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreted("_linear_triton")
    plain = gradients(model, objective, loss)
    for module in (binary_cross_entropy, dense, place, rows):
        monkeypatch.setattr(module, "trains_in_16_bits", lambda x: True)
    quick = gradients(model, objective, loss)
    assert quick.keys() == plain.keys()
    for name, gradient in plain.items():
        # Next to nothing is left of a gradient that the norm after it takes away.
        error = (quick[name] - gradient).norm() / gradient.norm().clamp(min=1e-4)
        assert error < 5e-3, name
