"""Dropout inside other kernels: what is dropped is a hash of its place and of a number drawn for the call."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import torch
import triton
import triton.language as tl
from torch import Tensor


def draw_seed(device: torch.device) -> Tensor:
    """int32 [1] from the default generator: a captured step draws a new one each time it is replayed."""
    return torch.randint(2**31 - 1, (1,), device=device, dtype=torch.int32)


def drop_below(dropout: float) -> int:
    """The hash below which a place is dropped."""
    return int(dropout * 2**31)


@triton.jit
def hashed(place, seed):
    """31 bits that depend on all bits of place and seed: two multiplications, each between shifts."""
    x = place * 0x9E3779B1 + seed.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return ((x ^ (x >> 16)) >> 1).to(tl.int32)
