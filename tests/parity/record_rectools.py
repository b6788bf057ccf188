"""Records what RecTools measures on `random_world`, for test_metrics_rectools.py.

RecTools 0.19 needs numpy 1, so it is run by hand in an environment of its own:

    python3.11 -m venv /tmp/rectools && /tmp/rectools/bin/pip install "rectools==0.19.*"
    /tmp/rectools/bin/python tests/parity/record_rectools.py

Its NDCG divides by the gain of k relevant items unless told to divide by what can be achieved, which with
one relevant item a user is what this project means by NDCG; both are recorded.
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from random_world import KS, N_ITEMS, N_USERS, SEED, best_unseen, random_world
from rectools import Columns
from rectools.metrics import (
    MRR,
    NDCG,
    AvgRecPopularity,
    CatalogCoverage,
    HitRate,
    Recall,
    calc_metrics,
)


def main() -> None:
    world, longest = random_world(), max(KS)
    lists_UK = best_unseen(world, longest)
    users = np.arange(N_USERS)
    shown = pd.DataFrame(
        {
            Columns.User: users.repeat(longest),
            Columns.Item: lists_UK.ravel(),
            Columns.Rank: np.tile(np.arange(1, longest + 1), N_USERS),
        }
    )
    wanted = pd.DataFrame({Columns.User: users, Columns.Item: world.target_U})
    before = pd.DataFrame(
        {Columns.User: users.repeat(world.train_UT.shape[1]), Columns.Item: world.train_UT.ravel()}
    )
    metrics = {}
    for k in KS:
        metrics[f"hr@{k}"] = HitRate(k)
        metrics[f"recall@{k}"] = Recall(k)
        metrics[f"ndcg@{k}"] = NDCG(k, divide_by_achievable=True)
        metrics[f"ndcg_of_k_relevant@{k}"] = NDCG(k)
        metrics[f"mrr@{k}"] = MRR(k)
        metrics[f"coverage@{k}"] = CatalogCoverage(k, normalize=True)
        metrics[f"mean_popularity@{k}"] = AvgRecPopularity(k)
    found = calc_metrics(metrics, shown, wanted, before, catalog=np.arange(1, N_ITEMS + 1))
    versions = {name: version(name) for name in ("rectools", "numpy", "pandas")}
    record = {"versions": versions, "seed": SEED, "metrics": {k: float(v) for k, v in found.items()}}
    path = Path(__file__).with_name("rectools_metrics.json")
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
