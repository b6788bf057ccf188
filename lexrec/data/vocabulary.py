"""External ids and internal indexes. Ids live outside (data, recommender, api); models see indexes."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lexrec.errors import DataError

Id = str | int


class Vocabulary:
    """A list of distinct external ids, all strings or all integers, and the index of each.

    Args:
        ids: external ids in index order.
        first: index of the first id: 1 for items (0 is padding), 0 for users.
        what: "item" or "user", for messages.
    """

    def __init__(self, ids: Sequence[Id], *, first: int, what: str) -> None:
        self.ids = list(ids)
        self.first = first
        self.what = what

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def kind(self) -> Literal["string", "integer"]:
        """Type of the external ids."""
        return "integer" if self.ids and isinstance(self.ids[0], int) else "string"

    @cached_property
    def _index(self) -> dict[Id, int]:
        return {id_: index for index, id_ in enumerate(self.ids, self.first)}

    def parse(self, text: str) -> Id:
        """An id typed on a command line or in a URL, as the type this vocabulary has."""
        if self.kind == "string":
            return text
        try:
            return int(text)
        except ValueError as error:
            raise DataError(f"{self.what} id {text!r}: ids of this data set are integers") from error

    def find(self, id_: Id) -> int | None:
        """Index of an id, or None if it is unknown."""
        return self._index.get(id_)

    def index(self, id_: Id) -> int:
        """Index of an id.

        Raises:
            DataError: the id is unknown.
        """
        found = self._index.get(id_)
        if found is None:
            raise DataError(f"{self.what} {id_!r} is not in the data set ({len(self)} {self.what}s are)")
        return found

    def split_known(self, ids: Iterable[Id]) -> tuple[list[int], list[Id]]:
        """Indexes of the known ids in order, and the unknown ids."""
        given = list(ids)
        found = [*map(self._index.get, given)]
        if None not in found:
            return found, []  # type: ignore[return-value]
        known = [index for index in found if index is not None]
        return known, [id_ for id_, index in zip(given, found, strict=True) if index is None]

    def id(self, index: int) -> Id:
        """External id of an index."""
        return self.ids[index - self.first]

    def take(self, index_N: NDArray[np.integer]) -> list[Id]:
        """External ids of many indexes."""
        return [self.ids[i - self.first] for i in index_N.tolist()]
