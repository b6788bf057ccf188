"""`lexrec.train`: from a recipe and a data set to a finished run directory."""

from collections.abc import Sequence
from pathlib import Path

import torch

from lexrec import registry
from lexrec.config import AnyRunConfig, BaselineConfig, RunConfig, differences, load_recipe
from lexrec.data.dataset import Dataset
from lexrec.errors import ConfigError, RunError
from lexrec.item_encoders.base import Catalogue
from lexrec.models import build_model
from lexrec.run_dir import RunDir, load_tables
from lexrec.training import checkpoint
from lexrec.training.loop import Trainer
from lexrec.training.step import Step
from lexrec.training.trackers import build_tracker


def train(
    recipe: str | Path | AnyRunConfig,
    *,
    data: str | Path | Dataset,
    out: str | Path,
    overrides: Sequence[str] = (),
    device: str = "auto",
    resume: bool = False,
    track: Sequence[str] = ("progress",),
) -> RunDir:
    """Train a recipe on a prepared data set; the best epoch is picked on the validation events.

    Args:
        recipe: a shipped recipe's name, the path of a YAML file, or a config.
        data: a prepared folder or an open data set.
        out: the run directory to write; it must be new, unless `resume`.
        overrides: `a.b=value`, as on the command line.
        device: auto, cpu, cuda or cuda:N.
        resume: continue an unfinished run from its newest checkpoint; a finished one is returned as it is.
        track: any of progress, tensorboard, mlflow.

    Raises:
        ConfigError: the recipe is wrong, or its objective cannot train its model.
        DataError: the data set is missing or damaged.
        RunError: `out` is taken, a resume would change config or data, or the loss became NaN.
    """
    config = recipe if isinstance(recipe, AnyRunConfig) else load_recipe(recipe, overrides)
    dataset = data if isinstance(data, Dataset) else Dataset.load(data)
    where = choose_device(device)
    if resume and (Path(out) / "config.yaml").is_file():
        run = _reopen(out, config, dataset)
        if run.is_done:
            return run
    else:
        tables = load_tables(config) if isinstance(config, RunConfig) else ()
        run = RunDir.create(out, config, dataset, tables)
    if isinstance(config, BaselineConfig):
        return _count(run, config, dataset)
    return _train_model(run, config, dataset, where, track)


def choose_device(name: str) -> torch.device:
    """The device of a name; auto is the GPU where there is one.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not usable here; use auto, cpu, cuda or cuda:N") from error
    return device


def build_step(config: RunConfig, dataset: Dataset) -> Step:
    """Model and objective of a config, with fresh weights drawn from its seed."""
    torch.manual_seed(config.train.seed)
    catalogue = Catalogue(dataset.n_items, config.model.dim, load_tables(config))  # type: ignore[attr-defined]
    objective = registry.load("objectives", config.objective.name)  # type: ignore[attr-defined]
    return Step(build_model(config, catalogue), objective(config.objective, dataset.n_items))


def _reopen(out: str | Path, config: AnyRunConfig, dataset: Dataset) -> RunDir:
    run = RunDir.reopen(out)
    changed = differences(run.config, config)
    if changed:
        raise RunError(f"{out} was started with another config ({'; '.join(changed)}); resume it unchanged")
    run.require_dataset(dataset)
    return run


def _count(run: RunDir, config: BaselineConfig, dataset: Dataset) -> RunDir:
    from safetensors.torch import save_file

    component = registry.load("baselines", config.baseline.name)  # type: ignore[attr-defined]
    folder = run.checkpoint(0)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(component(config.baseline).fit(dataset).state(), folder / "model.safetensors")
    run.finish({"best_step": 0, "best_epoch": 0})
    return run


def _train_model(
    run: RunDir, config: RunConfig, dataset: Dataset, device: torch.device, track: Sequence[str]
) -> RunDir:
    trainer = Trainer(build_step(config, dataset), dataset, run, device)
    if not len(trainer.samples):
        raise ConfigError("the data set has no user with two training events: there is nothing to predict")
    trackers = [build_tracker(name, run) for name in track]
    try:
        at = trainer.fit(trackers)
    finally:
        for tracker in trackers:
            tracker.end()
    checkpoint.keep_best(run, at)
    run.finish(
        {
            "best_step": at.best_step,
            "best_epoch": at.best_epoch,
            "epochs": at.epoch,
            "steps": at.step,
            config.train.metric: at.best if trainer.has_validation else None,
            "seconds": round(at.seconds, 3),
            "parameters": sum(p.numel() for p in trainer.step.parameters() if p.requires_grad),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        }
    )
    return run
