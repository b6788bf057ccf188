"""Runs optimizer steps: one call after another, or on a GPU as one CUDA graph a step.

A step of these models is some hundred small kernels; launched one by one they cost the host several times
what they cost the GPU. Captured, a whole step (cutting the batch, drawing targets and negatives, forward,
backward, optimizer) is one launch, and the host neither knows nor waits for what is in it: the number of the
batch is a counter on the device, each loss is written to its place in a buffer, and random numbers come
from generators that the graph advances as the separate calls would.

Dimension key: T batches of an epoch.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from lexrec.config import TrainConfig
from lexrec.data.batch import Batch
from lexrec.data.windows import Batches
from lexrec.errors import RunError
from lexrec.objectives.base import Targets
from lexrec.training.optimizer import AdamW
from lexrec.training.step import Step

_WARM_STEPS = 2
"""Steps of each shape that run call by call first: libraries set themselves up, moments are allocated."""
EAGER = "LEXREC_EAGER"
"""Environment variable: 1 runs every step call by call."""
COMPILE = "LEXREC_COMPILE"
"""Environment variable: 1 compiles model and loss on a GPU: worth it for layers without kernels here."""


class Update:
    """What one optimizer step does to a batch: the part that both runners share."""

    def __init__(self, step: Step, optimizer: AdamW, generator: torch.Generator, config: TrainConfig) -> None:
        self.step, self.optimizer, self.generator, self.config = step, optimizer, generator, config
        self.arithmetic = _arithmetic(generator.device, config)
        self._losses: Callable[[Batch, Targets], dict[str, Tensor]] = step
        if generator.device.type == "cuda" and _is_set(COMPILE):
            self._losses = torch.compile(step, dynamic=False)

    def __call__(self, batch: Batch) -> Tensor:
        """The loss before the step, detached and on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        targets = self.step.objective.prepare(batch, self.generator)
        with self.arithmetic, self._seeds():
            loss: Tensor = self._losses(batch, targets)["loss"]
        torch.autograd.backward(loss)
        if self.config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.step.parameters(), self.config.clip_norm)
        self.optimizer.step()
        return loss.detach()

    def _seeds(self) -> AbstractContextManager[None]:
        device = self.generator.device
        if device.type != "cuda":
            return nullcontext()
        from lexrec.kernels import _dropout_triton

        return _dropout_triton.seeds_together(device)


class Runner(Protocol):
    """Takes the optimizer steps of an epoch, in order."""

    def epoch(self, first: int) -> AbstractContextManager[None]:
        """Around the steps of an epoch, of which `first` is the first to be run."""
        ...

    def run(self, i: int) -> Tensor:
        """Step on batch i; its loss, still on the device."""
        ...


def build_runner(update: Update, epoch: Batches) -> Runner:
    """A graph runner on a GPU, unless LEXREC_EAGER=1."""
    if epoch.device.type == "cuda" and not _is_set(EAGER):
        return GraphRunner(update, epoch)
    return EagerRunner(update, epoch)


class EagerRunner:
    """Call by call."""

    def __init__(self, update: Update, epoch: Batches) -> None:
        self._update, self._epoch = update, epoch

    def epoch(self, first: int) -> AbstractContextManager[None]:
        return nullcontext()

    def run(self, i: int) -> Tensor:
        return self._update(self._epoch.batch(i))


class GraphRunner:
    """One CUDA graph a shape, captured on its third use and replayed from then on.

    Nothing that outlives a step lies in the graphs' memory, so all of them share it.
    """

    def __init__(self, update: Update, epoch: Batches) -> None:
        self._update, self._epoch = update, epoch
        self._at_1 = torch.zeros(1, dtype=torch.int64, device=epoch.device)
        self._loss_T = torch.zeros(len(epoch), device=epoch.device)
        self._stream = torch.cuda.Stream(epoch.device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._uses: Counter[int] = Counter()

    @contextmanager
    def epoch(self, first: int) -> Iterator[None]:
        outside = torch.cuda.current_stream(self._epoch.device)
        self._stream.wait_stream(outside)
        # Capture refuses work of an earlier stream, so steps that are not captured run on this one too.
        with torch.cuda.stream(self._stream), self._epoch.reading(first):
            self._at_1.fill_(first)
            yield
        outside.wait_stream(self._stream)

    def run(self, i: int) -> Tensor:
        capacity = self._epoch.capacity_T[i]
        self._epoch.ready(i)
        if capacity not in self._graphs and self._uses[capacity] >= _WARM_STEPS:
            self._graphs[capacity] = self._captured(capacity)
        self._uses[capacity] += 1
        if capacity in self._graphs:
            self._graphs[capacity].replay()
        else:
            self._whole(capacity)
        return self._loss_T[i]

    def _whole(self, capacity: int) -> None:
        loss = self._update(self._epoch.batch_at(self._at_1, capacity))
        self._loss_T.index_copy_(0, self._at_1, loss.float().view(1))
        self._at_1 += 1

    def _captured(self, capacity: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._update.generator)
        self._update.optimizer.zero_grad(set_to_none=True)
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                self._whole(capacity)
        except RuntimeError as error:
            raise RunError(
                f"this training step cannot be captured as a CUDA graph ({str(error).splitlines()[0]}); "
                f"set {EAGER}=1 to run it call by call"
            ) from error
        return graph


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


def _arithmetic(device: torch.device, config: TrainConfig) -> AbstractContextManager[object]:
    wants_bf16 = config.precision == "bf16" or (
        config.precision == "auto"
        and device.type == "cuda"
        and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    # Without its cache of casts: a cast made under no_grad must not serve a forward with gradient.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if wants_bf16 else nullcontext()
