"""One user a line, `user item item item ...`, separated by blanks, oldest first.

Gives the columns user_id, item_id and position. A user on several lines goes on where the last one ended.
"""

from pathlib import Path

import ibis
from ibis.expr import types as ir

from lexrec.data._engine import Engine

SUFFIXES = (".txt",)
IS_TYPED = False


def read(path: Path, engine: Engine) -> ir.Table:
    """Open a file, compressed or not."""
    lines = engine.backend.read_csv(
        str(path),
        table_name=engine.name(),
        header=False,
        columns={"text": "VARCHAR"},
        auto_detect=False,
        delim="\x01",
        quote="",
        escape="",
    )
    lines = engine.view(lines).mutate(line=ibis.row_number(), words=lines.text.strip().re_split(r"\s+"))
    lines = lines.filter(lines.words.length() > 1)
    words = lines.select("line", user_id=lines.words[0], item_id=lines.words[1:])
    events = words.unnest("item_id", offset="place")
    in_file = ibis.window(group_by="user_id", order_by=["line", "place"])
    events = events.mutate(position=ibis.row_number().over(in_file).cast("string"))
    return events.order_by("line", "place").select("user_id", "item_id", "position")
