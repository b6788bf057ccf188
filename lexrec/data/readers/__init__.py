"""One file a format: the file is the registration.

A module here has `SUFFIXES` (of the files it reads), `IS_TYPED` (False: every column is text) and
`read(path, engine)`, which opens a file as an Ibis table without loading it. Whatever is not a file
(data frames, database tables) is in the modules whose names start with an underscore.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from ibis.expr import types as ir

from lexrec import registry
from lexrec.data._engine import Engine, reading
from lexrec.data.columns import Source
from lexrec.data.readers import _database, _frames
from lexrec.errors import DataError


def formats() -> list[str]:
    """The file formats there are."""
    return registry.names("data.readers")


def open_source(data: Any, wanted: list[str], file_format: str | None, engine: Engine, called: str) -> Source:
    """Open interactions or an item table, whatever holds them.

    Args:
        data: a path, the address of a database table, an Ibis table, or a pandas, polars or Arrow table.
        wanted: columns that will be read; of what is not a file only these are taken over.
        file_format: name of a format, instead of what the path's suffix says.
        engine: where it will be read.
        called: what messages call a table that has no name of its own.

    Raises:
        DataError: no such file or table, an unknown format, or one that cannot be read.
    """
    if isinstance(data, ir.Table):
        return _database.open_table(data, called, wanted, engine)
    if not isinstance(data, str | Path):
        return _frames.open_frame(data, called, wanted, engine)
    if "://" in str(data):
        return _database.open_address(str(data), wanted, engine)
    path = _existing(Path(data))
    reader = _reader(path, file_format)
    name = path.resolve().name
    with reading(name):
        table = reader.read(path, engine)
    return Source(table, name, reader.IS_TYPED, tuple(table.columns))


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"there is no file {str(path)!r}")
    return path


def _reader(path: Path, file_format: str | None) -> ModuleType:
    if file_format is not None and file_format not in formats():
        raise DataError(f"no format {file_format!r}; formats: {', '.join(formats())}")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    if path.is_dir():
        suffixes = [".parquet"]
    for name in formats() if file_format is None else [file_format]:
        reader = importlib.import_module(f"{__name__}.{name}")
        if file_format is not None or (suffixes and suffixes[-1] in reader.SUFFIXES):
            return reader
    raise DataError(
        f"{path.name}: the name does not say which format it has; "
        f"say it with --format (format=...): {', '.join(formats())}"
    )
