"""What one training step costs, counted rather than estimated.

Counted are matrix products, convolutions, attention and FFTs of forward and backward pass, two a
multiply-add; element-wise work, look-ups, sorting and the optimizer are not.
"""

import math
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lexrec.config import TrainConfig
from lexrec.data.dataset import Dataset
from lexrec.data.windows import Epoch, Samples, Windows
from lexrec.training.step import Step


def count_flops(step: Step, dataset: Dataset, train: TrainConfig) -> dict[str, int]:
    """FLOPs of a training step, on the first batch that training would see, and of an epoch of such steps.

    Counted on the CPU, where each operation has its plain form and a batch is as small as it can be.

    Returns:
        step, rows (samples of a batch), epoch.
    """
    step.train()
    length, sampling = step.model.max_len, step.objective.sampling
    extra = step.objective.extra_events
    samples = Samples.of(dataset, sampling, length, extra)
    n_batches = samples.n_batches(train.batch_size)
    epoch = Epoch(Windows(dataset, length + extra, torch.device("cpu")), n_batches, train.batch_size)
    samples.fill(epoch, seed=train.seed, number=0)
    n_flops = _of_step(step, epoch.batch(0))
    return {"step": n_flops, "epoch": n_flops * n_batches, "rows": train.batch_size}


def _of_step(step: Step, batch: Any) -> int:
    from torch._subclasses import fake_tensor

    needs_values = (
        fake_tensor.DataDependentOutputException,
        fake_tensor.DynamicOutputShapeException,
        fake_tensor.UnsupportedOperatorException,
    )
    try:
        # Shapes alone decide the count, so nothing is computed.
        with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
            return _counted(step, batch)
    except needs_values:
        return _counted(step, batch)


def _counted(step: Step, batch: Any) -> int:
    step.zero_grad(set_to_none=True)
    with FlopCounterMode(display=False, custom_mapping=_FFTS) as counter:
        targets = step.objective.prepare(batch, torch.Generator().manual_seed(0))
        torch.autograd.backward(step(batch, targets)["loss"])
    return int(counter.get_total_flops())


def _fft(shape: Any, dims: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """2.5 n log2 n for each real transform of length n."""
    large: tuple[int, ...] = max(shape, out_shape, key=math.prod)
    length = math.prod(large[dim] for dim in dims)
    return round(2.5 * math.prod(large) * math.log2(max(length, 2)))


_FFTS = {torch.ops.aten._fft_r2c: _fft, torch.ops.aten._fft_c2r: _fft}
