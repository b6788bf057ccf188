"""One JSON object a line."""

from pathlib import Path

from ibis.expr import types as ir

from lexrec.data._engine import Engine

SUFFIXES = (".jsonl", ".ndjson")
IS_TYPED = True


def read(path: Path, engine: Engine) -> ir.Table:
    """Open a file, compressed or not; the whole of it is looked at to find the types."""
    guessed = engine.view(
        engine.backend.read_json(
            str(path), table_name=engine.name(), format="newline_delimited", sample_size=-1
        )
    )
    # A JSON string that looks like a date or a UUID is still a string.
    types = {
        name: "VARCHAR" if dtype.is_temporal() or dtype.is_uuid() else engine.type_name(dtype)
        for name, dtype in guessed.schema().items()
    }
    table = engine.backend.read_json(
        str(path), table_name=engine.name(), format="newline_delimited", columns=types
    )
    return engine.view(table)
