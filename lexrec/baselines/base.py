"""Counting baselines: fitted in one pass, ranked under the same protocol as any model.

Dimension key: B rows, J items of one block, I items (column 0 is item 1).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lexrec.config import Config
from lexrec.data.batch import Batch
from lexrec.data.dataset import Dataset


class BaselineConfig(Config):
    """Base of every baseline's config."""


class Baseline(ABC):
    """Base of every baseline. Fits `evaluation.scorer.Scorer`."""

    config: BaselineConfig
    n_items: int
    max_len: int
    """Newest events of a history that matter."""
    trims: bool = True
    """Rows may be shorter than `max_len`."""

    def __init__(self, config: BaselineConfig) -> None:
        self.config = config

    @abstractmethod
    def fit(self, dataset: Dataset) -> "Baseline":
        """Count the training events. Returns self."""

    @abstractmethod
    def encode(self, batch: Batch) -> Any:
        """What `score` needs of each row."""

    @abstractmethod
    def score(self, query: Any, first: int, last: int) -> Tensor:
        """Float32 scores of items first..last-1 (indexes, from 1), [B, last - first]: a new tensor."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything that was counted, to be saved as safetensors."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> "Baseline":
        """The inverse of `state`. Returns self."""


COMPONENT_BASE = Baseline
