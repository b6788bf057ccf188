"""How verbs print recommendations and tables: aligned columns, on a terminal and into a file alike."""

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDE = 200
"""Columns of output that goes to no terminal, so that nothing is cut or folded."""


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print rows under a header; all columns but the first `left` are numbers and stand to the right.

    A column without any text, such as titles where none are known, is left out.
    """
    table = Table(box=box.SIMPLE_HEAD)
    filled = [i for i in range(len(header)) if not rows or any(row[i] for row in rows)]
    for i in filled:
        table.add_column(header[i], justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        # Ids and titles are text, whatever brackets they hold.
        table.add_row(*(Text(row[i]) for i in filled))
    if title:
        print(title)
    Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False).print(table)


def recommended(ids: Sequence[object], titles: Sequence[str], scores: Sequence[float]) -> list[list[str]]:
    """Rows of rank, item, title and score."""
    rows = zip(ids, titles, scores, strict=True)
    return [[str(rank), str(id_), title, f"{score:.5g}"] for rank, (id_, title, score) in enumerate(rows, 1)]


def note_gaps(unknown: Sequence[object], by_popularity: bool) -> None:
    """Say on standard error what of a history was not known."""
    if unknown:
        print(f"unknown items, left out: {', '.join(map(str, unknown))}", file=sys.stderr)
    if by_popularity:
        print("no known item in the history: these are the most popular items", file=sys.stderr)
