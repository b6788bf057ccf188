"""Says on a terminal what preparation is at; silent anywhere else, so that logs hold results only."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Tell = Callable[..., None]
"""Told of each stage, `tell(stage)`, or how far it has come, `tell(stage, done, total)`."""


def tell_nobody(stage: str, done: int = 0, total: int | None = None) -> None:
    """For whoever does not want to hear."""


@contextmanager
def stages(file: TextIO | None = None) -> Iterator[Tell]:
    """A line that shows the stage, its time, and how far it is where that is known; it goes at the end.

    Args:
        file: standard error by default.
    """
    file = file or sys.stderr
    if not file.isatty() or os.environ.get("TERM", "dumb") in ("", "dumb"):
        yield tell_nobody
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TimeElapsedColumn(),
    )
    console = Console(file=file, force_terminal=True)
    with progress.Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        at, shown = "", bar.add_task("")

        def tell(stage: str, done: int = 0, total: int | None = None) -> None:
            nonlocal at, shown
            if stage != at:
                # A task that had a total cannot be without one again.
                bar.remove_task(shown)
                at, shown = stage, bar.add_task(stage, total=total)
                bar.refresh()
            bar.update(shown, completed=done)

        yield tell
