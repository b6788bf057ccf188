"""Dropout inside other kernels: what is dropped is a hash of its place and of a number drawn for the call."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import triton.language as tl
from torch import Tensor

from lexrec.kernels._jit import kernel

_AT_ONCE = 64
_drawn: ContextVar[Iterator[Tensor] | None] = ContextVar("drawn", default=None)


@contextmanager
def seeds_together(device: torch.device) -> Iterator[None]:
    """Draws the seeds of a step in one kernel, not in one each."""
    # Each 16 bytes from the next: a kernel is compiled anew for an address that is less even.
    quads = _draw(4 * _AT_ONCE, device).split(4)
    token = _drawn.set(quad[:1] for quad in quads)
    try:
        yield
    finally:
        _drawn.reset(token)


def draw_seed(device: torch.device) -> Tensor:
    """int32 [1] from the default generator: a captured step draws a new one each time it is replayed."""
    drawn = None if torch.compiler.is_compiling() else _drawn.get()
    seed_1 = None if drawn is None else next(drawn, None)
    if seed_1 is None:
        return _draw(1, device)
    if seed_1.is_cuda:
        # Its memory must outlast readers on other streams than the one it was made on.
        seed_1.record_stream(torch.cuda.current_stream(device))
    return seed_1


def _draw(n: int, device: torch.device) -> Tensor:
    return torch.randint(2**31 - 1, (n,), device=device, dtype=torch.int32)


def drop_below(dropout: float) -> int:
    """The hash below which a place is dropped."""
    return int(dropout * 2**31)


@kernel
def hashed(place, seed):
    """31 bits that depend on all bits of place and seed: two multiplications, each between shifts."""
    x = place * 0x9E3779B1 + seed.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return ((x ^ (x >> 16)) >> 1).to(tl.int32)
