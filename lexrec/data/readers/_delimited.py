"""What the delimited text formats share: every value stays the text it is, and nothing is guessed.

A guessed type would turn the ids 007 and 7 into one, and a guessed dialect skips the lines it does not like.
"""

import csv
import gzip
from pathlib import Path

from ibis.expr import types as ir

from lexrec.data._engine import Engine
from lexrec.errors import DataError


def read(path: Path, engine: Engine, *, delimiter: str, quote: str) -> ir.Table:
    """Open a file with a header line; every column is text, an empty one is null."""
    table = engine.backend.read_csv(
        str(path),
        table_name=engine.name(),
        auto_detect=False,
        header=True,
        columns=dict.fromkeys(_header(path, delimiter, quote), "VARCHAR"),
        delim=delimiter,
        quote=quote,
        escape=quote,
    )
    return engine.view(table)


def _header(path: Path, delimiter: str, quote: str) -> list[str]:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        if quote:
            names = next(csv.reader(file, delimiter=delimiter, quotechar=quote), [])
        else:
            names = next(csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE), [])
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not names:
        raise DataError(f"{path.name} is empty; its first line names the columns")
    if repeated:
        raise DataError(f"{path.name} names the column {repeated[0]!r} more than once; rename one")
    return names
