"""What the columns of a table of events mean, whatever their types: ids, an order, a rating, a split.

Ids stay what they are: strings stay strings, integers stay integers. A column is looked at as a whole,
in one pass, before anything is converted, so that what cannot be converted is counted and refused.
"""

import difflib
from dataclasses import dataclass
from typing import Any, NamedTuple

import ibis
import numpy as np
import pyarrow as pa
from ibis.expr import types as ir
from numpy.typing import NDArray

from lexrec.data._engine import Engine, reading
from lexrec.data.splits import INTEGER, MARKS, MICROSECOND, MILLIONTH
from lexrec.errors import DataError

_EXACT = 2.0**53
"""Floats beyond this skip integers."""
_MOST_MILLIONTHS = 9.0e12
"""Larger numbers times a million leave int64."""


@dataclass(frozen=True)
class Source:
    """A table to read."""

    table: ir.Table
    name: str
    """What the user calls it, for messages and the manifest."""
    is_typed: bool
    """False: a text format, every column is text and ids that all look like integers are integers."""
    columns: tuple[str, ...]
    """Every column the user's table has; `table` may hold only those that were asked for."""


@dataclass(frozen=True)
class Columns:
    """The columns of events, by role."""

    user: str
    item: str
    time: str | None = None
    rating: str | None = None
    split: str | None = None

    def roles(self) -> dict[str, str]:
        """Column name of each role there is."""
        return {role: name for role, name in vars(self).items() if name is not None}


class Role(NamedTuple):
    """How a column is read: the converted expression, and the unit of times or kind of ids."""

    value: Any
    kind: str


def pick(source: Source, names: dict[str, str]) -> ir.Table:
    """Columns under the names of their roles.

    Raises:
        DataError: a column does not exist.
    """
    for name in names.values():
        if name not in source.columns:
            raise DataError(_no_column(name, source))
    return source.table.select(**{role: source.table[name] for role, name in names.items()})


def read_roles(table: ir.Table, names: dict[str, str], source: Source, engine: Engine) -> dict[str, Role]:
    """Look at each column once and say how to read it.

    Args:
        table: has one column a role, under the role's name.
        names: what the user calls each of them.
        source: where the table is from.
        engine: where it is read.

    Raises:
        DataError: no rows, null or mixed ids, times or ratings that cannot be read.
    """
    checks: dict[str, Any] = {"rows": table.count()}
    for role in names:
        checks |= {f"{role}_{check}": value for check, value in _checks(table[role], role, source).items()}
    with reading(source.name):
        found = engine.one(table.aggregate(**checks))
    if found["rows"] == 0:
        raise DataError(f"{source.name} has no rows")
    roles = {}
    for role, name in names.items():
        seen = {
            check.removeprefix(f"{role}_"): n for check, n in found.items() if check.startswith(f"{role}_")
        }
        reader = {"time": _read_time, "rating": _read_rating, "split": _read_split}.get(role, _read_id)
        roles[role] = reader(
            _Looked(table, table[role], role, name, seen | {"rows": found["rows"]}, source, engine)
        )
    return roles


def stored_times(column: pa.ChunkedArray | pa.Array, unit: str) -> NDArray[np.int64]:
    """Order values as they came from the engine, as int64 of a unit. Never turns an order around."""
    if unit == INTEGER:
        return np.asarray(column.cast(pa.int64()))
    if unit == MILLIONTH:
        return np.floor(np.asarray(column) * 1e6 + 0.5).astype(np.int64)
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        return np.asarray(column.cast(pa.int64())) // 1000
    return np.asarray(column.cast(pa.timestamp("us", tz=getattr(column.type, "tz", None))).cast(pa.int64()))


class _Looked(NamedTuple):
    """A column and what was counted in it."""

    table: ir.Table
    column: Any
    role: str
    name: str
    seen: dict[str, Any]
    source: Source
    engine: Engine

    def example(self, is_fault: Any) -> Any:
        """The first faulty value in sorted order, the same one on every run."""
        faults = self.table.filter(is_fault).select(value=self.column).order_by("value").limit(1)
        return self.engine.one(faults)["value"]


def _checks(column: Any, role: str, source: Source) -> dict[str, Any]:
    """What to count in a column; every count is of faults, so 0 is well."""
    dtype = column.type()
    checks = {"null": column.isnull()}
    if dtype.is_floating() or dtype.is_decimal():
        value = column.cast("float64")
        checks |= {"unbounded": _is_unbounded(value), "fraction": _has_fraction(value)}
        checks |= {"wide": value.abs() > _MOST_MILLIONTHS}
    elif dtype.is_string() and role == "time":
        number = column.try_cast("float64")
        checks |= {"no_integer": ~is_integer_text(column), "no_moment": _moment(column).isnull()}
        checks |= {"no_number": number.isnull() | _is_unbounded(number), "fraction": _has_fraction(number)}
        checks |= {"wide": number.abs() > _MOST_MILLIONTHS}
    elif dtype.is_string() and role == "rating":
        checks |= {"no_number": column.try_cast("float64").isnull() & column.notnull()}
    elif dtype.is_string() and not source.is_typed:
        checks |= {"no_integer": ~is_integer_text(column)}
    return {name: is_fault.fill_null(False).sum() for name, is_fault in checks.items()}


def _read_id(looked: _Looked) -> Role:
    column, seen = looked.column, looked.seen
    dtype = column.type()
    where = f"{looked.source.name}: {looked.role.removesuffix('_id')} ids (column {looked.name!r})"
    if seen["null"]:
        raise DataError(
            f"{where}: {seen['null']:,} of {seen['rows']:,} are missing; drop those rows or fill them in"
        )
    if dtype.is_json():
        # A JSON column is one whose values have no type in common; its strings keep their quotes.
        n_text = looked.engine.count(looked.table.filter(column.cast("string").startswith('"')))
        raise DataError(
            f"{where} are of mixed types ({n_text:,} strings, {seen['rows'] - n_text:,} others); "
            "make them one"
        )
    if dtype.is_integer():
        return Role(column.cast("int64"), "integer")
    if dtype.is_floating() or dtype.is_decimal():
        number = column.cast("float64")
        is_fault = _is_unbounded(number) | _has_fraction(number)
        if seen["unbounded"] or seen["fraction"]:
            value = looked.example(is_fault)
            n = seen["unbounded"] + seen["fraction"]
            raise DataError(
                f"{where}: {n:,} are not whole numbers, such as {value}; make them strings or integers"
            )
        return Role(column.cast("int64"), "integer")
    if dtype.is_string():
        is_integer = not looked.source.is_typed and not seen["no_integer"]
        return Role(column.cast("int64"), "integer") if is_integer else Role(column, "string")
    if dtype.is_nested() or dtype.is_binary():
        raise DataError(f"{where} are of type {dtype}; an id is a string, an integer or another single value")
    return Role(column.cast("string"), "string")


def _read_time(looked: _Looked) -> Role:
    column, seen = looked.column, looked.seen
    dtype = column.type()
    if seen["null"]:
        raise DataError(
            f"{looked.source.name}: {seen['null']:,} of {seen['rows']:,} times (column {looked.name!r}) "
            "are missing; drop those rows or fill them in"
        )
    if dtype.is_integer():
        return Role(column.cast("int64"), INTEGER)
    if dtype.is_timestamp() or dtype.is_date():
        return Role(column, MICROSECOND)
    if dtype.is_floating() or dtype.is_decimal():
        number = column.cast("float64")
        if seen["unbounded"]:
            raise _unreadable(looked, seen["unbounded"], looked.example(_is_unbounded(number)))
        return _numbers(number, looked)
    if not dtype.is_string():
        raise DataError(
            f"{looked.source.name}: times (column {looked.name!r}) are of type {dtype}; "
            "allowed: timestamp, date, integer, float, ISO text"
        )
    if not seen["no_integer"]:
        return Role(column.cast("int64"), INTEGER)
    number = column.try_cast("float64")
    if not seen["no_number"]:
        return _numbers(number, looked)
    if not seen["no_moment"]:
        return Role(_moment(column), MICROSECOND)
    if seen["no_number"] < seen["no_moment"]:
        raise _unreadable(looked, seen["no_number"], looked.example(number.isnull() | _is_unbounded(number)))
    raise _unreadable(looked, seen["no_moment"], looked.example(_moment(column).isnull()))


def _numbers(number: Any, looked: _Looked) -> Role:
    """Floats are stored whole where they all are, in millionths otherwise; they are ordered as they stand."""
    if not looked.seen["fraction"]:
        return Role(number.cast("int64"), INTEGER)
    if looked.seen["wide"]:
        value = looked.example(number.abs() > _MOST_MILLIONTHS)
        raise DataError(
            f"{looked.source.name}: times (column {looked.name!r}) have fractions and go up to {value:g}, "
            f"beyond {_MOST_MILLIONTHS:g}; make them whole numbers"
        )
    return Role(number, MILLIONTH)


def _read_rating(looked: _Looked) -> Role:
    column, seen = looked.column, looked.seen
    dtype = column.type()
    where = f"{looked.source.name}: ratings (column {looked.name!r})"
    if dtype.is_numeric():
        return Role(_number(column.cast("float64")), "number")
    if not dtype.is_string():
        raise DataError(f"{where} are of type {dtype}; a rating is a number")
    number = column.try_cast("float64")
    if seen["no_number"]:
        value = looked.example(number.isnull() & column.notnull())
        raise DataError(
            f"{where}: {seen['no_number']:,} of {seen['rows']:,} are not numbers, such as {value!r}"
        )
    return Role(_number(number), "number")


def _read_split(looked: _Looked) -> Role:
    """Marks as numbers; there are few distinct values, so each is looked up by name."""
    column = looked.column
    values = looked.engine.rows(looked.table.select(value=column).distinct())["value"].to_pylist()
    marks = {value: _mark(value) for value in values}
    unknown = sorted(repr(value) for value, mark in marks.items() if mark is None)
    if unknown:
        raise DataError(
            f"{looked.source.name}: split column {looked.name!r} holds {', '.join(unknown[:5])}; "
            f"allowed: {', '.join(MARKS)}, or 0, 1 and 2"
        )
    return Role(column.cases(*marks.items()).cast("int8"), "mark")


def _mark(value: Any) -> int | None:
    if isinstance(value, str):
        return MARKS.get(value.strip().lower(), {"0": 0, "1": 1, "2": 2}.get(value.strip()))
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return int(value) if is_number and value in (0, 1, 2) else None


def _number(value: Any) -> Any:
    """Null for what is not a number: engines hold that it is larger than any."""
    return value.isnan().ifelse(ibis.null("float64"), value)


def _moment(column: Any) -> Any:
    """ISO text as a moment in UTC; text without an offset is taken as UTC. Null where it is neither."""
    return column.try_cast("timestamp('UTC')")


def is_integer_text(column: Any) -> Any:
    """True where text is exactly how an integer is written: 12, -3, but not 007, +3 or 1e3."""
    return (column.try_cast("int64").cast("string") == column).fill_null(False)


def _is_unbounded(value: Any) -> Any:
    """True for what no integer stands for: not a number, infinite, or so large that integers are skipped."""
    return value.isnan() | value.isinf() | (value.abs() > _EXACT)


def _has_fraction(value: Any) -> Any:
    """True where a number that an integer could stand for is not one."""
    # Not by floor(): engines give that as an integer, and fail where there is none.
    return (value % 1 != 0) & ~_is_unbounded(value)


def _unreadable(looked: _Looked, n: int, value: Any) -> DataError:
    return DataError(
        f"{looked.source.name}: {n:,} of {looked.seen['rows']:,} times (column {looked.name!r}) cannot be "
        f"read, such as {value!r}; "
        "a time is a timestamp, a date, a number or ISO text such as 2024-05-01T12:00:00Z"
    )


def _no_column(name: str, source: Source) -> str:
    near = difflib.get_close_matches(name, source.columns, n=1)
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{source.name} has no column {name!r}{guess}; it has: {', '.join(source.columns)}"
