"""Compiling Triton kernels so that a launch runs where its tensors lie.

Triton launches on the process's current GPU, whichever GPU the tensors are on; PyTorch's own operations go to
that of their tensors. A model on `cuda:1` must not need the caller to say so twice.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped"

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction


def kernel(function: Callable[..., None]) -> Any:
    """`triton.jit` whose launches, `compiled[grid](...)`, run on the GPU of their first tensor."""
    compiled = triton.jit(function)
    if isinstance(compiled, JITFunction):  # Triton's interpreter has no GPU.
        compiled.run = _where_tensors_lie(compiled.run)
    return compiled


def _where_tensors_lie(launch: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        device = next(argument.device for argument in args if isinstance(argument, Tensor))
        if device.index == torch.cuda.current_device():
            return launch(*args, **options)
        with torch.cuda.device(device):
            return launch(*args, **options)

    return run
