"""Where preparation runs: any Ibis backend, an embedded DuckDB unless another is given.

What differs between engines stands here and nowhere else.
"""

import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import ibis
import pyarrow as pa
from ibis.common.exceptions import IbisError
from ibis.expr import types as ir

from lexrec.data import _memory
from lexrec.data._stages import Tell, tell_nobody
from lexrec.errors import DataError

_LONGEST = 300
"""Characters of an engine's complaint that are passed on: it may quote a whole line of a file."""
BATCH_ROWS = 1_000_000
"""Rows that come from an engine at once."""
_DISK_FULL = ("No space left on device", "File too large", "max_temp_directory_size")


class Engine:
    """An Ibis backend, and the tables that preparation keeps in it until it is done."""

    def __init__(self, backend: Any, *, is_ours: bool = False, tell: Tell = tell_nobody) -> None:
        self.backend, self.tell = backend, tell
        # In a database of our own tables are compressed in its file; in another they must be temporary.
        self._is_temporary = not is_ours
        self._kept: set[str] = set()
        self._views: set[str] = set()

    def keep(self, table: ir.Table) -> ir.Table:
        """The table, computed once and held by the engine."""
        name = self.name()
        kept: ir.Table = self.backend.create_table(name, table, temp=self._is_temporary)
        self._kept.add(name)
        return kept

    def load(self, data: pa.Table | pa.RecordBatchReader) -> ir.Table:
        """Rows from memory or from another database, in their order."""
        name = self.name()
        self.backend.con.register(name, data)
        try:
            return self.keep(self.backend.table(name))
        finally:
            self.backend.con.unregister(name)

    def drop(self, table: ir.Table) -> None:
        """Give back the room of a kept table; nothing for any other."""
        name = table.get_name()
        if name in self._kept:
            self._kept.discard(name)
            self.backend.drop_table(name, force=True)

    def close(self) -> None:
        """Drop every table and view of ours that is still there."""
        for name in sorted(self._kept):
            self.backend.drop_table(name, force=True)
        for name in sorted(self._views):
            self.backend.drop_view(name, force=True)
        self._kept.clear()
        self._views.clear()

    def rows(self, table: ir.Table) -> pa.Table:
        """All rows as Arrow."""
        return self.backend.to_pyarrow(table)

    def one(self, table: ir.Table) -> dict[str, Any]:
        """The only row of a table."""
        row: dict[str, Any] = self.rows(table).to_pylist()[0]
        return row

    def count(self, table: ir.Table) -> int:
        """Number of rows."""
        return int(self.one(table.aggregate(n=table.count()))["n"])

    def batches(self, table: ir.Table) -> pa.RecordBatchReader:
        """All rows as Arrow, some at a time."""
        return self.backend.to_pyarrow_batches(table, chunk_size=BATCH_ROWS)

    def view(self, table: ir.Table) -> ir.Table:
        """A file opened by the engine: its view is dropped with the kept tables."""
        self._views.add(table.get_name())
        return table

    def type_name(self, dtype: Any) -> str:
        """How the engine writes an Ibis type."""
        return str(self.backend.compiler.type_mapper.to_string(dtype))

    @staticmethod
    def name() -> str:
        """A name nothing else has."""
        return f"lexrec_{uuid.uuid4().hex}"


@contextmanager
def working(
    backend: Any | None, memory: str | int | None = None, place: Path | None = None, tell: Tell = tell_nobody
) -> Iterator[Engine]:
    """The given backend, or an embedded DuckDB whose tables lie in a scratch folder; nothing is left behind.

    Args:
        backend: an Ibis backend; it keeps its own settings of memory and place.
        memory: what preparation may take in all, as `lexrec prepare --memory`; half the machine's by default.
        place: where the scratch folder is made, the system's place for such by default.
        tell: told of each stage.

    Raises:
        DataError: the engine gave up, for instance for want of memory or of room on the disk.
    """
    scratch = Path(tempfile.mkdtemp(prefix=".lexrec-", dir=place))
    own = None
    try:
        if backend is None:
            own = _embedded(scratch, memory)
        engine = Engine(own or backend, is_ours=own is not None, tell=tell)
        with _quiet(), _utc(engine.backend):
            try:
                yield engine
            finally:
                if own is None:
                    engine.close()
    except (duckdb.Error, MemoryError) as error:
        raise DataError(_complaint(error, scratch.parent, own)) from error
    except RuntimeError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            # DuckDB's word for Ctrl-C.
            raise KeyboardInterrupt from error
        raise
    finally:
        if own is not None:
            own.disconnect()
        shutil.rmtree(scratch, ignore_errors=True)


def _embedded(scratch: Path, memory: str | int | None) -> Any:
    """A database of our own that keeps to its share of the memory."""
    own = ibis.duckdb.connect(
        scratch / "tables.duckdb", temp_directory=str(scratch), autoinstall_known_extensions=False
    )
    limit, n_cores = own.con.execute(
        "SELECT current_setting('memory_limit'), current_setting('threads')"
    ).fetchone()
    # DuckDB knows what there is, in a container too, and would take four fifths of it.
    n_bytes = _memory.default(limit) if memory is None else _memory.parse_memory(memory)
    share = _memory.engine_share(n_bytes)
    own.con.execute(f"SET memory_limit = '{share // 2**10}KiB'")
    own.con.execute(f"SET threads = {_memory.engine_threads(share, n_cores)}")
    return own


def _complaint(error: Exception, place: Path, own: Any | None) -> str:
    """What an engine that gave up says, with the way out where we know one."""
    text = str(error)
    if own is not None and any(said in text for said in _DISK_FULL):
        return (
            f"no room is left in {place}, where preparation keeps tables until it is done; "
            "nothing was left behind, free some room or choose another place (--out)"
        )
    if own is not None and isinstance(error, duckdb.OutOfMemoryException | MemoryError):
        return (
            "preparation ran out of memory; nothing was left behind, "
            "give it more (--memory 8GiB, memory='8GiB') or take fewer columns"
        )
    return f"preparation failed in the engine: {_first_lines(error)}"


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn an engine's complaint about a source into one line about it."""
    try:
        yield
    except (duckdb.Error, pa.ArrowException, IbisError, OSError, UnicodeError) as error:
        if isinstance(error, duckdb.OutOfMemoryException) or any(said in str(error) for said in _DISK_FULL):
            raise  # not the source's fault
        raise DataError(f"cannot read {what}: {_first_lines(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Ibis still calls what its own dependencies have deprecated; users can do nothing about that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextmanager
def _utc(backend: Any) -> Iterator[None]:
    """Text without an offset is UTC, wherever the machine stands."""
    if backend.name != "duckdb":
        yield
        return
    (zone,) = backend.con.execute("SELECT current_setting('TimeZone')").fetchone()
    backend.con.execute("SET TimeZone = 'UTC'")
    try:
        yield
    finally:
        backend.con.execute(f"SET TimeZone = '{zone}'")


def _first_lines(error: Exception) -> str:
    # DuckDB goes on to quote the statement, which is none of the user's.
    text = str(error).partition("\nLINE ")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = "; ".join(lines[:3]) or type(error).__name__
    return said if len(said) <= _LONGEST else said[:_LONGEST] + " ..."
