"""RecBole's atomic files: tab-separated, with headers such as `user_id:token` and `timestamp:float`."""

from pathlib import Path

from ibis.expr import types as ir

from lexrec.data._engine import Engine
from lexrec.data.readers import _delimited

SUFFIXES = (".inter", ".item", ".user")
IS_TYPED = False


def read(path: Path, engine: Engine) -> ir.Table:
    """Open a file; columns go by the part of their header before the colon."""
    table = _delimited.read(path, engine, delimiter="\t", quote="")
    return table.rename({header.partition(":")[0]: header for header in table.columns})
