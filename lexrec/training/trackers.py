"""What watches a training run: the terminal, TensorBoard, MLflow. Each is optional; none changes a number."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from lexrec.config import RunConfig
from lexrec.errors import ConfigError
from lexrec.run_dir import RunDir
from lexrec.training.checkpoint import Progressed

if TYPE_CHECKING:
    from lexrec.training.progress import Progress

KNOWN = ("progress", "tensorboard", "mlflow")
_EVERY = 50
"""Steps between two logged losses: reading one waits for the device."""


class Tracker(Protocol):
    """Told of every step and validation."""

    def begin(self, n_steps: int, at: Progressed) -> None:
        """Training starts or goes on at `at`; at most `n_steps` in all."""
        ...

    def step(self, at: Progressed, loss: Tensor, n_items: int) -> None:
        """One optimizer step was taken; `loss` is still on the device."""
        ...

    def validated(self, at: Progressed, metrics: dict[str, float], is_best: bool) -> None:
        """One validation was made."""
        ...

    def end(self) -> None:
        """Training is over, or failed."""
        ...


def check_trackers(names: Sequence[str | Tracker]) -> None:
    """Refuse what `build_tracker` could not make, before there is a run to track.

    Raises:
        ConfigError: unknown, or its package is not installed.
    """
    for name in names:
        if not isinstance(name, str):
            continue
        if name not in KNOWN:
            raise ConfigError(f"no tracker {name!r}; known: {', '.join(KNOWN)}")
        if name != "progress" and find_spec(name) is None:
            raise ConfigError(f"tracker {name} is not installed; run: pip install 'lexrec[{name}]'")


def build_tracker(name: str | Tracker, run: RunDir) -> Tracker:
    """A tracker by its name, which `check_trackers` has let through; one that is made already is taken."""
    if not isinstance(name, str):
        return name
    kinds: dict[str, Callable[[RunDir], Tracker]] = {
        "progress": ProgressTracker,
        "tensorboard": TensorBoard,
        "mlflow": MLflow,
    }
    return kinds[name](run)


class ProgressTracker:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, run: RunDir) -> None:
        assert isinstance(run.config, RunConfig)
        self._metric = run.config.train.metric
        self._progress: Progress | None = None

    def begin(self, n_steps: int, at: Progressed) -> None:
        from lexrec.training.progress import Progress

        self._progress = Progress(n_steps, done=at.step, metric=self._metric)
        self._progress.__enter__()

    def step(self, at: Progressed, loss: Tensor, n_items: int) -> None:
        assert self._progress is not None
        self._progress.step(loss=loss, n_items=n_items)

    def validated(self, at: Progressed, metrics: dict[str, float], is_best: bool) -> None:
        assert self._progress is not None
        self._progress.validated(at.epoch, metrics, best=is_best)

    def end(self) -> None:
        if self._progress is not None:
            self._progress.__exit__(None, None, None)


class TensorBoard:
    """Scalars under the run directory's tensorboard/."""

    def __init__(self, run: RunDir) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run.path / "tensorboard"))

    def begin(self, n_steps: int, at: Progressed) -> None:
        pass

    def step(self, at: Progressed, loss: Tensor, n_items: int) -> None:
        if at.step % _EVERY == 0:
            self._writer.add_scalar("loss", float(loss), at.step)

    def validated(self, at: Progressed, metrics: dict[str, float], is_best: bool) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"validation/{name}", value, at.step)

    def end(self) -> None:
        self._writer.close()


class MLflow:
    """A run in MLflow's tracking server or folder, as its own environment variables say."""

    def __init__(self, run: RunDir) -> None:
        import mlflow

        self._mlflow: Any = mlflow
        mlflow.start_run(run_name=run.path.name)
        mlflow.log_dict(run.config.model_dump(mode="json"), "config.json")
        mlflow.set_tag("data", run.dataset_card["fingerprint"])

    def begin(self, n_steps: int, at: Progressed) -> None:
        pass

    def step(self, at: Progressed, loss: Tensor, n_items: int) -> None:
        if at.step % _EVERY == 0:
            self._mlflow.log_metric("loss", float(loss), step=at.step)

    def validated(self, at: Progressed, metrics: dict[str, float], is_best: bool) -> None:
        for name, value in metrics.items():
            # MLflow refuses "@" in a metric's name.
            self._mlflow.log_metric(f"validation/{name.replace('@', '_at_')}", value, step=at.step)

    def end(self) -> None:
        self._mlflow.end_run()
