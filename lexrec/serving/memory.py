"""Key-value memory of runs that are built on a language model: what their neurons write, layer by layer.

Dimension key: N neurons, W width, I items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lexrec.errors import ConfigError, RunError
from lexrec.lm.loading import LanguageModel
from lexrec.lm.memory import UNKNOWN, Neurons, Rows, Values, read_neurons, value_vectors
from lexrec.run_dir import RunDir, write_json
from lexrec.training.device import choose_device

if TYPE_CHECKING:
    import pyarrow as pa

FILES = ("memory.json", "neurons.parquet", "affinity.png", "purity.png", "clustered.png")
RANDOM = "random"
"""What is called so are directions drawn at random: what the tables alone give."""
_N_RANDOM = 1024


@dataclass(frozen=True)
class Memory:
    """What was found; `write` keeps it in a folder."""

    facts: dict[str, Any]
    """k, tau, column and each run's layers: counts, affinity, purity, clustered."""
    neurons: "pa.Table"
    """run, layer, expert, neuron, affinity, purity, category; a row for each neuron."""

    def write(self, folder: Path) -> None:
        """Write FILES, without purity's where no categories are known."""
        import pyarrow.parquet as pq

        from lexrec.serving._memory_plot import draw

        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.neurons, folder / "neurons.parquet")
        draw(self.facts, folder)
        write_json(folder / "memory.json", self.facts)


def read_memory(
    paths: Sequence[str | Path],
    *,
    column: str | None = None,
    k: int = 20,
    tau: float = 0.5,
    device: str = "auto",
) -> Memory:
    """Affinity and purity of every neuron of each run's feed-forward experts (lexrec/lm/memory.py).

    Args:
        paths: finished runs built on a language model; each is read with its own item table.
        column: of the item table, for purity; None: `category`, where there is one.
        k: nearest rows compared.
        tau: purity from which a neuron is called clustered.
        device: cpu, cuda, cuda:N or auto.

    Raises:
        RunError: a run is not finished, or not built on a language model.
        ConfigError: no such column or device, tau is no share, or k exceeds the items.
    """
    if not 0 < tau <= 1:
        raise ConfigError(f"tau={tau} is no share of the nearest items; give one above 0, at most 1")
    runs = [open_lm_run(path) for path in paths]
    names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise ConfigError(f"the same run twice: {', '.join(names)}; one beside another")
    # A missing column is noticed before minutes of work.
    columns = [_column(run, column) for run in runs]
    found, tables = [], []
    for name, run, chosen in zip(names, runs, columns, strict=True):
        facts, rows = _read_run(name, run, chosen, k, tau, str(choose_device(device)))
        found.append(facts)
        tables += rows
    import pyarrow as pa

    return Memory({"k": k, "tau": tau, "runs": found}, pa.concat_tables(tables))


def open_lm_run(path: str | Path) -> RunDir:
    """A finished run whose model is built on a pretrained language model.

    Raises:
        RunError: not finished, or built on none.
    """
    run = RunDir.open(path)
    if not hasattr(getattr(run.config, "model", None), "lm"):
        raise RunError(
            f"{run.path} is built on no language model, and inspect looks into those (idiomoe and its "
            f"ablations); of token tables it has --experts, and lexrec explain {run.path} --history ID,ID "
            "is for one history"
        )
    return run


@torch.no_grad()
def _read_run(
    name: str, run: RunDir, column: str | None, k: int, tau: float, device: str
) -> tuple[dict[str, Any], list["pa.Table"]]:
    model = run.model(device)
    lm: Any = model.lm
    item_IW = model.items.lookup(torch.arange(1, model.items.n_items + 1, device=device))
    items, texts = Rows.of(item_IW), Rows.of(lm.causal.get_input_embeddings().weight)
    names, category_I = _categories(run, column)
    layers, tables = [], []
    for values in (*value_vectors(lm), _random(lm, device)):
        neurons = read_neurons(values.value_NW, items, texts, category_I, k)
        layers.append({"layer": values.layer, "expert": values.expert} | _summary(neurons, tau))
        if values.expert != RANDOM:
            tables.append(_rows(name, values, neurons, names))
    config: Any = run.config
    facts = {
        "run": name,
        "adapter": config.model.adapter.name,
        "lm": lm.base.card(),
        "items": items.n,
        "tokens": texts.n,
        "column": column,
        "categories": len(names) or None,
        RANDOM: _without_place(layers.pop()),
        "layers": layers,
    }
    return facts, tables


def _random(lm: LanguageModel, device: str) -> Values:
    generator = torch.Generator().manual_seed(0)
    return Values(-1, RANDOM, torch.randn(_N_RANDOM, lm.width, generator=generator).to(device))


def _without_place(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in ("layer", "expert")}


def _column(run: RunDir, column: str | None) -> str | None:
    known = [name for name in run.item_table.column_names if name != "item_id"]
    if column is None:
        return "category" if "category" in known else None
    if column not in known:
        raise ConfigError(
            f"--column {column!r}: the items of {run.path} have {', '.join(known) or 'no columns'}; "
            "prepare the data with --items FILE --category COLUMN"
        )
    return column


def _categories(run: RunDir, column: str | None) -> tuple[list[Any], Tensor | None]:
    """The values of a column, and the code of each item."""
    if column is None:
        return [], None
    coded = run.item_table[column].combine_chunks().dictionary_encode()
    code_I = coded.indices.fill_null(UNKNOWN).to_numpy(zero_copy_only=False).astype(np.int64)
    return coded.dictionary.to_pylist(), torch.from_numpy(code_I)


def _summary(neurons: Neurons, tau: float) -> dict[str, Any]:
    purity_N = neurons.purity_N
    is_known = not bool(purity_N.isnan().any())
    return {
        "neurons": len(purity_N),
        "affinity": _spread(neurons.affinity_N),
        "purity": _spread(purity_N) if is_known else None,
        "clustered": float((purity_N >= tau).float().mean()) if is_known else None,
    }


def _spread(value_N: Tensor) -> dict[str, float]:
    array = value_N.double().numpy()
    low, middle, high = np.quantile(array, [0.25, 0.5, 0.75])
    return {"mean": float(array.mean()), "p25": float(low), "median": float(middle), "p75": float(high)}


def _rows(name: str, values: Values, neurons: Neurons, categories: list[Any]) -> "pa.Table":
    import pyarrow as pa

    N = len(values.value_NW)
    named = [None if code == UNKNOWN else str(categories[code]) for code in neurons.category_N.tolist()]
    return pa.table(
        {
            "run": pa.array([name] * N, pa.string()),
            "layer": pa.array([values.layer] * N, pa.int32()),
            "expert": pa.array([values.expert] * N, pa.string()),
            "neuron": pa.array(range(N), pa.int32()),
            "affinity": neurons.affinity_N.float().numpy(),
            "purity": neurons.purity_N.float().numpy(),
            "category": pa.array(named, pa.string()),
        }
    )
