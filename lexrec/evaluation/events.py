"""What is evaluated: every test (or validation) event of a data set, as flat arrays.

The history of an event is everything its user did before it, earlier test events included ("rolling"):
under a time split a user has several events, each ranked once, each with all that was known by then.

Dimension key: E evaluation events, N events of the data set, R events of one batch, L positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lexrec.data.batch import PAD, Batch
from lexrec.data.dataset import TEST, VALIDATION, Dataset
from lexrec.errors import DataError

Split = Literal["validation", "test"]
_MARKS = {"validation": VALIDATION, "test": TEST}


class Pairs(NamedTuple):
    """Items set aside for single rows of a batch, as flat (row, item) pairs; repeats do no harm."""

    row_S: torch.Tensor
    item_S: torch.Tensor

    @staticmethod
    def of(items_B: Sequence[Sequence[int]]) -> "Pairs":
        """One list of item indexes a row."""
        row_S = torch.repeat_interleave(torch.tensor([len(items) for items in items_B], dtype=torch.int64))
        return Pairs(row_S, torch.tensor(list(chain.from_iterable(items_B)), dtype=torch.int64))

    def to(self, device: torch.device | str) -> "Pairs":
        """The same pairs on another device."""
        return Pairs(self.row_S.to(device), self.item_S.to(device))

    def within(self, first: int, last: int) -> "Pairs":
        """The pairs whose item lies in first..last-1, items counted from `first`."""
        here_S = (self.item_S >= first) & (self.item_S < last)
        return Pairs(self.row_S[here_S], self.item_S[here_S] - first)

    def split(self, bounds: Sequence[int]) -> list["Pairs"]:
        """The pairs of rows bounds[i]..bounds[i + 1] - 1 for each i, rows counted from bounds[i].

        The bounds ascend from 0 to the number of rows.
        """
        if len(bounds) == 2 or len(self.row_S) == 0:
            return [self] * (len(bounds) - 1)
        row_S, item_S = self
        if (row_S[1:] < row_S[:-1]).any():
            order_S = row_S.argsort()
            row_S, item_S = row_S[order_S], item_S[order_S]
        cuts = torch.searchsorted(row_S, torch.tensor(bounds, device=row_S.device)).tolist()
        parts = zip(bounds, pairwise(cuts), strict=False)
        return [Pairs(row_S[a:b] - first_row, item_S[a:b]) for first_row, (a, b) in parts]


@dataclass(frozen=True)
class Events:
    """Evaluation events in the order of the data set."""

    user_E: NDArray[np.int64]
    target_E: NDArray[np.int64]
    """Item index that came next."""
    start_E: NDArray[np.int64]
    end_E: NDArray[np.int64]
    """The history is `dataset.item_N[start:end]`."""

    def __len__(self) -> int:
        return len(self.target_E)

    @property
    def length_E(self) -> NDArray[np.int64]:
        """Events in each history."""
        return self.end_E - self.start_E


def evaluation_events(dataset: Dataset, split: Split) -> Events:
    """The events of one split.

    Raises:
        DataError: the data set has none.
    """
    place_E = np.flatnonzero(np.asarray(dataset.split_N) == _MARKS[split])
    if len(place_E) == 0:
        raise DataError(
            f"this data set has no {split} events; prepare it with a split that makes some "
            "(--split leave-one-out, time or given)"
        )
    user_E = np.searchsorted(dataset.offset_U, place_E, side="right") - 1
    target_E = dataset.item_N[place_E].astype(np.int64)
    return Events(user_E, target_E, dataset.offset_U[user_E], place_E)


class Asked(NamedTuple):
    """Events of one batch, with all that ranking them needs."""

    pick_R: NDArray[np.int64]
    """Which events they are."""
    batch: Batch
    target_R: torch.Tensor
    seen: Pairs
    """The items of each whole history."""

    def to(self, device: torch.device | str) -> "Asked":
        """The same events on another device."""
        return Asked(self.pick_R, self.batch.to(device), self.target_R.to(device), self.seen.to(device))


def batches(
    dataset: Dataset, events: Events, batch_size: int, max_len: int, *, trims: bool
) -> Iterator[Asked]:
    """All events, `batch_size` at a time; where rows may be trimmed, short histories share short rows.

    The longest come first: what they take of memory, the shorter ones take again.
    """
    length_E = np.minimum(events.length_E, max_len)
    order_E = np.argsort(-length_E, kind="stable") if trims else np.arange(len(events))
    for first in range(0, len(events), batch_size):
        pick_R = order_E[first : first + batch_size]
        length = max(int(length_E[pick_R].max()), 1) if trims else max_len
        target_R = torch.from_numpy(events.target_E[pick_R])
        batch = histories(dataset, events, pick_R, length)
        yield Asked(pick_R, batch, target_R, seen_items(dataset, events, pick_R))


def histories(dataset: Dataset, events: Events, pick_R: NDArray[np.int64], length: int) -> Batch:
    """The newest `length` items before each picked event, left-padded, on the CPU."""
    end_R1 = events.end_E[pick_R, None]
    place_RL = end_R1 + np.arange(-length, 0)
    is_item_RL = place_RL >= events.start_E[pick_R, None]
    place_RL = np.maximum(place_RL, 0)
    item_RL = np.where(is_item_RL, dataset.item_N[place_RL].astype(np.int64), PAD)
    time_RL = None
    if dataset.time_N is not None:
        time_RL = torch.from_numpy(np.where(is_item_RL, dataset.time_N[place_RL], 0))
    length_R = torch.from_numpy(is_item_RL.sum(1))
    user_R = torch.from_numpy(events.user_E[pick_R])
    return Batch(torch.from_numpy(item_RL), length_R, user_R, time_RL)


def seen_items(dataset: Dataset, events: Events, pick_R: NDArray[np.int64]) -> Pairs:
    """Every item of the whole history of each picked event, however long it is."""
    length_R = events.length_E[pick_R]
    row_S = np.repeat(np.arange(len(pick_R)), length_R)
    first_S = np.repeat(events.start_E[pick_R] - (np.cumsum(length_R) - length_R), length_R)
    item_S = dataset.item_N[first_S + np.arange(len(row_S))].astype(np.int64)
    return Pairs(torch.from_numpy(row_S), torch.from_numpy(item_S))
