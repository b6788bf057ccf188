"""Tables in memory: pandas, polars, Arrow, and whatever else speaks Arrow's stream protocol."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from lexrec.data._engine import Engine
from lexrec.data.columns import Source
from lexrec.errors import DataError


def open_frame(data: Any, called: str, wanted: list[str], engine: Engine) -> Source:
    """Take over the wanted columns.

    Raises:
        DataError: not a table, or a column holds values of mixed types.
    """
    if type(data).__module__.startswith("polars") and hasattr(data, "collect"):
        data = data.collect()
    columns = _column_names(data, called)
    names = [name for name in dict.fromkeys(wanted) if name in columns]
    if not names:
        return Source(engine.load(pa.table({"none": pa.array([], pa.int64())})), called, True, columns)
    table = pa.table({name: _column(data, name, called) for name in names})
    return Source(engine.load(_decoded(table)), called, True, columns)


def decoded_batches(reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """The same rows with dictionary columns spelled out: an engine sorts those by code, not by value."""
    schema = pa.schema([pa.field(field.name, _plain(field.type)) for field in reader.schema])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in reader:
            yield batch.cast(schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _decoded(table: pa.Table) -> pa.Table:
    return table.cast(pa.schema([pa.field(field.name, _plain(field.type)) for field in table.schema]))


def _plain(dtype: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(dtype):
        return _plain(dtype.value_type)
    # A column of nothing but nulls has no type of its own.
    return pa.string() if pa.types.is_null(dtype) or pa.types.is_string_view(dtype) else dtype


def _column_names(data: Any, called: str) -> tuple[str, ...]:
    if isinstance(data, pa.Table | pa.RecordBatch):
        return tuple(data.column_names)
    package = type(data).__module__.partition(".")[0]
    if package not in ("pandas", "polars") or not hasattr(data, "columns"):
        raise DataError(
            f"cannot read {called} from a {type(data).__name__}; "
            "allowed: a path, a database address, an Ibis, pandas, polars or Arrow table"
        )
    return tuple(str(name) for name in data.columns)


def _column(data: Any, name: str, called: str) -> pa.ChunkedArray | pa.Array:
    try:
        if isinstance(data, pa.Table | pa.RecordBatch):
            return data.column(name)
        if type(data).__module__.startswith("polars"):
            return data.get_column(name).to_arrow()
        return pa.array(data[name], from_pandas=True)
    except (pa.ArrowException, TypeError) as error:
        kinds = data[name].dropna().map(lambda value: type(value).__name__).value_counts()
        if len(kinds) == 1:
            return pa.array(data[name].astype(str))
        found = ", ".join(f"{n:,} {kind}" for kind, n in kinds.items())
        raise DataError(
            f"{called}: column {name!r} holds values of mixed types ({found}); make them one"
        ) from error
