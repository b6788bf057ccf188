"""Trials of a sweep: ask for settings, train with them, tell what came of it.

Several processes do the same on one journal file: `python -m lexrec.compare._trials`, the plan on the first
line of standard input. A journal needs no server and survives a killed process.
"""

import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lexrec.compare._worker import serve
from lexrec.compare.space import Dimension, parse_space
from lexrec.config import RunConfig, load_recipe
from lexrec.data.dataset import Dataset
from lexrec.errors import LexrecError, RunError
from lexrec.run_dir import RunDir
from lexrec.training.checkpoint import Progressed
from lexrec.training.evaluate_run import evaluate
from lexrec.training.train import train

if TYPE_CHECKING:
    import optuna

_FOR_IMPORTANCE = 10
"""Finished trials below which nothing is said about which setting matters."""
_STARTUP, _WARMUP = 5, 3
"""The median is asked once so many trials have ended, and from this epoch of a trial on."""

Say = Callable[[str], None]


class Plan(NamedTuple):
    """What a process has to know; plain data."""

    recipe: str
    data: str
    out: str
    device: str
    metric: str
    n_epochs: int
    space: list[str]
    overrides: list[str]
    n_trials: int
    pruner: str
    seed: int

    @property
    def dimensions(self) -> list[Dimension]:
        return parse_space(self.space)

    def folder(self, number: int) -> Path:
        """The run directory of a trial."""
        return Path(self.out) / "trials" / f"{number:04d}"


@dataclass
class Reporter:
    """A tracker that tells Optuna of each validation, and ends the run where Optuna gives the trial up."""

    trial: "optuna.Trial"
    metric: str
    _before: int = 0
    """Epochs of an earlier round of the same run."""
    _last: int = 0

    def begin(self, n_steps: int, at: Progressed) -> None:
        self._before = self._last

    def step(self, at: Progressed, loss: Tensor, n_items: int) -> None:
        pass

    def validated(self, at: Progressed, metrics: dict[str, float], is_best: bool) -> None:
        import optuna

        self._last = self._before + at.epoch
        self.trial.report(metrics[self.metric], self._last)
        if self.trial.should_prune():
            raise optuna.TrialPruned

    def end(self) -> None:
        pass


class Searcher:
    """One process at work on a plan."""

    def __init__(self, plan: Plan, number: int = 0) -> None:
        self.plan = plan
        self.dimensions = plan.dimensions
        self.study = open_study(plan, plan.seed + number)

    @cached_property
    def dataset(self) -> Dataset:
        return Dataset.load(self.plan.data)

    def work(self, say: Say) -> None:
        """Trial after trial, until there are as many as planned."""
        from filelock import FileLock

        ask_alone = FileLock(Path(self.plan.out) / ".ask.lock")
        while True:
            with ask_alone:
                if len(counted(self.study)) >= self.plan.n_trials:
                    return
                trial = self.study.ask()
            self._try(trial)
            with ask_alone:
                _write_best(self.plan, self.study)
            say(_line(self.study.trials[trial.number], self.study, self.plan))

    def _try(self, trial: "optuna.Trial") -> None:
        import optuna

        states = optuna.trial.TrialState
        number = trial.user_attrs.get("run", trial.number)
        trial.set_user_attr("run", number)
        folder = self.plan.folder(number)
        changes = [dimension.suggest(trial) for dimension in self.dimensions]
        trial.set_user_attr("overrides", changes)
        try:
            value = self._value(trial, changes, folder)
        except optuna.TrialPruned:
            self.study.tell(trial, state=states.PRUNED)
        except (LexrecError, torch.OutOfMemoryError) as error:
            trial.set_user_attr("error", " ".join(str(error).split()))
            self.study.tell(trial, state=states.FAIL)
        else:
            self.study.tell(trial, value)
            return
        # Nobody will go on with it, and a hundred of them would fill a disk.
        for checkpoints in list(folder.rglob("checkpoints")):
            shutil.rmtree(checkpoints, ignore_errors=True)

    def _value(self, trial: "optuna.Trial", changes: list[str], folder: Path) -> float:
        plan = self.plan
        config = load_recipe(plan.recipe, [*plan.overrides, *changes])
        reporter = Reporter(trial, plan.metric)
        run = train(config, data=self.dataset, out=folder, device=plan.device, resume=True, track=[reporter])
        if isinstance(config, RunConfig):
            if run.summary[plan.metric] is None:
                raise RunError(f"{folder} was never validated; train.max_epochs is {config.train.max_epochs}")
            return float(run.summary[plan.metric])
        return evaluate(run, split="validation", data=plan.data, device=plan.device).metrics[plan.metric]


def open_study(plan: Plan, seed: int) -> "optuna.Study":
    """The study in the journal of a folder, made if it is not there."""
    import optuna
    from filelock import FileLock
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal = Path(plan.out) / "study.journal"
    # The system lets go of this lock when a process is killed; Optuna's own would stall the next one.
    lock: Any = FileLock(journal.with_suffix(".lock"))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruners = {
        "median": lambda: optuna.pruners.MedianPruner(_STARTUP, _WARMUP),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(1, max(plan.n_epochs, 1)),
        "none": optuna.pruners.NopPruner,
    }
    return optuna.create_study(
        study_name="sweep",
        storage=JournalStorage(JournalFileBackend(str(journal), lock_obj=lock)),
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=pruners[plan.pruner](),
        direction="maximize",
        load_if_exists=True,
    )


def recover(plan: Plan) -> None:
    """Queue again what a killed process left behind, to go on in the same run directory."""
    import optuna

    study = open_study(plan, plan.seed)
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if len(trial.params) == len(plan.dimensions):
            study.enqueue_trial(trial.params, user_attrs={"run": trial.user_attrs["run"]})


def counted(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """Trials that were begun and not cut off."""
    return [
        trial for trial in study.get_trials(deepcopy=False) if _state(trial) not in ("waiting", "cut off")
    ]


def build_report(plan: Plan) -> dict[str, Any]:
    """What the search found so far."""
    study = open_study(plan, plan.seed)
    trials = [_described(trial, plan) for trial in counted(study)]
    finished = [trial for trial in trials if trial["state"] == "complete"]
    best = max(finished, key=lambda trial: trial["value"], default=None)
    importance = _importance(study) if len(finished) >= _FOR_IMPORTANCE else {}
    return {"metric": plan.metric, "best": best, "trials": trials, "importance": importance}


def _described(trial: "optuna.trial.FrozenTrial", plan: Plan) -> dict[str, Any]:
    run = trial.user_attrs.get("run", trial.number)
    seconds = None if trial.duration is None else round(trial.duration.total_seconds(), 1)
    return {
        "number": trial.number,
        "state": _state(trial),
        "value": trial.value if _state(trial) == "complete" else None,
        "overrides": trial.user_attrs.get("overrides", []),
        "last_epoch": trial.last_step,
        "seconds": seconds,
        "error": trial.user_attrs.get("error"),
        "run": str(plan.folder(run)),
    }


def _state(trial: "optuna.trial.FrozenTrial") -> str:
    """complete, pruned, fail, running, waiting; cut off: its process was killed, another trial goes on."""
    name = trial.state.name.lower()
    return "cut off" if name == "fail" and "error" not in trial.user_attrs else name


def _importance(study: "optuna.Study") -> dict[str, float]:
    """How much of what decides about the best trials each setting has (PED-ANOVA, arXiv:2304.10255)."""
    import optuna

    with warnings.catch_warnings():
        # It warns where a choice was hardly tried; the number is only a hint anyway.
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study)
    return {key: round(float(share), 3) for key, share in found.items()}


def _write_best(plan: Plan, study: "optuna.Study") -> None:
    finished = [trial for trial in counted(study) if _state(trial) == "complete"]
    if not finished:
        return
    best = max(finished, key=lambda trial: trial.value or 0.0)
    run = RunDir.open(plan.folder(best.user_attrs["run"]))
    head = (
        f"# Best of {len(finished)} trials of {plan.recipe} so far: trial {best.number}, "
        f"{plan.metric} {best.value:.5f} on validation.\n"
    )
    path = Path(plan.out) / "best.yaml"
    partial = path.with_suffix(".part")
    partial.write_text(head + (run.path / "config.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    partial.replace(path)


def _line(trial: "optuna.trial.FrozenTrial", study: "optuna.Study", plan: Plan) -> str:
    found = _described(trial, plan)
    ended = len([other for other in counted(study) if other.state.is_finished()])
    how = {
        "complete": f"{plan.metric} {found['value'] or 0.0:.4f}",
        "pruned": f"given up after epoch {found['last_epoch']}",
        "fail": f"failed: {found['error']}",
    }[found["state"]]
    changes = " ".join(found["overrides"])
    return f"[{ended}/{plan.n_trials}] trial {trial.number}: {how}, {found['seconds']:.0f} s, {changes}"


def _serve(order: dict[str, Any]) -> None:
    number = order.pop("number")
    Searcher(Plan(**order), number).work(lambda text: print(text, file=sys.stderr))  # noqa: T201


if __name__ == "__main__":
    sys.exit(serve(_serve))
