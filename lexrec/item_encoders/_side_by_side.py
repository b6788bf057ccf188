"""Work that does not depend on each other, at the same time on a GPU.

An expert is some thirty small kernels and one large one. One after another they leave most of the GPU idle;
on a stream each, small ones of one expert run beside the large one of another. Autograd runs a backward pass
on the streams of the forward pass, and a CUDA graph keeps them as branches.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

from lexrec.kernels.gpu import on_gpu

T = TypeVar("T")


def side_by_side(tasks: Sequence[Callable[..., T]], given: Sequence[Tensor | None]) -> list[T]:
    """The results of all tasks, in order; what is enqueued after this call sees them finished.

    Args:
        tasks: each is called with all of `given`.
        given: tensors; the first says which device.
    """
    assert given[0] is not None
    if not on_gpu(given[0]) or len(tasks) < 2:
        return [task(*given) for task in tasks]
    device = given[0].device
    before, results = torch.cuda.current_stream(device), []
    streams = [_stream(device, i) for i in range(len(tasks))]
    for stream, task in zip(streams, tasks, strict=True):
        stream.wait_stream(before)
        for tensor in given:
            if tensor is not None:
                # A backward pass may drop it while this stream has yet to read it.
                tensor.record_stream(stream)
        with torch.cuda.stream(stream):
            results.append(task(*given))
    # Waited for only now: a task must not wait for those before it.
    for stream in streams:
        before.wait_stream(stream)
    return results


@cache
def _stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """The same streams at each call: a block of memory is used again on its own stream alone."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
