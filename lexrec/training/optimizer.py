"""Adam, a linear warm-up and what follows it."""

import math
from typing import Any

import torch
from torch import nn

from lexrec.config import TrainConfig

_RATE = "lr_on_host"
"""Key of a parameter group: the rate it was given last, as a number."""


def build_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over everything trainable; with weight_decay 0 it is Adam. One pass over each weight."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    is_on_gpu = any(p.is_cuda for p in parameters)
    # Decay would pull norms, biases and the filter's logit_scale towards zero, which is no simpler model.
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2]},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    # A step that is captured as a graph reads its learning rate from the device.
    lr = torch.tensor(config.lr, device=parameters[0].device) if is_on_gpu else config.lr
    return torch.optim.AdamW(
        groups,
        lr=lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
        capturable=is_on_gpu,
    )


def set_lr(
    optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, n_steps: int | None = None
) -> None:
    """The learning rate of optimizer step `step` (from 0).

    Args:
        optimizer: a rate that is a tensor is changed in place: a captured step reads that very tensor.
        config: its peak, warm-up and schedule.
        step: steps taken so far.
        n_steps: steps of the longest possible run; a cosine ends there.

    Raises:
        ValueError: a cosine without an end.
    """
    lr = config.lr * _share_of_peak(config, step, n_steps)
    for group in optimizer.param_groups:
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
