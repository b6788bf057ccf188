"""Measurements of finished runs beyond ranking what comes next: questions, and items never trained.

What is found is kept in the run, as one JSON file beside the usual evaluations, under the same rules' name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lexrec.errors import ConfigError, RunError
from lexrec.evaluation.evaluate import EvaluationConfig
from lexrec.evaluation.events import Split
from lexrec.evaluation.new_items import NewItems
from lexrec.evaluation.new_items import evaluate_new_items as measure_new_items
from lexrec.evaluation.queries import Answers, ways_of
from lexrec.evaluation.queries import evaluate_queries as measure
from lexrec.run_dir import RunDir, write_json
from lexrec.tokens.entry import plain_name
from lexrec.training.device import choose_device
from lexrec.training.evaluate_run import place


def evaluate_queries(
    run: str | Path,
    column: str,
    *,
    against: Sequence[str | Path] = (),
    split: Split = "test",
    settings: EvaluationConfig | None = None,
    data: str | Path | None = None,
    device: str = "auto",
) -> Answers:
    """Ask a run for every event of a split by its item's value in a column.

    The result is also kept in the run: evaluations/SPLIT-queries-COLUMN.json.

    Args:
        run: a run of recipe idiomoe_ask or the like.
        column: of the item table, such as category.
        against: runs of the same data that recommend without the question, plain and filtered by the value.
        split: test or validation.
        settings: the ks and the rules.
        data: folder of the data set, where it was moved since training.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        ConfigError: the run was not trained on questions, or there is no such column.
        RunError: a run is not finished, cannot be written to, or was trained on other data.
        DataError: the data set is missing, damaged, or has no events of this split.
    """
    opened = RunDir.open(run)
    dataset, where = opened.dataset(data), str(choose_device(device))
    others = {str(path): RunDir.open(path) for path in against}
    for name, other in others.items():
        if name in ("", str(run)):
            raise ConfigError(f"--against {name!r}: name other runs than {run}")
        other.require_dataset(dataset)
    scorers = {name: other.scorer(where) for name, other in others.items()}
    settings = settings or EvaluationConfig(k=(10,))
    found = measure(ways_of(opened.scorer(where), scorers), dataset, column, settings, split)
    _keep(found.json(), place(opened, split, settings), f"queries-{plain_name(column)}")
    return found


def evaluate_new_items(
    run: str | Path,
    *,
    split: Split = "test",
    settings: EvaluationConfig | None = None,
    data: str | Path | None = None,
    device: str = "auto",
) -> NewItems:
    """Rank the events of a split whose item was never trained, by rows predicted from texts.

    The result is also kept in the run: evaluations/SPLIT-new-items.json.

    Args:
        run: a run over a language model, such as recipe idiomoe.
        split, settings, data, device: as for `evaluate_queries`.

    Raises:
        ConfigError: the run has no language model.
        RunError: the run is not finished, or cannot be written to.
        DataError: no event of the split has such an item.
    """
    opened = RunDir.open(run)
    dataset = opened.dataset(data)
    scorer, settings = opened.scorer(str(choose_device(device))), settings or EvaluationConfig(k=(10,))
    found = measure_new_items(scorer, dataset, settings, split)
    _keep(found.json(), place(opened, split, settings), "new-items")
    return found


def _keep(found: dict[str, Any], beside: Path, name: str) -> None:
    """Replace an earlier result."""
    path = beside.with_name(f"{beside.name}-{name}.json")
    try:
        path.parent.mkdir(exist_ok=True)
        write_json(path, found)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
