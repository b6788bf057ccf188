"""Whether a GPU's own kernels can be given a tensor."""

import torch
from torch import Tensor


def on_gpu(x: Tensor) -> bool:
    """True for a tensor that lies in a GPU's memory: inside torch.func and torch.compile none does."""
    return has_kernels(x.device)


def has_kernels(device: torch.device) -> bool:
    """True if what is made on this device now lies in a GPU's memory."""
    return device.type == "cuda" and not torch.compiler.is_compiling() and not is_transformed()


def is_transformed() -> bool:
    """True inside torch.func, where a tensor stands for many and only PyTorch's own operations will do."""
    return not torch.compiler.is_compiling() and bool(torch._C._are_functorch_transforms_active())
