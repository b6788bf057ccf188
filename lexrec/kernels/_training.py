"""When the kernels of a training step take over from PyTorch's own operations."""

import torch
from torch import Tensor


def trains_in_16_bits(x: Tensor) -> bool:
    """True in the forward pass of a training step on a GPU as it runs by default: 16 bits, not compiled.

    What is compiled (LEXREC_COMPILE=1) keeps PyTorch's own forms, which the compiler fuses.
    """
    return (
        x.is_cuda
        and torch.is_autocast_enabled("cuda")
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )
