"""Comma-separated values with a header line."""

from pathlib import Path

from ibis.expr import types as ir

from lexrec.data._engine import Engine
from lexrec.data.readers import _delimited

SUFFIXES = (".csv",)
IS_TYPED = False


def read(path: Path, engine: Engine) -> ir.Table:
    """Open a file, compressed or not."""
    return _delimited.read(path, engine, delimiter=",", quote='"')
