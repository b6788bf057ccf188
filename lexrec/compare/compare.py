"""`lexrec.compare`: several arms with several seeds under one protocol, and what their differences are worth.

OUT/compare.json                 data, settings and arms of the last call
OUT/arms/NAME/seed-N/            one run directory a run; OUT/arms/NAME/counted/ for a baseline
OUT/arms/NAME/flops.json         what a training step costs
OUT/logs/NAME-seed-N.log         what the run's process wrote
OUT/report.json                  the comparison; written last
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from lexrec.compare.arms import Arm, changed, with_baselines
from lexrec.compare.processes import Ended, Task, side_by_side
from lexrec.compare.report import Comparison, build_report
from lexrec.compare.results import Run, Users, evaluation_folder, flops_file, read_arm, require_alike
from lexrec.compare.settings import CompareConfig
from lexrec.config import RunConfig, differences
from lexrec.data.dataset import Dataset
from lexrec.errors import ProtocolError, RunError
from lexrec.evaluation.evaluate import Evaluation
from lexrec.evaluation.metrics import per_event
from lexrec.run_dir import RunDir, read_json, write_json
from lexrec.training.device import choose_device
from lexrec.training.start import will_select_on

_LOCK = ".lock"
_JOBS_A_GPU = 4
_MOST_JOBS = 8


def compare(
    arms: Sequence[str],
    *,
    data: str | Path,
    out: str | Path,
    settings: CompareConfig | None = None,
    device: str = "auto",
    jobs: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Comparison:
    """Train every arm with every seed, measure all alike, and say which differences are more than luck.

    Finished runs in `out` are used again and unfinished ones go on, so a comparison that was killed, or that
    is to have more seeds or arms, is simply started again.

    Args:
        arms: each a recipe's name, a YAML file, or "NAME: RECIPE key=value ..."; the first is what the others
            are held against. `{seed}` in a value is the seed of the run. Counting baselines are added.
        data: a prepared folder.
        out: where runs and report go.
        settings: seeds, metric, rules; the defaults ask for what a verdict takes.
        device: auto (every GPU, or the CPU), cpu, cuda or cuda:N.
        jobs: runs side by side; by default four a GPU, or as many as there are cores, at most eight.
        say: told one line as each run ends.

    Raises:
        ConfigError: an arm or the device is wrong.
        DataError: the data set is missing, damaged, or has no events to measure.
        RunError: `out` holds runs of other data or of other configs, or a result is damaged.
        ProtocolError: two arms would not be measured alike, or finished runs were not; before any training.
    """
    settings, folder = settings or CompareConfig(), Path(out)
    dataset = Dataset.load(data)
    users = Users.of(dataset, settings)
    all_arms = [changed(arm, settings.changes) for arm in with_baselines(arms)]
    settings.family([arm.name for arm in all_arms])  # A pair that is none is found before it costs anything.
    runs = [run for arm in all_arms for run in _runs(arm, folder, settings)]
    _require_same(folder, dataset, runs)
    _require_alike(runs, settings)
    devices = _devices(device, jobs)
    with _alone(folder):
        _write_card(folder, dataset, settings, all_arms)
        done = list(_work(runs, dataset, settings, devices, say or (lambda _: None)))
        results = [
            read_arm(arm, [run for run in done if run.arm == arm], settings, users) for arm in all_arms
        ]
        report = build_report(results, users, settings)
        write_json(folder / "report.json", report.json())
    return report


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No second comparison may work on the same runs meanwhile."""
    lock = FileLock(folder / _LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        said = f"another comparison is at work in {folder}; wait for it, or choose another --out"
        raise RunError(said) from error
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def _runs(arm: Arm, folder: Path, settings: CompareConfig) -> list[Run]:
    place = folder / "arms" / arm.name
    if arm.is_counted:
        return [Run(arm, 0, place / "counted")]
    return [Run(arm, seed, place / f"seed-{seed}") for seed in range(1, settings.seeds + 1)]


def _require_same(folder: Path, dataset: Dataset, runs: Sequence[Run]) -> None:
    """Refuse a folder whose runs are not those that would be made, before anything is written."""
    others = [path for path in folder.glob("*") if path.name != _LOCK]
    if others and not (folder / "compare.json").is_file():
        raise RunError(f"{folder} holds other files than a comparison's; choose another --out")
    for run in runs:
        config = run.arm.config(run.seed)
        if not (run.path / "config.yaml").is_file():
            continue
        there = RunDir.reopen(run.path)
        there.require_dataset(dataset)
        changes = differences(there.config, config)
        if changes:
            raise RunError(
                f"{run.path} was made with another config ({'; '.join(changes)}); "
                "give the arm another name, or choose another --out"
            )


def _require_alike(runs: Sequence[Run], settings: CompareConfig) -> None:
    """Refuse what could not be compared in the end, before anything is trained."""
    chosen_on: dict[str, list[str]] = {}
    for arm in dict.fromkeys(run.arm for run in runs):
        config = arm.config(1)
        if isinstance(config, RunConfig):
            chosen_on.setdefault(will_select_on(config), []).append(arm.name)
    if len(chosen_on) > 1:
        named = "; ".join(f"{part}: {', '.join(names)}" for part, names in chosen_on.items())
        raise ProtocolError(
            f"one part has to choose the epochs of every arm (train.select_on is {named}); "
            "set it alike, such as train.select_on=validation in each arm"
        )
    places = [evaluation_folder(run, settings) for run in runs]
    measured = [Evaluation.load(place) for place in places if (place / "metrics.json").is_file()]
    require_alike([result.protocol for result in measured])


def _devices(name: str, jobs: int | None) -> list[str]:
    """A place for each process at work, GPUs taking turns."""
    import torch

    device, n_cores = choose_device(name), os.cpu_count() or 1
    if device.type == "cpu":
        return ["cpu"] * (jobs or min(n_cores, _MOST_JOBS))
    gpus = [name] if name != "auto" else [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    n = jobs or min(_JOBS_A_GPU * len(gpus), n_cores)
    return [gpus[i % len(gpus)] for i in range(n)]


def _write_card(folder: Path, dataset: Dataset, settings: CompareConfig, arms: Sequence[Arm]) -> None:
    try:
        (folder / "report.json").unlink(missing_ok=True)
        card = {
            "data": dataset.fingerprint,
            "settings": settings.model_dump(mode="json"),
            "arms": {arm.name: [arm.recipe, *arm.overrides] for arm in arms},
        }
        write_json(folder / "compare.json", card)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}") from error


def _work(
    runs: Sequence[Run],
    dataset: Dataset,
    settings: CompareConfig,
    devices: Sequence[str],
    say: Callable[[str], None],
) -> Iterator[Run]:
    """Do the runs that are not done; yields each, done before or now, with its error if it failed."""
    finished = [run for run in runs if _is_finished(run, settings)]
    missing = {run.name: run for run in _seed_by_seed(runs) if run not in finished}
    if finished:
        say(f"{len(finished)} of {len(runs)} runs are there already")
    yield from finished
    tasks = [_task(run, dataset, settings) for run in missing.values()]
    began = time.monotonic()
    for n_ended, ended in enumerate(_tried_twice(tasks, devices, say), 1):
        run = replace(missing[ended.task.name], error=ended.error)
        left = (time.monotonic() - began) / n_ended * (len(tasks) - n_ended)
        count = f"[{len(finished) + n_ended}/{len(runs)}]"
        said = "; ".join([_outcome(run, settings), *ended.notes])
        say(f"{count} {run.name}: {said}" + (f", about {_time(left)} left" if left else ""))
        yield run


def _tried_twice(
    tasks: Sequence[Task], devices: Sequence[str], say: Callable[[str], None]
) -> Iterator[Ended]:
    """Each task once it is over; one that lacked memory beside others is tried again, alone on its device."""
    again = []
    for ended in side_by_side(tasks, devices):
        if ended.lacked_memory and len(devices) > 1:
            say(f"{ended.task.name}: {ended.error}; tried again once the others have ended")
            again.append(ended.task)
        else:
            yield ended
    yield from side_by_side(again, list(dict.fromkeys(devices)))


def _seed_by_seed(runs: Sequence[Run]) -> list[Run]:
    """All arms with seed 1, then all with seed 2: whoever looks in early sees every arm."""
    return sorted(runs, key=lambda run: run.seed)


def _is_finished(run: Run, settings: CompareConfig) -> bool:
    is_measured = (evaluation_folder(run, settings) / "metrics.json").is_file()
    is_counted = run.seed != 1 or flops_file(run.path.parent).is_file()
    return RunDir(run.path).is_done and is_measured and is_counted


def _task(run: Run, dataset: Dataset, settings: CompareConfig) -> Task:
    log = run.path.parents[2] / "logs" / f"{run.path.parent.name}-{run.path.name}.log"
    order = {
        "config": run.arm.config(run.seed).model_dump(mode="json"),
        "data": str(dataset.folder),
        "out": str(run.path),
        "split": settings.split,
        "evaluation": settings.evaluation.model_dump(mode="json"),
        "keep_weights": settings.keep_weights,
        "flops": str(flops_file(run.path.parent)) if run.seed == 1 else "",
    }
    return Task(run.name, order, log)


def _outcome(run: Run, settings: CompareConfig) -> str:
    if run.error is not None:
        return f"failed: {run.error}"
    rank_E = Evaluation.load(evaluation_folder(run, settings)).rank_E
    found = f"{settings.metric} {per_event(rank_E, settings.metric).mean():.4f}"
    summary = read_json(run.path / "DONE")
    return found + (f", {summary['seconds']:.1f} s" if "seconds" in summary else "")


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
