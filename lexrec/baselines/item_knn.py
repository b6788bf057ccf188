"""Item k nearest neighbours: items that the same users took in training.

    sim(i, j) = |U_i & U_j| / (sqrt(|U_i| |U_j|) + shrinkage)      users U_i who took i, i != j
    score(j)  = sum over the newest m items h of the history of decay^age(h) * sim(h, j), j a neighbour of h

Cosine with the shrinkage of Koren & Bell 2011 (doi.org/10.1007/978-0-387-85820-3_5): a similarity that rests
on a few users counts less. Each item keeps its `neighbours` most similar ones (Sarwar et al. 2001,
doi.org/10.1145/371920.372071). A millionth of popularity orders what no neighbour reaches and stands alone
for an empty history.

Dimension key: P (user, item) pairs, Q pairs of items with one user each, S stored neighbours, B rows,
L positions, T items of histories, I item indexes 0..n + 1, J items of one block.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from lexrec.baselines._sparse import SparseRows, Taken
from lexrec.baselines.base import Baseline, BaselineConfig
from lexrec.data.batch import Batch
from lexrec.data.dataset import TRAIN, Dataset

_PAIRS_AT_ONCE = 2**21
"""Pairs of items counted at once: about 100 MiB with what is made of them."""
_POPULARITY = 1e-6

Ints = NDArray[np.int64]


class ItemKnnConfig(BaselineConfig):
    """Settings of item-kNN."""

    name: Literal["item_knn"] = "item_knn"
    neighbours: int = Field(100, ge=1)
    """Most similar items kept of each item."""
    shrinkage: float = Field(10.0, ge=0)
    """Added to the denominator of the cosine, in users."""
    newest: int = Field(20, ge=1)
    """Items of a history that are looked up (m)."""
    decay: float = Field(0.7, gt=0, le=1)
    """Weight of each item relative to the next newer one."""


class _Query(NamedTuple):
    similar: Taken
    n_rows: int


class ItemKnn(Baseline):
    """Scores an item by its similarity to the newest items of a history."""

    config: ItemKnnConfig

    def __init__(self, config: ItemKnnConfig) -> None:
        super().__init__(config)
        self.max_len = config.newest

    def fit(self, dataset: Dataset) -> "ItemKnn":
        config, size = self.config, dataset.n_items + 2
        user_P, item_P = _distinct_pairs(dataset)
        users_I = np.bincount(item_P, minlength=size)
        rows, items, values = [], [], []
        for from_S, to_S, count_S in _co_occurrences(user_P, item_P, size):
            cosine_S = count_S / (
                np.sqrt(users_I[from_S] * users_I[to_S].astype(np.float64)) + config.shrinkage
            )
            best_S = _best_of_each(from_S, cosine_S, config.neighbours)
            rows.append(from_S[best_S])
            items.append(to_S[best_S].astype(np.int32))
            values.append(cosine_S[best_S].astype(np.float32))
        row_S = np.concatenate([*rows, np.empty(0, dtype=np.int64)])
        state = {
            "offset_R": torch.from_numpy(np.searchsorted(row_S, np.arange(size + 1))),
            "item_S": torch.from_numpy(np.concatenate([*items, np.empty(0, dtype=np.int32)])),
            "value_S": torch.from_numpy(np.concatenate([*values, np.empty(0, dtype=np.float32)])),
            "count_I": torch.from_numpy(dataset.train_count_I),
        }
        return self.load_state(state)

    def encode(self, batch: Batch) -> _Query:
        row_T, place_T = batch.is_item_BL.nonzero(as_tuple=True)
        age_T = batch.item_BL.shape[1] - 1 - place_T
        weight_T = torch.pow(self.config.decay, age_T.float())
        similar = self.similar.take(row_T, batch.item_BL[row_T, place_T], weight_T)
        return _Query(similar, len(batch.length_B))

    def score(self, query: _Query, first: int, last: int) -> Tensor:
        return query.similar.add_to(self.popularity_I[first:last].repeat(query.n_rows, 1), first)

    def state(self) -> dict[str, Tensor]:
        return self.similar.state() | {"count_I": self.count_I}

    def load_state(self, state: Mapping[str, Tensor]) -> "ItemKnn":
        self.similar = SparseRows.of(state)
        self.count_I = state["count_I"]
        self.popularity_I = (_POPULARITY * self.count_I / self.count_I.max().clamp(min=1)).float()
        self.n_items = len(self.count_I) - 2
        return self


def _distinct_pairs(dataset: Dataset) -> tuple[Ints, Ints]:
    """Each user's distinct training items, users ascending."""
    size = dataset.n_items + 2
    user_N = np.repeat(np.arange(dataset.n_users), np.diff(dataset.offset_U))
    is_train_N = np.asarray(dataset.split_N) == TRAIN
    key_P = np.unique(user_N[is_train_N] * size + dataset.item_N[is_train_N])
    return key_P // size, key_P % size


def _co_occurrences(user_P: Ints, item_P: Ints, size: int) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Every ordered pair of items that users share and how many do: ascending, some whole rows at a time."""
    by_item_P = np.argsort(item_P, kind="stable")
    n_of_user_U = np.bincount(user_P)
    start_U = np.cumsum(n_of_user_U) - n_of_user_U
    user_P = user_P[by_item_P]
    ends_P = np.cumsum(n_of_user_U[user_P])
    first_I = np.searchsorted(item_P[by_item_P], np.arange(size + 1))
    done = 0
    while done < len(user_P):
        before = ends_P[done - 1] if done else 0
        fits = int(np.searchsorted(ends_P, before + _PAIRS_AT_ONCE, side="right"))
        # Whole items only: a row of the matrix is never split; the largest may exceed the bound alone.
        rows = first_I[first_I <= fits]
        end = int(rows[-1]) if rows[-1] > done else int(first_I[first_I > done][0])
        n_P = n_of_user_U[user_P[done:end]]
        shift_P = start_U[user_P[done:end]] - (np.cumsum(n_P) - n_P)
        to_Q = item_P[np.arange(n_P.sum()) + np.repeat(shift_P, n_P)]
        from_P = item_P[by_item_P[done:end]]
        key_S, count_S = _count(np.repeat((from_P - from_P[0]) * size, n_P) + to_Q)
        from_S, to_S = key_S // size + from_P[0], key_S % size
        is_other_S = from_S != to_S
        yield from_S[is_other_S], to_S[is_other_S], count_S[is_other_S]
        done = end


def _count(key_Q: Ints) -> tuple[Ints, Ints]:
    """The distinct keys and how often each occurs: by tallying where keys are dense, else by sorting."""
    if key_Q.max() < 2 * len(key_Q):
        count = np.bincount(key_Q)
        key_S = np.flatnonzero(count)
        return key_S, count[key_S]
    return np.unique(key_Q, return_counts=True)


def _best_of_each(from_S: Ints, value_S: NDArray[Any], n: int) -> Ints:
    """Places of the n greatest values of each row, rows ascending, equals by lower item."""
    order_S = np.lexsort((-value_S, from_S))
    row_S = from_S[order_S]
    rank_S = np.arange(len(row_S)) - np.searchsorted(row_S, row_S)
    return order_S[rank_S < n]
