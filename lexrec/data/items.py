"""The item table: what is known of each item besides who chose it.

Dimension key: C codes, of all items that events have.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from ibis.expr import types as ir
from numpy.typing import NDArray

from lexrec.data._engine import Engine, reading
from lexrec.data.columns import Role, Source, is_integer_text, pick, read_roles
from lexrec.data.readers import open_source
from lexrec.errors import DataError


@dataclass(frozen=True)
class ItemTable:
    """Where items are described."""

    data: Any
    """Any source that interactions can come from."""
    id: str | None = None
    """Column of item ids; by default it is called as in the interactions."""
    title: str | None = None
    """Column of titles, stored as `title`."""
    category: str | None = None
    """Column of categories, stored as `category`; a list becomes one text, joined by ", "."""
    keep: tuple[str, ...] = ()
    """Further columns, stored under their own names."""
    format: str | None = None
    """Name of the file format, where the path's suffix does not say it."""

    def names(self, item: str) -> dict[str, str]:
        """Column of the item table for each stored column."""
        said = {"item_id": self.id or item, "title": self.title, "category": self.category}
        names = {stored: name for stored, name in said.items() if name is not None}
        taken = sorted(set(self.keep) & names.keys())
        if taken:
            raise DataError(
                f"item table: {', '.join(taken)} cannot be kept beside the column stored by that name"
            )
        return names | {name: name for name in self.keep}


class Described(NamedTuple):
    """The item vocabulary with what is known of each item."""

    table: pa.Table
    """`item_id` and the stored columns, by code."""
    is_known_C: NDArray[np.bool_]
    """True where the item table has a row."""
    name: str
    """What the item table is called."""
    n_rows: int
    """Rows of the item table."""
    note: str | None
    """What was converted, if anything was."""


def describe(vocabulary: ir.Table, kind: str, items: ItemTable, item: str, engine: Engine) -> Described:
    """Join the item table to the vocabulary.

    Args:
        vocabulary: `id` and `code` of every item that events have.
        kind: "integer" or "string", the type of those ids.
        items: the item table.
        item: name of the events' item column.
        engine: where both are.

    Raises:
        DataError: unreadable, an item is there twice, or its ids are of another type.
    """
    names = items.names(item)
    source = open_source(items.data, list(names.values()), items.format, engine, "the item table")
    table = pick(source, names)
    with reading(source.name):
        table = engine.keep(table.mutate(**_texts(table)))
    role = read_roles(table, {"item_id": names["item_id"]}, source, engine)["item_id"]
    table, note = _matched(table, role, kind, source, engine)
    _refuse_repeats(table, source, engine)
    # The user's columns may have any name: ours must not meet them.
    ours = vocabulary.select(lexrec_id="id", lexrec_code="code")
    known = ours.left_join(table, ours.lexrec_id == table.item_id).order_by("lexrec_code")
    rows = engine.rows(known.drop("lexrec_code"))
    is_known_C = rows["item_id"].is_valid().to_numpy()
    rows = rows.drop_columns("item_id").rename_columns({"lexrec_id": "item_id"})
    n_rows = engine.count(table)
    if not is_known_C.any():
        raise DataError(
            f"{source.name}: none of its {n_rows:,} item ids occurs in the interactions "
            f"(theirs are like {rows['item_id'][0].as_py()!r}); is {names['item_id']!r} the right column?"
        )
    return Described(rows, is_known_C, source.name, n_rows, note)


def _texts(table: ir.Table) -> dict[str, Any]:
    """Title and category as text, whatever they came as."""
    texts = {}
    for name in {"title", "category"} & set(table.columns):
        column = table[name]
        if column.type().is_array():
            # Engines differ in what an empty list becomes.
            column = column.map(lambda part: part.cast("string")).join(", ").nullif("")
        texts[name] = column.cast("string")
    return texts


def _matched(
    table: ir.Table, role: Role, kind: str, source: Source, engine: Engine
) -> tuple[ir.Table, str | None]:
    """The table with ids of the events' type, and what was done to them."""
    if role.kind == kind:
        return table.mutate(item_id=role.value), None
    if kind == "string":
        note = f"{source.name}: integer item ids were read as strings, as the interactions have them"
        return table.mutate(item_id=role.value.cast("string")), note
    odd = table.filter(~is_integer_text(table.item_id)).select("item_id")
    n_odd = engine.count(odd)
    if n_odd:
        example = engine.one(odd.order_by("item_id").limit(1))["item_id"]
        raise DataError(
            f"{source.name}: item ids are integers in the interactions, but {n_odd:,} here are not, "
            f"such as {example!r}; name the column that holds the same ids (--item-id)"
        )
    note = f"{source.name}: item ids written as text were read as integers, as the interactions have them"
    return table.mutate(item_id=table.item_id.cast("int64")), note


def _refuse_repeats(table: ir.Table, source: Source, engine: Engine) -> None:
    counts = table.group_by("item_id").aggregate(n=table.count())
    repeated = engine.keep(counts.filter(counts.n > 1))
    n_repeated = engine.count(repeated)
    if n_repeated:
        example = engine.one(repeated.order_by("item_id").limit(1))
        raise DataError(
            f"{source.name}: {n_repeated:,} items are there more than once, such as {example['item_id']!r} "
            f"({example['n']} times); keep one row for each"
        )
