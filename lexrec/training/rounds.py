"""Two rounds of training. Round 1 is a run directory of its own in rounds/1, so it can be evaluated like any
other, and its best epoch is what Round 2 is made of.

A recipe with `first`: Round 1 is the same run with these changes, and Round 2 starts from its weights.
IDIOMoE pretrains its item experts so, on ids alone.

A recipe with `rounds`: Algorithm 1 of MLTFR (https://arxiv.org/abs/2604.18200). Round 1 trains without a
consensus expert and ends with the Fisher importance of its experts; Round 2 trains with their weighted
average, frozen. The importance is kept beside Round 1's weights:

fisher.safetensors   importance of each averaged parameter: its shape, or one number an expert
fisher.json          how it was measured, and the mean and share of each table's expert; written last
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lexrec.config import RunConfig, with_changes
from lexrec.data.batch import Batch
from lexrec.data.dataset import Dataset
from lexrec.data.windows import Samples, Windows
from lexrec.errors import RunError
from lexrec.item_encoders.mltfr import Mltfr
from lexrec.run_dir import RunDir, write_json
from lexrec.training import fisher
from lexrec.training.step import Step

if TYPE_CHECKING:
    from lexrec.tokens.table import TokenTable

_SECOND_STREAM = 2**33
"""Keeps the draws of Round 2 and of Fisher labels apart from those of Round 1."""


def first_config(config: RunConfig) -> RunConfig:
    """What Round 1 trains: the run with the changes of `first`, or without its consensus expert for
    `rounds.max_epochs`.
    """
    if config.first:
        assert not isinstance(config.first, str)
        changed = with_changes(config, (*config.first, "first=[]"))
        assert isinstance(changed, RunConfig)
        return changed
    assert config.rounds is not None
    items = config.item_encoder.model_copy(update={"consensus": None})
    train = config.train.model_copy(update={"max_epochs": config.rounds.max_epochs})
    return config.model_copy(update={"item_encoder": items, "train": train, "rounds": None})


def first_run(run: RunDir, dataset: Dataset, tables: "Sequence[TokenTable]") -> RunDir:
    """The run directory of Round 1: new, unfinished or done."""
    assert isinstance(run.config, RunConfig)
    if (run.round(1) / "config.yaml").is_file():
        return RunDir.reopen(run.round(1))
    return RunDir.create(run.round(1), first_config(run.config), dataset, tables)


def begin_second(second: Step, run: RunDir, first: Step, dataset: Dataset, device: torch.device) -> None:
    """Give Round 2 its consensus experts and, unless it restarts, the weights of Round 1.

    Args:
        second: what Round 2 trains, with fresh weights.
        run: the whole run; Round 1 in it is done.
        first: what Round 1 trained; its best weights are loaded here.
        dataset: what both train on.
        device: where importance is measured.

    Raises:
        RunError: the weights or the importance of Round 1 are damaged.
    """
    config, done = run.config, RunDir.open(run.round(1))
    assert isinstance(config, RunConfig)
    assert config.rounds is not None
    first.model.load_state_dict(done.weights())
    kept = _kept_importance(done.path)
    if kept is None:
        kept = _measure(second, first.to(device), dataset, config)
        _keep(kept, done.path, config, _encoder(first).table_names)
    _encoder(second).agree(_encoder(first), kept)
    if config.rounds.start == "continue":
        # The consensus is what Round 1 has not.
        second.model.load_state_dict({**second.model.state_dict(), **first.model.state_dict()})


def seed_second(config: RunConfig) -> None:
    """Before Round 2: its draws are not those of Round 1."""
    torch.manual_seed(config.train.seed + _SECOND_STREAM)


def _encoder(step: Step) -> Mltfr:
    items = step.model.items
    assert isinstance(items, Mltfr)
    return items


def _measure(second: Step, first: Step, dataset: Dataset, config: RunConfig) -> dict[str, Tensor]:
    assert config.rounds is not None
    device = next(first.parameters()).device
    torch.manual_seed(config.train.seed + _SECOND_STREAM)
    generator = torch.Generator(device).manual_seed(config.train.seed + _SECOND_STREAM)
    batches = _batches(first, dataset, config, device)
    names = _encoder(second).averaged()
    return fisher.importance(first, batches, config.rounds.fisher, names, generator)


def _batches(step: Step, dataset: Dataset, config: RunConfig, device: torch.device) -> list[Batch]:
    """Training windows drawn without replacement, as many as there are or as the config wants."""
    assert config.rounds is not None
    length = step.model.max_len + step.objective.extra_events
    samples = Samples.of(dataset, step.objective.sampling, step.model.max_len, step.objective.extra_events)
    order = torch.Generator().manual_seed(config.train.seed + _SECOND_STREAM)
    drawn = torch.randperm(len(samples), generator=order)[: config.rounds.fisher.n_samples]
    windows = Windows(dataset, length, torch.device("cpu"))
    span_3S = torch.stack(samples.spans(drawn)[:3])
    return [windows.cut(*spans).to(device) for spans in _split(span_3S, config)]


def _split(span_3S: Tensor, config: RunConfig) -> Iterator[Tensor]:
    """Batches as large as those of training."""
    size = config.train.batch_size
    for start in range(0, span_3S.shape[1], size):
        yield span_3S[:, start : start + size]


def _kept_importance(folder: Path) -> dict[str, Tensor] | None:
    """What was measured before, None where nothing was, or not to the end."""
    if not (folder / "fisher.json").is_file():
        return None
    path = folder / "fisher.safetensors"
    try:
        found: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path} is missing or damaged: {error}; remove fisher.json to measure anew"
        ) from error
    return found


def _keep(
    importance: Mapping[str, Tensor], folder: Path, config: RunConfig, table_names: tuple[str, ...]
) -> None:
    assert config.rounds is not None
    # One number that several names share is one tensor, which safetensors would refuse.
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in importance.items()}
    save_file(tensors, folder / "fisher.safetensors")
    found: dict[str, Any] = config.rounds.fisher.model_dump()
    write_json(folder / "fisher.json", {**found, "experts": _by_expert(tensors, table_names)})


def _by_expert(importance: Mapping[str, Tensor], table_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Mean importance of each expert that takes part in a consensus, and its share of their sum."""
    values: dict[int, list[Tensor]] = {}
    for name, value in importance.items():
        values.setdefault(int(name.split(".")[1]), []).append(value.double().flatten())
    mean = {m: float(torch.cat(found).mean()) for m, found in values.items()}
    total = sum(mean.values())
    return [
        {"table": table_names[m], "mean": mean[m], "share": mean[m] / total if total else 1 / len(mean)}
        for m in sorted(mean)
    ]
