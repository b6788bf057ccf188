"""Adam, and a linear warm-up."""

from typing import Any

import torch
from torch import nn

from lexrec.config import TrainConfig


def build_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over everything trainable; with weight_decay 0 it is Adam. One kernel a step on a GPU."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    is_on_gpu = any(p.is_cuda for p in parameters)
    # Decay would pull norms, biases and the filter's logit_scale towards zero, which is no simpler model.
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2]},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=is_on_gpu,
        foreach=not is_on_gpu,
    )


def set_lr(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> None:
    """The learning rate of optimizer step `step` (from 0)."""
    share = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    for group in optimizer.param_groups:
        group["lr"] = config.lr * share
