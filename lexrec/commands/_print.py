"""How verbs print tables: aligned columns, on a terminal and into a file alike."""

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDE = 200
"""Columns of output that goes to no terminal, so that nothing is cut or folded."""


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print rows under a header; all columns but the first `left` are numbers and stand to the right."""
    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        # Ids and titles are text, whatever brackets they hold.
        table.add_row(*(Text(cell) for cell in row))
    is_terminal = sys.stdout.isatty()
    Console(width=None if is_terminal else _WIDE, highlight=False).print(table)
