"""`lexrec.evaluate`: measure a finished run and keep the result in it."""

import shutil
from pathlib import Path

from lexrec.errors import RunError
from lexrec.evaluation.evaluate import Evaluation, EvaluationConfig
from lexrec.evaluation.evaluate import evaluate as measure
from lexrec.evaluation.events import Split
from lexrec.run_dir import RunDir
from lexrec.training.allocator import keep_memory
from lexrec.training.device import choose_device
from lexrec.training.start import selected_on


def evaluate(
    run: str | Path | RunDir,
    *,
    split: Split = "test",
    settings: EvaluationConfig | None = None,
    data: str | Path | None = None,
    device: str = "auto",
) -> Evaluation:
    """Rank every event of a split with a finished run; the result is also kept in its evaluations/.

    Args:
        run: a run directory.
        split: test or validation.
        settings: the ks and the rules; the defaults are the project's protocol.
        data: folder of the data set, where it was moved since training.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        RunError: the run is not finished or cannot be written to, the data is not what it was trained on,
            or a score is NaN.
        DataError: the data set is missing, damaged, or has no events of this split.
    """
    run = run if isinstance(run, RunDir) else RunDir.open(run)
    settings = settings or EvaluationConfig()
    dataset = run.dataset(data)
    where = choose_device(device)
    if where.type == "cpu":
        keep_memory()
    result = measure(
        run.scorer(str(where)),
        dataset,
        settings,
        split=split,
        selected_on=selected_on(run),
        allow_leak=bool(getattr(getattr(run.config, "objective", None), "allow_leak", False)),
    )
    _keep(result, place(run, split, settings))
    return result


def place(run: RunDir, split: Split, settings: EvaluationConfig | None = None) -> Path:
    """Where a result is kept: one folder for each split, and one for each set of other rules."""
    usual, names = EvaluationConfig(), ("seen", "ties", "candidates", "pool", "sample", "pool_seed")
    rules = {name: getattr(settings or usual, name) for name in names}
    others = [f"-{name}-{value}" for name, value in rules.items() if value != getattr(usual, name)]
    return run.path / "evaluations" / "".join([split, *others])


def _keep(result: Evaluation, folder: Path) -> None:
    """Replace an earlier result whole."""
    partial = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        result.save(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}") from error
