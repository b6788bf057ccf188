"""Tasks of EleutherAI's lm-eval on a language model: HellaSwag, WinoGrande, MMLU, BBH, or one of your own.

https://github.com/EleutherAI/lm-evaluation-harness reads the data of its own tasks from the Hugging Face hub;
a task of your own is a YAML file that names a local file.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from lexrec.config import Config
from lexrec.errors import LmError
from lexrec.lm.loading import LanguageModel
from lexrec.lm.quiet import quiet
from lexrec.tokens import cache


class TasksConfig(Config):
    """Which tasks, and how much of them."""

    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of lm-eval's tasks or groups of them."""
    folder: Path | None = None
    """A folder of further tasks, YAML files as lm-eval reads them."""
    limit: int | None = Field(None, ge=1)
    """Examples of each task that are asked, from the first; null: all."""
    shots: int | None = Field(None, ge=0)
    """Solved examples before each; null: as many as the task says."""
    batch_size: int = Field(8, ge=1)
    """Examples read together."""


def require_harness() -> None:
    """Raises LmError where lm-eval is not installed."""
    if cache.is_offline(None):
        from huggingface_hub import constants

        # It reads its own variable once, when it is imported.
        constants.HF_HUB_OFFLINE = True
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise LmError("tasks are run by lm-eval, which is missing; pip install 'lexrec[lm-eval]'") from error


def run_tasks(lms: Sequence[LanguageModel], config: TasksConfig) -> list[dict[str, Any]]:
    """Results of each language model, on the device it is on: {task: {metric: {value, stderr}}}.

    A metric is named as by lm-eval, with its filter where it has one: `acc`, `exact_match[strict]`.

    Raises:
        LmError: lm-eval is missing, knows no such task, or cannot have its data.
    """
    require_harness()
    # It warns of every model that it did not load itself.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _manager(config)
    return [_run(lm, manager, config) for lm in lms]


def _manager(config: TasksConfig) -> Any:
    """What knows the tasks asked for."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder = None if config.folder is None else str(config.folder)
    if folder is not None:
        own = TaskManager(include_path=folder, include_defaults=False)
        # lm-eval's own are ten thousand files, which take seconds to look through.
        if set(config.tasks) <= set(own.all_subtasks):
            return own
    manager = TaskManager(include_path=folder)
    if unknown := [name for name in config.tasks if not manager.match_tasks([name])]:
        where = "" if folder is None else f" nor a YAML file in {folder}"
        raise LmError(f"{', '.join(unknown)}: no task of lm-eval {lm_eval.__version__}{where}")
    return manager


def _run(lm: LanguageModel, manager: Any, config: TasksConfig) -> dict[str, Any]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    with quiet():
        try:
            found = lm_eval.simple_evaluate(
                HFLM(
                    pretrained=lm.causal,
                    tokenizer=lm.tokenizer,
                    backend="causal",
                    batch_size=config.batch_size,
                    mixed_precision_dtype="bfloat16" if lm.config.dtype == "bf16" else None,
                ),
                tasks=list(config.tasks),
                num_fewshot=config.shots,
                limit=config.limit,
                log_samples=False,
                task_manager=manager,
            )
        except Exception as error:  # Whatever stops it, the task or its data is the cause.
            why = " ".join(str(error).split())[:200]
            raise LmError(f"lm-eval cannot run {', '.join(config.tasks)}: {why}") from error
    return {task: _metrics(facts) for task, facts in found["results"].items() if _metrics(facts)}


def _metrics(facts: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """From lm-eval's keys, `acc,none` and `acc_stderr,none`."""
    metrics = {}
    for key, value in facts.items():
        name, comma, chosen = key.partition(",")
        if not comma or name.endswith("_stderr"):
            continue
        stderr = facts.get(f"{name}_stderr,{chosen}")
        metrics[name if chosen == "none" else f"{name}[{chosen}]"] = {
            "value": float(value),
            "stderr": float(stderr) if isinstance(stderr, int | float) else None,
        }
    return metrics
