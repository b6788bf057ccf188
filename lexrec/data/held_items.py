"""A data set in which some items are never trained: what is known of them is what is written of them.

Dimension key: N events, I item indexes 0..n + 1, U users.
"""

from dataclasses import replace

import numpy as np

from lexrec.data._fingerprint import fingerprint
from lexrec.data.dataset import TEST, Dataset
from lexrec.errors import DataError


def hold_out_items(dataset: Dataset, share: float, seed: int = 0) -> Dataset:
    """Take the training and validation events of some items out; their test events stay.

    Args:
        dataset: prepared.
        share: of the items, drawn uniformly.
        seed: draws them.

    Returns:
        A data set of its own fingerprint, not yet on disk (`save` writes it), with the same indexes.

    Raises:
        DataError: share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise DataError(f"share is above 0 and below 1, got {share}")
    n_held = max(1, round(share * dataset.n_items))
    held_I = np.zeros(dataset.n_items + 2, dtype=np.bool_)
    held_I[np.random.default_rng(seed).choice(dataset.n_items, n_held, replace=False) + 1] = True
    stays_N = ~held_I[dataset.item_N] | (np.asarray(dataset.split_N) == TEST)
    count_N = np.concatenate([[0], np.cumsum(stays_N)])
    time_N = None if dataset.time_N is None else np.asarray(dataset.time_N)[stays_N]
    item_N, split_N = np.asarray(dataset.item_N)[stays_N], np.asarray(dataset.split_N)[stays_N]
    offset_U = count_N[dataset.offset_U].astype(np.int64)
    arrays = {"item": item_N, "offset": offset_U, "split": split_N}
    tables = {"users": dataset.user_table, "items": dataset.item_table}
    known = arrays | ({} if time_N is None else {"time": time_N})
    manifest = {
        **dataset.manifest,
        "n_events": len(item_N),
        "held_out_items": {"share": share, "seed": seed, "items": n_held},
        "fingerprint": fingerprint(known, tables["users"], tables["items"]),
    }
    return replace(
        dataset,
        item_N=item_N,
        offset_U=offset_U,
        split_N=split_N,
        time_N=time_N,
        manifest=manifest,
        folder=None,
        tables=tables,
    )
