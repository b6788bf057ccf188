"""Ids become codes: 0, 1, ... in the order of the ids, integers by value and strings by code point."""

from typing import NamedTuple

import ibis
from ibis.expr import types as ir

from lexrec.data._engine import Engine, reading
from lexrec.data.columns import Columns, Role, Source, pick, read_roles
from lexrec.data.filters import Size, size

_HASH_DIGITS = 12
"""Hexadecimal digits of MD5 that order tied events: 48 bits."""


class Coded(NamedTuple):
    """Every event, with codes for ids."""

    events: ir.Table
    """int32 `user` and `item`, and `time`, `row`, `tie`, `rating`, `split` where they are needed."""
    order: list[str]
    """Columns that order a user's events."""
    users: ir.Table
    """`id` and int32 `code`."""
    items: ir.Table
    kinds: dict[str, str]
    """"integer" or "string" for user and item, the unit for time."""
    size: Size


def encode(source: Source, columns: Columns, ties: str, engine: Engine) -> Coded:
    """Check and convert the columns of a source, and encode its ids.

    Raises:
        DataError: a column is missing or cannot be read.
    """
    names = columns.roles()
    table = pick(source, names)
    is_by_row = ties == "row" or columns.time is None
    if is_by_row:
        table = table.mutate(row=ibis.row_number())
    engine.tell("reading")
    with reading(source.name):
        # Text is parsed once; what has types of its own is cheaper to scan again than to copy.
        read = table if source.is_typed else engine.keep(table)
    roles = read_roles(read, names, source, engine)
    values = {role: found.value for role, found in roles.items()}
    if is_by_row:
        values["row"] = read.row
    table = read.select(**values)
    if not is_by_row:
        table = table.mutate(tie=_tie(table))
    with reading(source.name):
        engine.tell("finding the ids")
        users, items = _vocabulary(table, "user", engine), _vocabulary(table, "item", engine)
        engine.tell("encoding the events")
        events = engine.keep(_coded(table, users, items))
        if not source.is_typed:
            engine.drop(read)
    kinds = {role: found.kind for role, found in roles.items()}
    return Coded(events, _order(roles, is_by_row), users, items, kinds, size(events, engine))


def _tie(table: ir.Table) -> ir.StringColumn:
    """Of two events of one user, the ids decide, but not by their order: MD5 of "USER ITEM"."""
    text = table.user.cast("string") + " " + table.item.cast("string")
    return text.hexdigest("md5").substr(0, _HASH_DIGITS)


def _order(roles: dict[str, Role], is_by_row: bool) -> list[str]:
    time = ["time"] if "time" in roles else []
    if is_by_row:
        return [*time, "row"]
    # Behind the hash, only to settle the one pair in 2^48 that shares it.
    return [*time, "tie", "item", *(["split"] if "split" in roles else [])]


def _vocabulary(table: ir.Table, role: str, engine: Engine) -> ir.Table:
    ids = table.select(id=table[role]).distinct()
    return engine.keep(ids.mutate(code=ibis.row_number().over(order_by="id").cast("int32")))


def _coded(table: ir.Table, users: ir.Table, items: ir.Table) -> ir.Table:
    rest = [name for name in table.columns if name not in ("user", "item")]
    joined = table.join(users, table.user == users.id).select("item", *rest, user=users.code)
    return joined.join(items, joined.item == items.id).select("user", *rest, item=items.code)
