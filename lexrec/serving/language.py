"""What a trained run's language model still knows of language, beside what it was before training."""

from pathlib import Path
from typing import Any

from lexrec.errors import DataError
from lexrec.lm import loading
from lexrec.lm.harness import TasksConfig, require_harness, run_tasks
from lexrec.lm.language import Windows, read_text
from lexrec.lm.loading import LanguageModel
from lexrec.serving.memory import open_lm_run
from lexrec.training.device import choose_device


def read_file(
    run: str | Path,
    file: str | Path,
    *,
    context: int | None = None,
    stride: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Loss of a text file under a run's language model and under the pretrained one.

    Args:
        run: a finished run built on a language model.
        file: text as UTF-8.
        context: tokens of a window; None: 1,024, or as many as the language model reads.
        stride: new tokens of each; None: half the context.
        device: cpu, cuda, cuda:N or auto.

    Returns:
        file, tokens, context, stride; run and base, each with nll (nats a token), perplexity and
        bits_per_byte; is_same, true where all logits of both are the same, bit for bit.

    Raises:
        DataError: the file cannot be read, is no UTF-8, or has no token.
        RunError: the run is not finished, or not built on a language model.
        ConfigError: no such context, stride or device.
    """
    text = _text(Path(file))
    trained, base = _both(run, device)
    windows = Windows.fitting(base, context, stride)
    found = read_text([trained, base], text, windows)
    losses = {name: loss._asdict() for name, loss in zip(("run", "base"), found.losses, strict=True)}
    return {
        "file": str(file),
        "tokens": found.n_tokens,
        **windows._asdict(),
        **losses,
        "is_same": found.is_same,
    }


def compare_tasks(run: str | Path, config: TasksConfig, device: str = "auto") -> dict[str, Any]:
    """Tasks of lm-eval by a run's language model and by the pretrained one.

    Returns:
        run and base: {task: {metric: {value, stderr}}}; limit and shots as asked.

    Raises:
        LmError: lm-eval is missing, knows no such task, or cannot have its data.
        RunError: the run is not finished, or not built on a language model.
        ConfigError: no such device.
    """
    require_harness()
    found = run_tasks(_both(run, device), config)
    return {"limit": config.limit, "shots": config.shots, "run": found[0], "base": found[1]}


def _both(path: str | Path, device: str) -> tuple[LanguageModel, LanguageModel]:
    """The language model of a run, and the same as it was pretrained."""
    run, place = open_lm_run(path), choose_device(device)
    config: Any = run.config
    trained: Any = run.model(str(place))
    return trained.lm, loading.load(config.model.lm).to(place).eval()


def _text(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    if not text.strip():
        raise DataError(f"{file} is empty; give a text with words")
    return text
