"""Adam, a linear warm-up and what follows it."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from lexrec.config import TrainConfig

_LARGE = 2**16
"""Numbers of a parameter from which on a GPU it is a kernel of its own."""
_FACTOR = "lr_factor"
"""Key of a parameter group: what multiplies the rate for it."""
_RATE = "lr_on_host"
"""Key of a parameter group: the rate it was given last, as a number."""


class AdamW:
    """AdamW in one pass over each weight: what `torch.optim.AdamW(fused=True)` does, by the same function.

    Large weights on a GPU have a kernel of ours (`kernels/_adam_triton.py`). PyTorch's class loads its
    compiler when it is made, a second and 150 MiB that no step here has a use for.

    Args:
        groups: dictionaries with `params`, and any of the settings in place of those below.
        lr: learning rate; a tensor on the parameters' device is read by each step, a captured one too.
        betas: decay of the mean of gradients and of their squares.
        weight_decay: taken off the weights before each step, times `lr`.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        lr: float | Tensor,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": 1e-8}
        self.param_groups = [settings | group for group in groups]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        """Of each parameter that has had a gradient: `step`, `exp_avg`, `exp_avg_sq`."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or zero them."""
        for parameter in self._parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for group in self._alike():
            moved = [p for p in group["params"] if p.grad is not None]
            large = list(filter(_is_large, moved))
            if large:
                # One kernel for all: a language model has hundreds of weights.
                torch._foreach_add_([self._state(p)["step"] for p in large], 1)
            for parameter in large:
                self._move(parameter, group)
            self._move_together([p for p in moved if not _is_large(p)], group)

    def _alike(self) -> list[dict[str, Any]]:
        """The groups, those of the same settings as one: each costs a GPU two launches a step."""
        joined: dict[Any, dict[str, Any]] = {}
        for group in self.param_groups:
            lr = group["lr"]
            key = (
                id(lr) if isinstance(lr, Tensor) else lr,
                group["betas"],
                group["weight_decay"],
                group["eps"],
            )
            before = joined.get(key, {"params": []})["params"]
            joined[key] = {**group, "params": [*before, *group["params"]]}
        return list(joined.values())

    def _move(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        from lexrec.kernels import _adam_triton

        assert parameter.grad is not None
        state = self._state(parameter)
        lr_1 = torch.as_tensor(group["lr"], device=parameter.device)
        rates = _adam_triton.Rates(lr_1, group["betas"], group["weight_decay"], group["eps"])
        _adam_triton.step(
            parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"], state["step"], rates
        )

    def _move_together(self, moved: list[nn.Parameter], group: dict[str, Any]) -> None:
        states = [self._state(p) for p in moved]
        adamw(
            list[Tensor](moved),
            [p.grad for p in moved if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            capturable=any(p.is_cuda for p in moved),
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )

    def state_dict(self) -> dict[str, Any]:
        """Moments by the number of their parameter, and the groups' settings."""
        numbers = {parameter: i for i, parameter in enumerate(self._parameters())}
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        return {"state": {numbers[p]: state for p, state in self.state.items()}, "param_groups": settings}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        parameters = list(self._parameters())
        for i, moments in saved["state"].items():
            own = {name: tensor.to(parameters[i].device).clone() for name, tensor in moments.items()}
            self.state[parameters[i]] = own
        for group, settings in zip(self.param_groups, saved["param_groups"], strict=True):
            group.update(settings)

    def _parameters(self) -> Iterator[nn.Parameter]:
        for group in self.param_groups:
            yield from group["params"]

    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        if parameter not in self.state:
            step = torch.zeros((), device=parameter.device)
            mean, square = torch.zeros_like(parameter), torch.zeros_like(parameter)
            self.state[parameter] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
        return self.state[parameter]


def _is_large(parameter: nn.Parameter) -> bool:
    return parameter.is_cuda and parameter.numel() >= _LARGE and parameter.dtype == torch.float32


def build_optimizer(module: nn.Module, config: TrainConfig, pretrained: Sequence[nn.Parameter] = ()) -> AdamW:
    """AdamW over everything trainable; with weight_decay 0 it is Adam.

    Args:
        pretrained: parameters of the module that move at `pretrained_lr` times the rate.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    known = set() if config.pretrained_lr == 1 else {id(p) for p in pretrained}
    # A step that is captured as a graph reads its learning rate from the device.
    is_on_gpu = any(p.is_cuda for p in parameters)
    groups: list[dict[str, Any]] = []
    for factor, moved in (
        (1.0, [p for p in parameters if id(p) not in known]),
        (config.pretrained_lr, [p for p in parameters if id(p) in known]),
    ):
        lr = (
            torch.tensor(config.lr * factor, device=parameters[0].device) if is_on_gpu else config.lr * factor
        )
        # Decay would pull norms, biases and the filter's logit_scale towards zero, which is no simpler model.
        wide = {"params": [p for p in moved if p.ndim >= 2]}
        narrow = {"params": [p for p in moved if p.ndim < 2], "weight_decay": 0.0}
        groups += [{"lr": lr, _FACTOR: factor} | group for group in (wide, narrow)] if moved else []
    return AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


def set_lr(optimizer: AdamW, config: TrainConfig, step: int, n_steps: int | None = None) -> None:
    """The learning rate of optimizer step `step` (from 0).

    Args:
        optimizer: a rate that is a tensor is changed in place: a captured step reads that very tensor.
        config: its peak, warm-up and schedule.
        step: steps taken so far.
        n_steps: steps of the longest possible run; a cosine ends there.

    Raises:
        ValueError: a cosine without an end.
    """
    peak = config.lr * _share_of_peak(config, step, n_steps)
    for group in optimizer.param_groups:
        lr = peak * group.get(_FACTOR, 1.0)
        # To fill a tensor is to launch a kernel, and to read it back is to wait: what it holds is kept here.
        if group.get(_RATE) == lr:
            continue
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
        group[_RATE] = lr


def _share_of_peak(config: TrainConfig, step: int, n_steps: int | None) -> float:
    if step + 1 < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    if n_steps is None:
        raise ValueError("schedule=cosine falls until the last step: set_lr needs n_steps")
    # Where the warm-up alone outlasts the run there is nothing left to fall over.
    n_falling = max(n_steps - config.warmup_steps, 1)
    done = min(max(step - config.warmup_steps, 0) / n_falling, 1.0)
    return 0.5 * (1 + math.cos(math.pi * done))
