"""Checkpoints without pickle: tensors in safetensors, numbers in JSON, state.json last.

A checkpoint holds all that the rest of the run depends on: weights, optimizer moments, how far the data was
read, and every random state. On a CPU a resumed run is bit-identical to one that was never stopped.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lexrec.errors import DamagedError, RunError
from lexrec.run_dir import RunDir, read_json, write_json
from lexrec.training.optimizer import AdamW

_STATE = "state.json"


@dataclass
class Progressed:
    """How far a run has come."""

    epoch: int = 0
    """Epoch in progress."""
    batch: int = 0
    """Batches of this epoch already trained on."""
    step: int = 0
    """Optimizer steps taken."""
    n_events: int = 0
    """Items read in them, each batch counted as the average of its epoch."""
    best: float = -1.0
    """Best validation metric so far."""
    best_step: int = 0
    best_epoch: int = 0
    n_worse: int = 0
    """Validations since the best one."""
    seconds: float = 0.0
    log_bytes: int = 0
    """Length of metrics.jsonl; what a killed run wrote beyond it is cut off on resume."""


def save(
    run: RunDir,
    model: nn.Module,
    optimizer: AdamW,
    generator: torch.Generator,
    at: Progressed,
) -> None:
    """Write the checkpoint of this step, then drop all others but the best."""
    folder = run.checkpoint(at.step)
    partial = folder.with_name(folder.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_contiguous(model.state_dict()), partial / "model.safetensors")
    save_file({**_optimizer_tensors(optimizer), **_random_states(generator)}, partial / "trainer.safetensors")
    log = run.path / "metrics.jsonl"
    at.log_bytes = log.stat().st_size if log.exists() else 0
    write_json(partial / _STATE, {**asdict(at), "device": generator.device.type})
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    _keep_only(run, {at.step, at.best_step})


def restore(run: RunDir, model: nn.Module, optimizer: AdamW, generator: torch.Generator) -> Progressed:
    """Load the newest complete checkpoint, if there is one, and cut the log back to it.

    Raises:
        RunError: the checkpoint does not fit the model, was made on another kind of device, or is damaged.
    """
    folder = newest(run)
    if folder is None:
        _cut(run.path / "metrics.jsonl", 0)
        return Progressed()
    state = read_json(folder / _STATE)
    if state.pop("device") != generator.device.type:
        raise RunError(
            f"{run.path} was started on another device than {generator.device.type}; resume it there"
        )
    at = Progressed(**state)
    try:
        model.load_state_dict(_load(folder / "model.safetensors"))
    except RuntimeError as error:
        raise RunError(f"{folder} does not fit the model of this run: {error}".splitlines()[0]) from error
    tensors = _load(folder / "trainer.safetensors")
    _restore_optimizer(optimizer, tensors)
    _restore_random_states(generator, tensors)
    _cut(run.path / "metrics.jsonl", at.log_bytes)
    return at


def newest(run: RunDir) -> Path | None:
    """Folder of the newest complete checkpoint."""
    folders = sorted(run.checkpoint(0).parent.glob("[0-9]" * 8))
    complete = [folder for folder in folders if (folder / _STATE).is_file()]
    return complete[-1] if complete else None


def keep_best(run: RunDir, at: Progressed) -> None:
    """At the end of a run: only the best weights stay."""
    _keep_only(run, {at.best_step})
    (run.checkpoint(at.best_step) / "trainer.safetensors").unlink(missing_ok=True)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedError(path, error) from error
    return tensors


def _keep_only(run: RunDir, steps: set[int]) -> None:
    kept = {run.checkpoint(step).name for step in steps}
    for folder in run.checkpoint(0).parent.iterdir():
        if folder.name not in kept:
            shutil.rmtree(folder)


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(optimizer: AdamW) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return _contiguous(
        {f"optimizer.{i}.{name}": t for i, moments in state.items() for name, t in moments.items()}
    )


def _restore_optimizer(optimizer: AdamW, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _random_states(generator: torch.Generator) -> dict[str, Tensor]:
    states = {"random.cpu": torch.get_rng_state(), "random.objective": generator.get_state()}
    if generator.device.type == "cuda":
        states["random.cuda"] = torch.cuda.get_rng_state(generator.device)
    return states


def _restore_random_states(generator: torch.Generator, tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors["random.cpu"])
    generator.set_state(tensors["random.objective"])
    if generator.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], generator.device)


def _cut(log: Path, n_bytes: int) -> None:
    if log.exists():
        with log.open("r+b") as file:
            file.truncate(n_bytes)
