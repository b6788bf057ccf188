"""Small tables, and a data set read back as plain lists, for tests of preparation."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from lexrec.data.dataset import Dataset
from lexrec.data.prepare import Columns, ItemTable, Options, build

EVENTS = [
    # user, item, time
    ("ann", "pen", 30),
    ("bob", "ink", 11),
    ("ann", "ink", 10),
    ("ann", "cap", 20),
    ("bob", "pen", 12),
    ("cyd", "cap", 5),
]
"""Three users, three items, no two times of a user alike."""


def table(rows: list[tuple[Any, ...]] = EVENTS, names: tuple[str, ...] = ("u", "i", "t")) -> pa.Table:
    """Rows as Arrow."""
    return pa.table({name: [row[place] for row in rows] for place, name in enumerate(names)})


def built(
    events: Any,
    columns: Columns | None = None,
    items: ItemTable | None = None,
    options: Options | None = None,
) -> Dataset:
    """A data set in memory."""
    return build(events, columns or Columns("u", "i", "t"), items=items, options=options or Options())


def histories(dataset: Dataset) -> dict[Any, list[Any]]:
    """The items of each user, oldest first, all as external ids."""
    users, items = dataset.users.ids, dataset.items
    spans = pairwise(dataset.offset_U.tolist())
    return {
        user: items.take(dataset.item_N[start:end]) for user, (start, end) in zip(users, spans, strict=True)
    }


def marks(dataset: Dataset) -> list[list[int]]:
    """The split marks of each user."""
    return [dataset.split_N[start:end].tolist() for start, end in pairwise(dataset.offset_U.tolist())]


def write(path: Path, text: str) -> Path:
    """A text file."""
    path.write_text(text, encoding="utf-8")
    return path
