"""From histories of item indexes to the best items: the one thing that serving asks of a model.

A `Ranker` speaks NumPy only, so that what serves without torch can have the same shape.

Dimension key: B histories, K list length, A allowed items.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Items = Sequence[int] | NDArray[np.integer]
"""Item indexes, 1..n_items."""


class Ranked(NamedTuple):
    """Best items of each history, best first."""

    item_BK: NDArray[np.int64]
    """Item indexes; PAD where a list ends early."""
    score_BK: NDArray[np.float32]
    """-inf where a list ends early."""


class Ranker(Protocol):
    """Ranks the whole catalogue for histories of item indexes."""

    n_items: int

    def rank(
        self,
        histories: Sequence[Items],
        k: int,
        exclude: Sequence[Items] | None = None,
        allow: NDArray[np.int64] | None = None,
    ) -> Ranked:
        """The k best items of each history, exactly; equal scores in order of the item index.

        Args:
            histories: item indexes of each, oldest first; an empty one is answered too.
            k: length of the lists, at least 1; lists are never longer than the catalogue.
            exclude: for each history, items not to be shown.
            allow: the only items that may be shown, [A]; None: all.
        """
        ...
