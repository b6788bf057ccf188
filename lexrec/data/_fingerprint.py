"""The identity of a data set: equal for equal data, whatever prepared it and however it is stored."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa


def fingerprint(arrays: dict[str, NDArray[Any]], user_table: "pa.Table", item_table: "pa.Table") -> str:
    """sha256 over the arrays and the tables' values.

    Widths of Arrow types, chunks and the order of columns do not count: only names and values do.
    """
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}:{array.dtype.str}:{array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    for role, table in (("users", user_table), ("items", item_table)):
        for name in sorted(table.column_names):
            digest.update(f"{role}:{name}:{len(table)}\n".encode())
            _add(digest, table[name].combine_chunks())
    return digest.hexdigest()


def _add(digest: Any, column: "pa.Array") -> None:
    """Nulls, then values in one width for each family of types."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        # Some Arrow versions keep the chunks of a column they could not join.
        column = pa.concat_arrays(column.chunks)
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _add(digest, column.cast(kind.value_type))
    digest.update(np.packbits(column.is_valid().to_numpy(zero_copy_only=False)).data)
    if pa.types.is_boolean(kind):
        _add_numbers(digest, "boolean", column.fill_null(False), np.uint8)
    elif pa.types.is_integer(kind) and kind != pa.uint64():
        _add_numbers(digest, "integer", column.fill_null(0), np.int64)
    elif pa.types.is_floating(kind):
        _add_numbers(digest, "float", column.fill_null(0.0), np.float64)
    elif _is_text(kind):
        _add_text(digest, column.cast(pa.large_string()).fill_null(""))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        _add_numbers(digest, "list", column.value_lengths().fill_null(0), np.int64)
        _add(digest, column.flatten())
    else:
        digest.update(json.dumps(column.to_pylist(), default=str, ensure_ascii=False).encode())
    return None


def _add_numbers(digest: Any, family: str, column: "pa.Array", dtype: type[Any]) -> None:
    digest.update(family.encode())
    digest.update(np.ascontiguousarray(column.to_numpy(zero_copy_only=False).astype(dtype)).data)


def _add_text(digest: Any, column: "pa.Array") -> None:
    import pyarrow.compute as pc

    _add_numbers(digest, "text", pc.binary_length(column), np.int64)
    start_N = np.frombuffer(column.buffers()[1], dtype=np.int64)[column.offset :][: len(column) + 1]
    if column.buffers()[2] is not None and len(column):
        digest.update(memoryview(column.buffers()[2])[int(start_N[0]) : int(start_N[-1])])


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
