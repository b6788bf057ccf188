"""Popularity: everybody is shown what was taken most often in training, whatever their history.

Dimension key: B rows, I item indexes 0..n + 1.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from lexrec.baselines.base import Baseline, BaselineConfig
from lexrec.data.batch import Batch
from lexrec.data.dataset import Dataset


class PopularityConfig(BaselineConfig):
    """Popularity has no settings."""

    name: Literal["popularity"] = "popularity"


class Popularity(Baseline):
    """Scores an item by its number of training events."""

    config: PopularityConfig
    max_len = 1

    def fit(self, dataset: Dataset) -> "Popularity":
        return self.load_state({"count_I": torch.from_numpy(dataset.train_count_I)})

    def encode(self, batch: Batch) -> int:
        """The number of rows: nothing of a history matters."""
        return len(batch.length_B)

    def score(self, query: int, first: int, last: int) -> Tensor:
        return self.count_I[first:last].float().repeat(query, 1)

    def state(self) -> dict[str, Tensor]:
        return {"count_I": self.count_I}

    def load_state(self, state: Mapping[str, Tensor]) -> "Popularity":
        self.count_I = state["count_I"]
        self.n_items = len(self.count_I) - 2
        return self
