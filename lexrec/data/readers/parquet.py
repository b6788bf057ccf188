"""Parquet: one file, or a folder of files read in the order of their names."""

from pathlib import Path

from ibis.expr import types as ir

from lexrec.data._engine import Engine

SUFFIXES = (".parquet", ".pq")
IS_TYPED = True


def read(path: Path, engine: Engine) -> ir.Table:
    """Open a file or a folder."""
    files = f"{path}/**/*.parquet" if path.is_dir() else str(path)
    return engine.view(engine.backend.read_parquet(files, table_name=engine.name()))
