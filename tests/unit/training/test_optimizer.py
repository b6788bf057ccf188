"""What a recipe says of Adam reaches Adam."""

import os

import pytest
import torch

from lexrec.config import RunConfig, TrainConfig, load_recipe
from lexrec.errors import ConfigError
from lexrec.training import optimizer as optimizer_module
from lexrec.training.optimizer import AdamW, build_optimizer, set_lr


def adamw(module: torch.nn.Module, lr: torch.Tensor) -> AdamW:
    return AdamW([{"params": list(module.parameters())}], lr=lr, betas=(0.9, 0.999), weight_decay=0)


def test_steps_are_those_of_pytorchs_class() -> None:
    """Decay, a group without it, a parameter without a gradient for a while, a changed rate, a restart."""
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    config = TrainConfig(lr=0.1, betas=(0.8, 0.9), weight_decay=0.05)
    mine = build_optimizer(ours, config)
    groups = [{"params": [theirs.weight]}, {"params": [theirs.bias], "weight_decay": 0.0}]
    other = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.9), weight_decay=0.05, fused=True)
    for step in range(8):
        for layer, optimizer in ((ours, mine), (theirs, other)):
            optimizer.zero_grad()
            torch.manual_seed(step)
            layer(torch.randn(5, 3)).square().sum().backward()
            if step <= 2:
                layer.bias.grad = None
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (1 + step)
            optimizer.step()
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.bias, theirs.bias)
        if step == 4:
            resumed = build_optimizer(ours, config)
            resumed.load_state_dict(mine.state_dict())
            mine = resumed
    assert mine.state[ours.bias]["step"].item() == 5


def walk(device: str) -> float:
    """How far ours and PyTorch's are from each other after a few steps of a large weight and a small one."""
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(256, 300).to(device) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    config = TrainConfig(lr=0.01, betas=(0.8, 0.99), weight_decay=0.1)
    mine = build_optimizer(ours, config)
    groups = [{"params": [theirs.weight]}, {"params": [theirs.bias], "weight_decay": 0.0}]
    other = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.99), weight_decay=0.1)
    for step in range(5):
        x_ND = torch.randn(5, 256, device=device) * 10.0 ** (2 - step)
        for layer, optimizer in ((ours, mine), (theirs, other)):
            optimizer.zero_grad()
            layer(x_ND).square().sum().backward()
            optimizer.step()
    assert mine.state[ours.weight]["step"].item() == 5
    return float((ours.weight - theirs.weight).detach().abs().max())


def test_the_kernel_for_large_weights_is_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("here kernels are compiled: its test on a GPU says what this would")
    monkeypatch.setattr(optimizer_module, "_is_large", lambda parameter: parameter.ndim == 2)
    assert walk("cpu") < 2e-7


@pytest.mark.gpu
def test_a_gpu_walks_as_pytorch_does() -> None:
    assert walk("cuda") < 5e-6


def test_gradients_are_dropped_or_zeroed() -> None:
    layer = torch.nn.Linear(1, 1)
    optimizer = adamw(layer, torch.tensor(0.5))
    layer.weight.grad = torch.ones(1, 1)
    optimizer.zero_grad(set_to_none=False)
    assert layer.weight.grad.item() == 0
    assert layer.bias.grad is None
    optimizer.zero_grad()
    assert layer.weight.grad is None


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


def rates(config: TrainConfig, n_steps: int | None, last: int) -> list[float]:
    optimizer = build_optimizer(torch.nn.Linear(1, 1), config)
    found = []
    for step in range(last):
        set_lr(optimizer, config, step, n_steps)
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_rate_rises_and_stays() -> None:
    config = TrainConfig(lr=0.4, warmup_steps=4)
    assert rates(config, None, 6) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert rates(TrainConfig(lr=0.4), None, 2) == [0.4, 0.4]


def test_a_cosine_falls_from_the_peak_to_nothing() -> None:
    config = TrainConfig(lr=1.0, warmup_steps=2, schedule="cosine")
    expected = [0.5, 1.0, 1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0.0]
    assert rates(config, 6, 7) == pytest.approx(expected)
    assert rates(TrainConfig(lr=1.0, schedule="cosine"), 2, 2) == pytest.approx([1.0, 0.5])


def test_a_warm_up_longer_than_the_run_is_never_left() -> None:
    assert rates(TrainConfig(lr=1.0, warmup_steps=10, schedule="cosine"), 3, 3) == [0.1, 0.2, 0.3]


def test_a_cosine_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="set_lr needs n_steps"):
        rates(TrainConfig(schedule="cosine"), None, 1)


def test_a_rate_that_is_a_tensor_stays_that_tensor() -> None:
    config = TrainConfig(lr=1.0, schedule="cosine")
    rate = torch.tensor(1.0)
    optimizer = adamw(torch.nn.Linear(1, 1), rate)
    held = optimizer.param_groups[0]["lr"]
    set_lr(optimizer, config, 1, 2)
    assert optimizer.param_groups[0]["lr"] is held
    assert held.item() == pytest.approx(0.5)


def test_a_rate_that_stays_is_not_written_again() -> None:
    """Writing to a tensor on a GPU is a kernel launch, each step."""
    config = TrainConfig(lr=1.0, warmup_steps=3)
    optimizer = adamw(torch.nn.Linear(1, 1), torch.tensor(0.5))
    versions, seen = [], []
    for step in range(6):
        set_lr(optimizer, config, step)
        rate = optimizer.param_groups[0]["lr"]
        versions.append(rate._version)
        seen.append(round(rate.item(), 4))
    assert seen == [0.3333, 0.6667, 1, 1, 1, 1]
    assert versions == [1, 2, 3, 3, 3, 3]
    optimizer.load_state_dict(optimizer.state_dict())
    set_lr(optimizer, config, 0)
    assert optimizer.param_groups[0]["lr"].item() == pytest.approx(1 / 3)


def test_a_cosine_recipe_trains_with_the_rates_it_names() -> None:
    config = load_recipe("id_decoder")
    assert isinstance(config, RunConfig)
    assert config.train.schedule == "cosine"
    assert config.train.warmup_steps > 0


def test_pretrained_weights_move_at_a_rate_of_their_own() -> None:
    layer = torch.nn.Linear(3, 2)
    config = TrainConfig(lr=0.4, pretrained_lr=0.1, warmup_steps=2)
    optimizer = build_optimizer(layer, config, [layer.weight])
    for step, wanted in enumerate((0.2, 0.4)):
        set_lr(optimizer, config, step)
        found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert found == {id(layer.bias): pytest.approx(wanted), id(layer.weight): pytest.approx(wanted / 10)}
    before = [p.detach().clone() for p in (layer.weight, layer.bias)]
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = [
        float((was - now).detach().mean())
        for was, now in zip(before, (layer.weight, layer.bias), strict=True)
    ]
    assert moved == pytest.approx([0.04, 0.4], rel=1e-4)


def test_without_a_factor_all_move_alike() -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(layer, TrainConfig(), [layer.weight])
    assert [len(group["params"]) for group in optimizer._alike()] == [2]
