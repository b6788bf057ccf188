"""What the delimited text formats share: every value stays the text it is.

A guessed type would turn the ids 007 and 7 into one.
"""

from pathlib import Path

from ibis.expr import types as ir

from lexrec.data._engine import Engine


def read(path: Path, engine: Engine, *, delimiter: str, quote: str) -> ir.Table:
    """Open a file with a header line; every column is text, an empty one is null."""
    table = engine.backend.read_csv(
        str(path),
        table_name=engine.name(),
        header=True,
        all_varchar=True,
        delim=delimiter,
        quote=quote,
        escape=quote,
    )
    return engine.view(table)
