"""Work that does not depend on each other, at the same time on a GPU.

An expert is some thirty small kernels and one large one, the projection of its table. One after another they
leave most of the GPU idle; on streams of their own, small ones of one expert run beside the large one of
another, and the large ones beside what comes before the experts. Autograd runs a backward pass on the streams
of the forward pass, and a CUDA graph keeps them as branches.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

from lexrec.kernels.gpu import on_gpu

T = TypeVar("T")


def ahead(tasks: Sequence[Callable[[], T]], near: Tensor) -> list[T]:
    """The results of all tasks, in order; on a GPU who reads one waits for the stream that makes it.

    Args:
        tasks: what can begin now.
        near: a tensor on their device.
    """
    if not on_gpu(near):
        return [task() for task in tasks]
    results, before = [], torch.cuda.current_stream(near.device)
    for i, task in enumerate(tasks):
        stream = _stream(near.device, "ahead", i)
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            results.append(task())
    return results


def side_by_side(
    tasks: Sequence[Callable[..., T]], shared: Sequence[Tensor | None], own: Sequence[object]
) -> list[T]:
    """The results of all tasks, in order; what is enqueued after this call sees them finished.

    Args:
        tasks: each is called with all of `shared` and its own.
        shared: tensors; the first says which device.
        own: of each task, one more argument.
    """
    assert shared[0] is not None
    if not on_gpu(shared[0]) or len(tasks) < 2:
        return [task(*shared, one) for task, one in zip(tasks, own, strict=True)]
    device = shared[0].device
    before, results = torch.cuda.current_stream(device), []
    streams = [_stream(device, "side", i) for i in range(len(tasks))]
    for stream, task, one in zip(streams, tasks, own, strict=True):
        stream.wait_stream(before)
        for tensor in shared:
            if tensor is not None:
                # A backward pass may drop it while this stream has yet to read it.
                tensor.record_stream(stream)
        with torch.cuda.stream(stream):
            results.append(task(*shared, one))
    # Waited for only now: a task must not wait for those before it.
    for stream in streams:
        before.wait_stream(stream)
    return results


@cache
def _stream(device: torch.device, use: str, number: int) -> torch.cuda.Stream:
    """The same streams at each call: a block of memory is used again on its own stream alone."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
