"""What one training step costs, counted rather than estimated.

Counted are matrix products, convolutions, attention and FFTs of forward and backward pass, two a
multiply-add; element-wise work, look-ups, sorting and the optimizer are not.
"""

import math
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lexrec.config import RunConfig
from lexrec.data.dataset import Dataset
from lexrec.data.windows import Samples, Windows
from lexrec.run_dir import load_tables
from lexrec.training.step import Step
from lexrec.training.train import build_step


def count_flops(config: RunConfig, dataset: Dataset) -> dict[str, int]:
    """FLOPs of one training step at the recipe's batch size, and of an epoch of such steps.

    Counted on the CPU, where each operation has its plain form, on a batch of samples drawn at random.
    """
    step = build_step(config, dataset, load_tables(config)).train()
    extra, batch_size = step.objective.extra_events, config.train.batch_size
    samples = Samples.of(dataset, step.objective.sampling, step.model.max_len, extra)
    order_S = torch.randperm(len(samples), generator=torch.Generator().manual_seed(config.train.seed))
    pick_B = order_S[:batch_size]
    windows = Windows(dataset, step.model.max_len + extra, torch.device("cpu"))
    batch = windows.cut(samples.start_S[pick_B], samples.end_S[pick_B], samples.user_S[pick_B])
    n_flops = _of_step(step, batch)
    return {"step": n_flops, "epoch": round(n_flops * len(samples) / len(pick_B)), "rows": len(pick_B)}


def _of_step(step: Step, batch: Any) -> int:
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    try:
        # Shapes alone decide the count, so nothing is computed.
        with FakeTensorMode(allow_non_fake_inputs=True):
            return _counted(step, batch)
    except DataDependentOutputException:
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
