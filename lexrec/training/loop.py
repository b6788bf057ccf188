"""The training loop: batches, steps, validation, early stopping, checkpoints. Nothing else."""

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from lexrec.config import RunConfig
from lexrec.data.dataset import Dataset
from lexrec.data.stream import build_epoch
from lexrec.data.windows import Samples
from lexrec.evaluation.evaluate import EvaluationConfig, accuracy
from lexrec.evaluation.events import Asked, batches, evaluation_events
from lexrec.evaluation.scorer import ModelScorer, packed
from lexrec.models.base import SequenceModel
from lexrec.run_dir import RunDir
from lexrec.training import checkpoint
from lexrec.training.allocator import keep_memory
from lexrec.training.checkpoint import Progressed
from lexrec.training.optimizer import build_optimizer, set_lr
from lexrec.training.runner import Update, build_runner
from lexrec.training.step import Step
from lexrec.training.trackers import Tracker
from lexrec.training.watch import LossWatch

_OWN_STREAM = 2**32
"""Keeps the objective's draws apart from those of weights and dropout, which start from the seed itself."""
_CHECKPOINT_SECONDS = 300.0
"""Between checkpoints within an epoch; each epoch that is validated ends with one."""
_VALIDATED_AT_ONCE = 1024
"""Validation events ranked at once; up to four times as many on a GPU, which else waits for its host."""
_VALIDATED_PLACES = 2**18
"""Places of those, on a GPU, if they are more."""
_KEPT_PLACES = 2**25
"""Places of validation rows that may stay on the device: 256 MiB."""


class Spent(NamedTuple):
    """On optimizer steps alone, by this process."""

    seconds: float = 0.0
    n_steps: int = 0


class Trainer:
    """Trains one step module on one data set into one run directory."""

    def __init__(self, step: Step, dataset: Dataset, run: RunDir, device: torch.device) -> None:
        assert isinstance(run.config, RunConfig)
        self.config = run.config.train
        self.step, self.dataset, self.run, self.device = step.to(device), dataset, run, device
        self.optimizer = build_optimizer(step, self.config, step.model.pretrained())
        self.generator = torch.Generator(device).manual_seed(self.config.seed + _OWN_STREAM)
        max_len, extra = step.model.max_len, step.objective.extra_events
        self.samples = Samples.of(dataset, step.objective.sampling, max_len, extra)
        self.epoch = build_epoch(dataset, self.samples, max_len + extra, self.config.batch_size, device)
        self.runner = build_runner(Update(step, self.optimizer, self.generator, self.config), self.epoch)
        self.watch = LossWatch(run.path, self.epoch)
        self.spent = Spent()
        self._kept: list[Asked] | None = None
        first_U, last_U = dataset.train_end_U, dataset.validation_end_U
        if self.config.select_on == "test":
            first_U, last_U = last_U, dataset.offset_U[1:]
        self.has_validation = bool((last_U > first_U).any())

    @property
    def n_steps(self) -> int:
        """Optimizer steps of the longest possible run."""
        n_steps = self.config.max_epochs * len(self.epoch)
        return min(n_steps, self.config.max_steps or n_steps)

    def fit(self, trackers: Sequence[Tracker]) -> Progressed:
        """Train to the end, from the newest checkpoint if there is one.

        Raises:
            RunError: the loss became NaN or infinite.
        """
        model = self.step.model
        if self.device.type == "cpu":
            keep_memory()
        at = checkpoint.restore(self.run, model, self.optimizer, self.generator)
        for tracker in trackers:
            tracker.begin(self.n_steps, at)
        began = time.monotonic() - at.seconds
        while at.step < self.n_steps and at.n_worse < self.config.patience:
            epoch_began, first = time.monotonic(), at.step
            self._epoch(at, trackers, began)
            at.epoch, at.batch = at.epoch + 1, 0
            self.watch.check()  # waits for the device
            self.spent = Spent(
                self.spent.seconds + time.monotonic() - epoch_began, self.spent.n_steps + at.step - first
            )
            at.seconds = time.monotonic() - began
            if at.epoch % self.config.evaluate_every == 0 or at.step == self.n_steps:
                self._validate(at, trackers)
                self._save(at)
        if checkpoint.newest(self.run) is None:
            self._save(at)
        return at

    def _epoch(self, at: Progressed, trackers: Sequence[Tracker], began: float) -> None:
        self.step.train()
        last_saved = time.monotonic()
        self.samples.fill(self.epoch, seed=self.config.seed, number=at.epoch)
        # An average: to count a batch's own items would be to wait for the device.
        n_items = self.epoch.n_items // len(self.epoch)
        with self.runner.epoch(at.batch):
            for i in range(at.batch, min(len(self.epoch), at.batch + self.n_steps - at.step)):
                set_lr(self.optimizer, self.config, at.step, self.n_steps)
                loss = self.runner.run(i)
                at.step, at.batch, at.n_events = at.step + 1, i + 1, at.n_events + n_items
                self.watch.see(at.step, loss, i)
                for tracker in trackers:
                    tracker.step(at, loss, n_items)
                if time.monotonic() - last_saved > _CHECKPOINT_SECONDS:
                    self.watch.check()
                    at.seconds = time.monotonic() - began
                    self._save(at)
                    last_saved = time.monotonic()

    def _validate(self, at: Progressed, trackers: Sequence[Tracker]) -> None:
        """Measure, note whether it is the best so far, and write it down."""
        metrics = self._measure()
        value = metrics.get(self.config.metric, float(at.epoch))
        is_best = value > at.best
        if is_best:
            at.best, at.best_step, at.best_epoch, at.n_worse = value, at.step, at.epoch, 0
        else:
            at.n_worse += 1
        record: dict[str, Any] = {"epoch": at.epoch, "step": at.step, "seconds": round(at.seconds, 3)}
        self.run.log({**record, "best": is_best, **metrics})
        for tracker in trackers:
            tracker.validated(at, metrics, is_best)

    def _measure(self) -> dict[str, float]:
        """Validation metrics; none where the data set has no validation events: then the last epoch wins."""
        if not self.has_validation:
            return {}
        k = int(self.config.metric.partition("@")[2])
        scorer = ModelScorer(self.step.model)
        settings = EvaluationConfig(k=(k,))
        split = self.config.select_on
        return accuracy(scorer, self.dataset, self._asked(), settings, split)

    def _asked(self) -> Iterable[Asked]:
        """The validation events, kept on the device where they fit: they are the same after every epoch."""
        if self._kept is not None:
            return self._kept
        model = self.step.model
        events = evaluation_events(self.dataset, self.config.select_on)
        trims = model.layout == "packed"
        asked = batches(self.dataset, events, _at_once(model, self.device), model.max_len, trims=trims)
        if len(events) * model.max_len >= _KEPT_PLACES:
            return asked
        packed_batches = (one._replace(batch=packed(model, one.batch)) for one in asked)
        self._kept = [one.to(self.device) for one in packed_batches]
        return self._kept

    def _save(self, at: Progressed) -> None:
        checkpoint.save(self.run, self.step.model, self.optimizer, self.generator, at)


def _at_once(model: SequenceModel, device: torch.device) -> int:
    if device.type != "cuda":
        return _VALIDATED_AT_ONCE
    that_fit = int(_VALIDATED_PLACES / (model.max_len * model.tokens_per_event))
    return min(max(that_fit, _VALIDATED_AT_ONCE), 4 * _VALIDATED_AT_ONCE)
