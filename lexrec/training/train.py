"""`lexrec.train`: from a recipe and a data set to a finished run directory."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lexrec import registry
from lexrec.config import AnyRunConfig, BaselineConfig, RunConfig, differences, load_recipe
from lexrec.data.dataset import Dataset
from lexrec.errors import ConfigError, RunError
from lexrec.item_encoders.base import Catalogue
from lexrec.models import build_model, model_width
from lexrec.run_dir import RunDir, load_tables
from lexrec.training import checkpoint, rounds, start
from lexrec.training.device import choose_device
from lexrec.training.loop import Trainer
from lexrec.training.memory import peak_mib
from lexrec.training.step import Step
from lexrec.training.trackers import Tracker, build_tracker, check_trackers

if TYPE_CHECKING:
    from lexrec.tokens.table import TokenTable


def train(
    recipe: str | Path | AnyRunConfig,
    *,
    data: str | Path | Dataset,
    out: str | Path,
    overrides: Sequence[str] = (),
    device: str = "auto",
    resume: bool = False,
    track: Sequence[str | Tracker] = ("progress",),
) -> RunDir:
    """Train a recipe on a prepared data set; the best epoch is picked on the validation events.

    A recipe with `rounds`, or with changes in `first`, is trained in two, the first in rounds/1 of the run
    directory.

    Args:
        recipe: a shipped recipe's name, the path of a YAML file, or a config.
        data: a prepared folder or an open data set.
        out: the run directory to write; it must be new, unless `resume`.
        overrides: `a.b=value`, as on the command line.
        device: auto, cpu, cuda or cuda:N.
        resume: continue an unfinished run from its newest checkpoint; a finished one is returned as it is.
        track: any of progress, tensorboard, mlflow, and trackers of your own. What a tracker raises ends the
            run, which stays unfinished.

    Raises:
        ConfigError: the recipe is wrong, or its objective cannot train its model.
        DataError: the data set is missing or damaged.
        RunError: `out` is taken, a resume would change config or data, or the loss became NaN.
    """
    config = recipe if isinstance(recipe, AnyRunConfig) else load_recipe(recipe, overrides)
    dataset = data if isinstance(data, Dataset) else Dataset.load(data)
    where = choose_device(device)
    check_trackers(track)
    is_started = resume and (Path(out) / "config.yaml").is_file()
    run = _reopen(out, config, dataset) if is_started else None
    if run is not None and run.is_done:
        return run
    if run is None:
        RunDir(Path(out)).require_free()
    if isinstance(config, BaselineConfig):
        return _count(run or RunDir.create(out, config, dataset), config, dataset)
    # What is refused is refused before there is a directory in the way of the next try.
    if run is None and isinstance(config.first, str):
        start.require(config.first).require_dataset(dataset)
    tables = load_tables(config) if run is None else run.tables()
    step = build_step(config, dataset, tables)
    if not (dataset.train_end_U - dataset.start_U > 1).any():
        raise ConfigError("the data set has no user with two training events: there is nothing to predict")
    run = run or RunDir.create(out, config, dataset, tables)
    before = None
    if config.rounds is not None or config.first:
        before = _train_first(run, step, dataset, where, track)
    return _train_model(run, step, dataset, where, track, before)


def build_step(config: RunConfig, dataset: Dataset, tables: "Sequence[TokenTable]") -> Step:
    """Model and objective of a config, with fresh weights drawn from its seed.

    Raises:
        ConfigError: the objective cannot train this model.
    """
    torch.manual_seed(config.train.seed)
    catalogue = Catalogue(
        dataset.n_items, model_width(config), tuple(tables), dataset.item_table, dataset.train_count_I
    )
    objective = registry.load("objectives", config.objective.name)  # type: ignore[attr-defined]
    return Step(build_model(config, catalogue), objective(config.objective, dataset.n_items))


def _reopen(out: str | Path, config: AnyRunConfig, dataset: Dataset) -> RunDir:
    run = RunDir.reopen(out)
    changed = differences(run.config, config)
    if changed:
        raise RunError(f"{out} was started with another config ({'; '.join(changed)}); resume it unchanged")
    run.require_dataset(dataset)
    run.require_lm()
    return run


def _count(run: RunDir, config: BaselineConfig, dataset: Dataset) -> RunDir:
    from safetensors.torch import save_file

    component = registry.load("baselines", config.baseline.name)  # type: ignore[attr-defined]
    folder = run.checkpoint(0)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(component(config.baseline).fit(dataset).state(), folder / "model.safetensors")
    run.finish({"best_step": 0, "best_epoch": 0})
    return run


def _train_first(
    run: RunDir, second: Step, dataset: Dataset, device: torch.device, track: Sequence[str | Tracker]
) -> dict[str, Any]:
    """Make `second` what Round 2 begins with, and return what that has cost."""
    config = run.config
    assert isinstance(config, RunConfig)
    has_begun = checkpoint.newest(run) is not None  # Its checkpoint holds all that Round 2 was given.
    if has_begun and config.first:
        return start.spent(run)
    if isinstance(config.first, str):
        first = start.require(config.first)
    else:
        first = rounds.first_run(run, dataset, run.tables())
    if not has_begun:
        if not first.is_done:
            _train_model(first, _step_of(first, dataset), dataset, device, track)
        if config.first:
            start.begin(second.model, run, first)
        else:
            rounds.begin_second(second, run, _step_of(first, dataset), dataset, device)
        rounds.seed_second(config)
    return first.summary


def _step_of(run: RunDir, dataset: Dataset) -> Step:
    assert isinstance(run.config, RunConfig)
    return build_step(run.config, dataset, run.tables())


def _train_model(
    run: RunDir,
    step: Step,
    dataset: Dataset,
    device: torch.device,
    track: Sequence[str | Tracker],
    before: dict[str, Any] | None = None,
) -> RunDir:
    """Train to the end and finish the run; `before`: the costs of what it started from, which count too."""
    trainer = Trainer(step, dataset, run, device)
    trackers = [build_tracker(name, run) for name in track]
    try:
        at = trainer.fit(trackers)
    finally:
        for tracker in trackers:
            tracker.end()
    before = before or {}
    run.finish(
        {
            "best_step": at.best_step,
            "best_epoch": at.best_epoch,
            "epochs": at.epoch,
            "steps": at.step,
            "steps_before": before.get("steps", 0),
            "events": before.get("events", 0) + at.n_events,
            "tokens": before.get("tokens", 0) + round(at.n_events * step.model.tokens_per_event),
            trainer.config.metric: at.best if trainer.has_validation and at.best_epoch else None,
            "seconds": round(before.get("seconds", 0.0) + at.seconds, 3),
            "step_ms": round(1000 * trainer.spent.seconds / max(trainer.spent.n_steps, 1), 3),
            "peak_mib": peak_mib(device),
            "parameters": sum(p.numel() for p in trainer.step.parameters() if p.requires_grad),
            "parameters_total": sum(p.numel() for p in trainer.step.parameters()),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        }
    )
    # Only after DONE: a run killed in between would have nothing left to resume from.
    checkpoint.keep_best(run, at)
    return run
