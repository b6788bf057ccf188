"""`lexrec.sweep`: search the settings of a recipe by the validation events, with Optuna.

    OUT/sweep.json      what is searched; a resume with anything else is refused
    OUT/study.journal   every trial, shared by the processes that work on it
    OUT/trials/NNNN/    a run directory a trial; a trial that was given up keeps its log and config
    OUT/best.yaml       the best recipe so far, complete
    OUT/report.json     best, trials, importance; written last

Only validation events are looked at. The best of many trials on one seed looks better than it is, so what it
is worth is for `lexrec compare` to say, on test events and with seeds that took no part here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lexrec.compare._trials import Plan, Searcher, build_report, recover
from lexrec.compare.processes import close, start
from lexrec.compare.space import check_space
from lexrec.config import AnyRunConfig, Config, RunConfig, differences, load_recipe, run_config
from lexrec.data.dataset import Dataset
from lexrec.errors import ConfigError, RunError
from lexrec.evaluation.events import evaluation_events
from lexrec.run_dir import read_json, write_json
from lexrec.training.device import choose_device

SWEEP, REPORT = "sweep.json", "report.json"


class SweepConfig(Config):
    """What is searched, and for how long."""

    space: tuple[str, ...] = ()
    """Each `key=low..high`, with `:log` or `:step` behind it or not, `key=[a, b]` or a YAML file of them."""
    overrides: tuple[str, ...] = ()
    """Changes to the recipe that hold in every trial."""
    trials: int = Field(50, ge=1)
    """Trials in all, those of earlier calls, given up and failed ones included."""
    metric: str | None = Field(None, pattern=r"^(hr|ndcg|mrr|recall)@[1-9][0-9]*$")
    """Of a counting baseline: the validation metric, by default ndcg@10. A model has its train.metric."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """When to give a trial up: below the median of the others at the same epoch, by brackets, never."""
    seed: int = Field(0, ge=0)
    """Of the search; the trials themselves all train with the recipe's train.seed."""


def sweep(
    recipe: str | Path,
    *,
    data: str | Path,
    out: str | Path,
    settings: SweepConfig,
    jobs: int = 1,
    device: str = "auto",
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Search, and write the best recipe to `out`/best.yaml.

    A search that was stopped, or that is to have more trials, is started again with the same `out`: finished
    trials count, and one that was cut off goes on from its checkpoint.

    Args:
        recipe: a shipped recipe's name or a YAML file; a baseline's settings can be searched too.
        data: a prepared folder with validation events.
        out: folder of the search.
        settings: space, number of trials, pruner.
        jobs: processes that work on it; more than one makes the order of trials a matter of timing.
        device: auto, cpu, cuda or cuda:N.
        say: with one job, is told of each trial that ends; several write to standard error themselves.

    Returns:
        {"metric": ..., "best": {...} or None, "trials": [...], "importance": {...}}, as in report.json.

    Raises:
        ConfigError: the recipe, the space or the device is wrong, or Optuna is not installed.
        DataError: the data set is missing or has no validation events.
        RunError: `out` holds other things or another search, or every trial failed.
    """
    from filelock import FileLock, Timeout

    _require_optuna()
    if jobs < 1:
        raise ConfigError(f"--jobs is at least 1, got {jobs}")
    choose_device(device)
    base = load_recipe(recipe, settings.overrides)
    plan = Plan(
        recipe=str(recipe),
        data=str(data),
        out=str(out),
        device=device,
        metric=_metric(base, settings),
        n_epochs=base.train.max_epochs if isinstance(base, RunConfig) else 1,
        space=list(settings.space),
        overrides=list(settings.overrides),
        n_trials=settings.trials,
        pruner=settings.pruner,
        seed=settings.seed,
    )
    check_space(plan.dimensions, lambda changes: load_recipe(recipe, [*settings.overrides, *changes]))
    folder = _prepared(Path(out), _identity(plan, base))
    try:
        with FileLock(folder / ".lock", timeout=0):
            return _search(plan, jobs, say)
    except Timeout as error:
        raise RunError(f"{out} is being searched by another process; wait for it to end") from error


def _search(plan: Plan, jobs: int, say: Callable[[str], None]) -> dict[str, Any]:
    report_path = Path(plan.out) / REPORT
    report_path.unlink(missing_ok=True)
    recover(plan)
    _work(plan, jobs, say)
    report = build_report(plan)
    write_json(report_path, report)
    if report["best"] is None:
        errors = [trial["error"] for trial in report["trials"] if trial["error"]]
        why = f"; the last said: {errors[-1]}" if errors else ""
        raise RunError(f"none of {len(report['trials'])} trials succeeded{why}")
    return report


def _require_optuna() -> None:
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise ConfigError("a sweep needs Optuna, which is not installed; run: pip install 'lexrec[sweep]'")


def _metric(base: AnyRunConfig, settings: SweepConfig) -> str:
    if not isinstance(base, RunConfig):
        return settings.metric or "ndcg@10"
    if base.train.select_on != "validation":
        raise ConfigError(
            f"train.select_on={base.train.select_on} would choose settings by the events that are to judge "
            "them; search with train.select_on=validation"
        )
    if settings.metric not in (None, base.train.metric):
        raise ConfigError(
            f"metric {settings.metric!r} is not what this recipe picks its best epoch by; "
            f"set train.metric={settings.metric} instead"
        )
    return base.train.metric


def _identity(plan: Plan, base: AnyRunConfig) -> dict[str, Any]:
    """What makes two searches the same one; more trials or another device do not.

    Raises:
        DataError: the data set is missing or has no validation events.
    """
    dataset = Dataset.load(plan.data)
    evaluation_events(dataset, "validation")
    return {
        "config": base.model_dump(mode="json"),
        "space": [str(dimension) for dimension in plan.dimensions],
        "data": dataset.fingerprint[:12],
        "metric": plan.metric,
        "pruner": plan.pruner,
        "seed": plan.seed,
    }


def _prepared(out: Path, identity: dict[str, Any]) -> Path:
    """The folder, new or of this very search."""
    if (out / SWEEP).is_file():
        _require_same(out, read_json(out / SWEEP), identity)
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} already holds other files; choose another --out")
    try:
        (out / "trials").mkdir(parents=True, exist_ok=True)
        write_json(out / SWEEP, identity)
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror or error}") from error
    return out


def _require_same(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = [
        f"{key}: {_text(old.get(key))} -> {_text(value)}"
        for key, value in new.items()
        if key != "config" and old.get(key) != value
    ]
    if old["config"] != new["config"]:
        changed += differences(run_config(old["config"]), run_config(new["config"]))
    if changed:
        raise RunError(f"{out} holds another search ({'; '.join(changed)}); choose another --out")


def _text(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def _work(plan: Plan, jobs: int, say: Callable[[str], None]) -> None:
    if jobs == 1:
        Searcher(plan).work(say)
        return
    devices = _devices(plan.device)
    orders = [{**plan._asdict(), "number": i, "device": devices[i % len(devices)]} for i in range(jobs)]
    processes = [start("lexrec.compare._trials", order, jobs) for order in orders]
    try:
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.kill()
            close(process)
    failed = [code for code in codes if code]
    if failed:
        raise RunError(
            f"{len(failed)} of {jobs} processes ended early (exit code {failed[0]}); what is finished is "
            "kept: start again with the same --out"
        )


def _devices(name: str) -> list[str]:
    """What processes take turns on: auto is every GPU."""
    import torch

    if name != "auto" or choose_device(name).type == "cpu":
        return [name]
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
