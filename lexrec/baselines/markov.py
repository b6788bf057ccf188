"""First-order Markov chain: what came next, in training, after the newest item.

    P(j | i) = (c_ij + a * p_j) / (c_i + a)

c_ij counts adjacent training events i -> j of one user, c_i is their sum over j, and p_j is the share of all
training events that are j. With a = 1, the default, popularity decides only between equal counts, and alone
after an item that nothing followed or an empty history.

The smoothing is that of a Dirichlet prior (MacKay & Peto 1995, doi.org/10.1017/S1351324900000218).

Dimension key: B rows, L positions, I item indexes 0..n + 1, S stored transitions, J items of one block.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lexrec.baselines._sparse import SparseRows, Taken
from lexrec.baselines.base import Baseline, BaselineConfig
from lexrec.data.batch import Batch
from lexrec.data.dataset import TRAIN, Dataset


class MarkovConfig(BaselineConfig):
    """Settings of the Markov chain."""

    name: Literal["markov"] = "markov"
    prior: float = Field(1.0, gt=0)
    """Weight of popularity, in transitions (a)."""


class _Query(NamedTuple):
    counts: Taken
    """c_ij / (c_i + a) for the newest item of each row."""
    prior_B1: Tensor
    """a / (c_i + a)."""


class Markov(Baseline):
    """Scores an item by its probability of following the newest one."""

    config: MarkovConfig
    max_len = 1

    def fit(self, dataset: Dataset) -> "Markov":
        is_train_N = np.asarray(dataset.split_N) == TRAIN
        user_N = np.repeat(np.arange(dataset.n_users), np.diff(dataset.offset_U))
        is_pair_N = is_train_N[1:] & is_train_N[:-1] & (user_N[1:] == user_N[:-1])
        from_S = dataset.item_N[:-1][is_pair_N].astype(np.int64)
        to_S = dataset.item_N[1:][is_pair_N]
        size = dataset.n_items + 2
        key_S, count_S = np.unique(from_S * size + to_S, return_counts=True)
        offset_I = np.searchsorted(key_S, np.arange(size + 1) * size)
        state = {
            "offset_R": torch.from_numpy(offset_I),
            "item_S": torch.from_numpy((key_S % size).astype(np.int32)),
            "value_S": torch.from_numpy(count_S.astype(np.float32)),
            "count_I": torch.from_numpy(dataset.train_count_I),
        }
        return self.load_state(state)

    def encode(self, batch: Batch) -> _Query:
        newest_B = batch.item_BL[:, -1]
        weight_B = 1 / (self.total_I[newest_B] + self.config.prior)
        counts = self.next_item.take(torch.arange(len(newest_B)), newest_B, weight_B)
        return _Query(counts, (self.config.prior * weight_B)[:, None])

    def score(self, query: _Query, first: int, last: int) -> Tensor:
        return query.counts.add_to(query.prior_B1 * self.share_I[first:last], first)

    def state(self) -> dict[str, Tensor]:
        return self.next_item.state() | {"count_I": self.count_I}

    def load_state(self, state: Mapping[str, Tensor]) -> "Markov":
        self.next_item = SparseRows.of(state)
        self.count_I = state["count_I"]
        self.share_I = (self.count_I / self.count_I.sum().clamp(min=1)).float()
        self.n_items = len(self.count_I) - 2
        filled_S = torch.cat([torch.zeros(1, dtype=torch.float64), self.next_item.value_S.double().cumsum(0)])
        self.total_I = filled_S[self.next_item.offset_R].diff().float()
        return self
