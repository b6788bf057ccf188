"""What a recipe says of Adam reaches Adam."""

import pytest
import torch

from lexrec.config import RunConfig, TrainConfig, load_recipe
from lexrec.errors import ConfigError
from lexrec.training.optimizer import build_optimizer


def test_betas_decide_what_a_step_remembers() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(layer, TrainConfig(betas=(0.5, 0.25)))
    for gradient in (1.0, 3.0):
        layer.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
    state = optimizer.state[layer.weight]
    assert state["exp_avg"].item() == pytest.approx(0.5 * 0.5 * 1 + 0.5 * 3)
    assert state["exp_avg_sq"].item() == pytest.approx(0.25 * 0.75 * 1 + 0.75 * 9)


def test_betas_are_adams_own_unless_given() -> None:
    optimizer = build_optimizer(torch.nn.Linear(1, 1), TrainConfig())
    assert all(group["betas"] == (0.9, 0.999) for group in optimizer.param_groups)
    config = load_recipe("sasrec", ["train.betas=[0.9, 0.98]"])
    assert isinstance(config, RunConfig)
    assert config.train.betas == (0.9, 0.98)


def test_a_beta_of_one_never_learns_and_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.betas\.1: input should be less than 1 \(got 1\.0\)"):
        load_recipe("sasrec", ["train.betas=[0.9, 1.0]"])
