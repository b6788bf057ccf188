"""Weights that a run starts from: those of a round before it, or of another run (`first` in a recipe).

start.json of the run directory says whose they were, with their sha256, which part had picked them and what
they had cost.
"""

from pathlib import Path
from typing import Any

from torch import nn

from lexrec.config import RunConfig, with_changes
from lexrec.errors import RunError
from lexrec.evaluation.protocol import SelectedOn
from lexrec.run_dir import RunDir, read_json, write_json
from lexrec.tokens.stored import hash_file

_FILE = "start.json"
COSTS = ("steps", "events", "tokens", "seconds")


def begin(model: nn.Module, run: RunDir, source: RunDir) -> None:
    """Put what a finished run trained in the place of the model's own start; what it has beyond that stays.

    Raises:
        RunError: tensors do not fit, or they are not those that `run` was begun with before it was killed.
    """
    own, trained = model.state_dict(), source.weights()
    unlike = sorted(name for name, t in trained.items() if name not in own or own[name].shape != t.shape)
    if unlike:
        raise RunError(
            f"{source.path} trained {len(unlike)} tensors that are not in the run that starts from it, such "
            f"as {unlike[0]}; let `first` be a run of the same model, or changes that leave its weights alike"
        )
    best = source.checkpoint(source.summary["best_step"]) / "model.safetensors"
    card = {"run": str(source.path), "sha256": hash_file(best), "selected_on": selected_on(source)}
    if (run.path / _FILE).is_file() and spent(run)["sha256"] != card["sha256"]:
        raise RunError(
            f"{source.path} holds other weights than {run.path} was begun with; choose another --out"
        )
    write_json(run.path / _FILE, {**card, **{key: source.summary.get(key, 0) for key in COSTS}})
    model.load_state_dict({**own, **trained})


def selected_on(run: RunDir) -> SelectedOn:
    """The part that picked a run's weights: test also where it picked those that the run began with.

    A baseline and a run without validation events take what they end with.
    """
    config = run.config
    if not isinstance(config, RunConfig):
        return "nothing"
    if (run.path / _FILE).is_file() and spent(run).get("selected_on") == "test":
        return "test"
    return "nothing" if run.summary[config.train.metric] is None else config.train.select_on


def will_select_on(config: RunConfig) -> SelectedOn:
    """What `selected_on` will say of a run with validation events.

    Raises:
        RunError: the run that it starts from is not there.
    """
    if isinstance(config.first, str) and selected_on(require(config.first)) == "test":
        return "test"
    if not isinstance(config.first, str) and config.first:
        before = with_changes(config, (*config.first, "first=[]"))
        if isinstance(before, RunConfig) and before.train.select_on == "test":
            return "test"
    return config.train.select_on


def spent(run: RunDir) -> dict[str, Any]:
    """What start.json says: run, sha256 and the costs of a run that began from another's weights."""
    found: dict[str, Any] = read_json(run.path / _FILE)
    return found


def require(path: str) -> RunDir:
    """The finished run of a folder, to start from.

    Raises:
        RunError: there is none.
    """
    if not Path(path).is_dir():
        raise RunError(f"first: {path!r} is no run directory; name a finished run, or list changes")
    return RunDir.open(path)
