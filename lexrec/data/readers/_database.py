"""Tables of databases that Ibis reaches, and Ibis tables themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ibis
from ibis.common.exceptions import IbisError
from ibis.expr import types as ir

from lexrec.data._engine import Engine
from lexrec.data.columns import Source
from lexrec.data.readers import _frames
from lexrec.errors import DataError

_FILE_SCHEMES = ("duckdb", "sqlite")


def open_address(address: str, wanted: list[str], engine: Engine) -> Source:
    """Open `scheme://...#table` or `scheme://...#schema.table`.

    Raises:
        DataError: no table is named, or the database cannot be reached.
    """
    url, _, name = address.partition("#")
    scheme = urlsplit(url).scheme
    if not name:
        raise DataError(f"a database address ends in #table, such as {scheme}:///shop.db#events")
    # The address may hold a password: messages and the manifest name the table only.
    called = f"{scheme} table {name!r}"
    schema, _, table = name.rpartition(".")
    with _reaching(called, url):
        backend = _connect(url, scheme)
        try:
            return open_table(backend.table(table, database=schema or None), called, wanted, engine)
        finally:
            backend.disconnect()


def open_table(table: ir.Table, called: str, wanted: list[str], engine: Engine) -> Source:
    """Use a table where it is, if that is in the engine; else copy the wanted columns over."""
    columns = tuple(table.columns)
    with _reaching(called):
        if _backend(table) is engine.backend:
            return Source(_spelled_out(table, wanted), called, True, columns)
        present = [name for name in dict.fromkeys(wanted) if name in columns]
        if not present:
            return Source(table, called, True, columns)
        loaded = engine.load(_frames.decoded_batches(table.select(present).to_pyarrow_batches()))
    return Source(loaded, called, True, columns)


def _spelled_out(table: ir.Table, wanted: list[str]) -> ir.Table:
    """DuckDB's enumerations pass for strings but sort by their definition; a concatenation is a string."""
    texts = [
        name for name in dict.fromkeys(wanted) if name in table.columns and table[name].type().is_string()
    ]
    return table.mutate(**{name: table[name] + "" for name in texts})


def _connect(url: str, scheme: str) -> Any:
    path = url.partition("://")[2].partition("?")[0]
    if scheme in _FILE_SCHEMES and not Path(path).exists():
        # Connecting would make an empty database.
        raise DataError(f"there is no file {path!r}")
    if scheme == "duckdb" and "read_only" not in url:
        url += ("&" if "?" in url else "?") + "read_only=True"
    return ibis.connect(url)


def _backend(table: ir.Table) -> Any:
    try:
        return table.get_backend()
    except IbisError:
        return None


@contextmanager
def _reaching(called: str, url: str = "") -> Iterator[None]:
    """Every database driver has errors of its own: all of them mean that the table cannot be read."""
    secret = urlsplit(url).password
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = "; ".join(lines[:2]) or type(error).__name__
        text = text.replace(secret, "***") if secret else text
        raise DataError(f"cannot read {called}: {text}") from error
