"""lexrec, by the functions that its front names: train, evaluate and Recommender."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lexrec
from benchmarks.peers.meter import StepMeter
from benchmarks.peers.setting import Histories, K, Setting

_NEVER = 1_000_000


class _Enough(Exception):  # noqa: N818
    """The meter is over."""


class _Tracker:
    """Passes steps on to a meter. Targets are an epoch's average: its batches are drawn at random."""

    def __init__(self, meter: StepMeter) -> None:
        self.meter = meter

    def begin(self, n_steps: int, at: Any) -> None:
        pass

    def step(self, at: Any, loss: Any, n_items: int) -> None:
        self.meter.step(n_items)
        if self.meter.is_over:
            raise _Enough

    def validated(self, at: Any, metrics: Any, is_best: bool) -> None:
        pass

    def end(self) -> None:
        pass


class Library:
    version = lexrec.__version__

    def __init__(self, setting: Setting, histories: Histories, work: Path) -> None:
        self.setting, self.histories, self.work = setting, histories, work

    def train(self, meter: StepMeter) -> None:
        shutil.rmtree(self.work / "endless", ignore_errors=True)
        shutil.rmtree(self.work / "run", ignore_errors=True)
        # A run that is stopped cannot be asked; what it costs to ask does not depend on the weights.
        run = self._train("run", 0)
        meter.parameters = run.summary["parameters"]
        try:
            self._train("endless", 1000, (_Tracker(meter),))
        except _Enough:
            shutil.rmtree(self.work / "endless")

    def load(self) -> None:
        self.recommender = lexrec.Recommender.load(self.work / "run")

    def evaluate(self) -> dict[str, float]:
        metrics = lexrec.evaluate(self.work / "run", split="test").metrics
        return {name: metrics[name] for name in ("hr@10", "ndcg@10")}

    def api(self, users: Sequence[int]) -> Callable[[], Any]:
        items = self.recommender.items
        asked = [items.take(self.histories.events(user, 1)) for user in users]
        return lambda: self.recommender.recommend(asked, k=K)

    def lists(self, answer: Any) -> list[list[int]]:
        return [[self.recommender.items.index(id_) for id_ in ids] for ids in answer.item_ids]

    def raw(self, users: Sequence[int]) -> Callable[[], Any]:
        histories = [self.histories.events(user, 1) for user in users]
        return lambda: self.recommender.ranker.rank(histories, K, histories)

    def _train(self, name: str, n_epochs: int, track: Sequence[Any] = ()) -> Any:
        s = self.setting
        overrides = {
            "model.dim": s.dim,
            "model.n_layers": s.n_layers,
            "model.n_heads": s.n_heads,
            "model.max_len": s.max_len,
            "model.dropout": s.dropout,
            "model.ffn_factor": 1,
            "model.activation": "relu",
            "objective.loss": s.loss,
            "objective.n_negatives": 1,
            "train.batch_size": s.batch_size,
            "train.lr": s.lr,
            "train.seed": s.seed,
            "train.max_epochs": n_epochs,
            "train.evaluate_every": _NEVER,
        }
        if s.loss == "ce":
            del overrides["objective.n_negatives"]
        return lexrec.train(
            "sasrec",
            data=self.histories.folder,
            out=self.work / name,
            overrides=[f"{key}={value}" for key, value in overrides.items()],
            device="cpu",
            track=track,
        )
