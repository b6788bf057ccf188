"""What the token experts of a run choose over many histories: `explain`'s view of one, counted.

Dimension key: B histories of a batch, E events, X experts, K chosen tokens, V vocabulary.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lexrec.errors import ConfigError, RunError
from lexrec.evaluation.events import evaluation_events, histories
from lexrec.evaluation.scorer import ModelScorer
from lexrec.run_dir import RunDir
from lexrec.tokens.table import TokenTable
from lexrec.training.device import choose_device

_TOKENS = 20
"""Of each table; the most attended."""
_BATCH = 256


def read_experts(
    path: str | Path, *, n_histories: int = 2048, data: str | Path | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Gate shares and most attended tokens of each table, over histories of test users.

    Args:
        path: a finished run whose items are read through token tables.
        n_histories: as many test events, drawn at random and the same each time; all where there are fewer.
        data: folder of the data set, where it was moved since training.
        device: cpu, cuda, cuda:N or auto.

    Returns:
        histories; experts, each with table, gate (mean, p25, p75 of its share), first (share of histories in
        which its gate is the largest) and tokens (text and share of attention over all histories).

    Raises:
        RunError: the run is not finished, has no token experts, or its data is no longer there.
        ConfigError: no history is asked for, or no such device.
    """
    if n_histories < 1:
        raise ConfigError(f"{n_histories} histories; look at 1 or more")
    run = RunDir.open(path)
    tables = run.tables()
    if not tables:
        raise RunError(f"{run.path} reads no token tables, so it has no experts; try a run of sasrec_mltfr")
    scorer = run.scorer(str(choose_device(device)))
    assert isinstance(scorer, ModelScorer)
    gate_EX, totals = _count(scorer, run, data, n_histories)
    if not totals:
        raise RunError(f"{run.path}: its item encoder has token tables and no experts; try sasrec_mltfr")
    is_first_EX = gate_EX == gate_EX.max(1, keepdims=True)
    experts = [
        _expert(name, gate_EX[:, x], is_first_EX[:, x], total_V / len(gate_EX), table)
        for x, ((name, total_V), table) in enumerate(zip(totals, tables, strict=False))
    ]
    return {"histories": len(gate_EX), "experts": experts}


def _count(
    scorer: ModelScorer, run: RunDir, data: str | Path | None, n_histories: int
) -> tuple[Any, list[tuple[str, Tensor]]]:
    """Gates of each history, [E, X], and each table's name and the attention that its tokens got, [V]."""
    dataset = run.dataset(data)
    events = evaluation_events(dataset, "test")
    n_picked = min(n_histories, len(events))
    pick_E = np.random.default_rng(0).choice(len(events), n_picked, replace=False)
    sizes = [len(table.tokens) or table.n_tokens for table in run.tables()]
    gates: list[Tensor] = []
    totals: list[tuple[str, Tensor]] = []
    for first in range(0, n_picked, _BATCH):
        batch = histories(dataset, events, pick_E[first : first + _BATCH], scorer.max_len)
        views = scorer.model.items.inspect(batch.to(scorer.device))
        if not totals:
            totals = [(view.table, torch.zeros(n).double()) for view, n in zip(views, sizes, strict=False)]
        for (_, total_V), view in zip(totals, views, strict=True):
            total_V.index_add_(0, view.token_BK.flatten().cpu(), view.weight_BK.flatten().double().cpu())
        if views:
            gates.append(torch.stack([view.gate_B for view in views], 1).double().cpu())
    return torch.cat(gates).numpy() if gates else np.zeros((0, 0)), totals


def _expert(name: str, gate_E: Any, is_first_E: Any, share_V: Tensor, table: TokenTable) -> dict[str, Any]:
    most = share_V.topk(min(_TOKENS, len(share_V)))
    pairs = zip(most.indices.tolist(), most.values.tolist(), strict=True)
    low, high = np.quantile(gate_E, [0.25, 0.75])
    return {
        # What follows a + is what was done to the table before training.
        "table": name.partition("+")[0],
        "gate": {"mean": float(gate_E.mean()), "p25": float(low), "p75": float(high)},
        "first": float(is_first_E.mean()),
        "tokens": [{"text": table.text(token), "share": share} for token, share in pairs if share > 0],
    }
