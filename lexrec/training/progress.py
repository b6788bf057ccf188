"""Reports training to the person who waits: a bar on a terminal, a plain line a validation elsewhere.

Everything goes to standard error, so that standard output stays free for results.
"""

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import SupportsFloat, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

REDRAW_SECONDS = 0.5
"""Shortest time between two redraws. A redraw reads the loss, which on a GPU waits for the device."""

Loss = SupportsFloat | Callable[[], float]


class Progress:
    """Reports steps and validations; used as a context manager.

    Args:
        total_steps: optimizer steps of the whole run, at most.
        done: steps taken before this process, for a resumed run.
        metric: the metric to show, such as "ndcg@10"; the first one of a validation by default.
        quiet: report nothing.
        file: where to write, standard error by default. A terminal gets a bar, anything else lines.
        clock: seconds from any origin.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        done: int = 0,
        metric: str | None = None,
        quiet: bool = False,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps = total_steps
        self.metric = metric
        self.quiet = quiet
        self._done = self._done_before = done
        self._file = sys.stderr if file is None else file
        self._clock = clock
        self._loss: Loss = float("nan")
        self._n_items = 0
        self._started = self._rate_from = self._last_step = self._drawn = clock()
        self._validation = self._best = self._rate = ""
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        self._started = self._rate_from = self._last_step = self._drawn = self._clock()
        if not self.quiet and is_terminal(self._file):
            # Redrawn by hand: a thread of rich's own would read the loss at any moment.
            console = Console(file=self._file, force_terminal=True)
            self._live = Live(self._picture(), console=console, auto_refresh=False, redirect_stdout=False)
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._redraw(self._live)
            self._live.stop()
            self._live = None

    def step(self, loss: Loss, n_items: int) -> None:
        """One optimizer step was taken.

        Args:
            loss: a number, a detached tensor on any device, or a function; read only when it is shown.
            n_items: items the step trained on.
        """
        self._done += 1
        self._loss = loss
        self._n_items += n_items
        self._last_step = self._clock()
        if self._live is not None and self._last_step - self._drawn >= REDRAW_SECONDS:
            self._redraw(self._live)

    def validated(self, epoch: int, metrics: dict[str, float], best: bool) -> None:
        """One validation was made.

        Args:
            epoch: the epoch it was made after.
            metrics: by name; empty where there is nothing to validate on.
            best: True if no earlier validation was as good.
        """
        name = self.metric if self.metric in metrics else next(iter(metrics), None)
        value = "" if name is None else f"{metrics[name]:.4f}"
        self._best = value if best else self._best
        self._validation = " ".join(filter(None, [f"epoch {epoch}", name, value]))
        if self._live is not None:
            self._redraw(self._live)
        elif not self.quiet:
            print(self._line(), file=self._file, flush=True)
        # What validation took is not training's time.
        self._rate_from, self._n_items = self._clock(), 0

    def _line(self) -> str:
        best = f"best {self._best}" if self._best else ""
        loss = self._loss() if callable(self._loss) else self._loss
        seconds = self._last_step - self._rate_from
        if seconds > 0:
            self._rate = f"{self._n_items / seconds:,.0f} items/s"
        shown = [self._validation, best, f"loss {float(loss):.4f}", self._rate, f"ETA {self._eta()}"]
        return " | ".join(filter(None, shown))

    def _eta(self) -> str:
        taken = self._done - self._done_before
        if taken == 0:
            return "-:--:--"
        left = (self._clock() - self._started) / taken * max(self.total_steps - self._done, 0)
        minutes, seconds = divmod(round(left), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"

    def _picture(self) -> Group:
        share = self._done / self.total_steps if self.total_steps else 1.0
        row = Table.grid(expand=True, padding=(0, 1))
        row.add_column(ratio=1)
        row.add_column(justify="right", no_wrap=True)
        row.add_row(ProgressBar(total=1.0, completed=share), f"{share:.0%}")
        return Group(row, Text(self._line(), no_wrap=True, overflow="ellipsis"))

    def _redraw(self, live: Live) -> None:
        live.update(self._picture(), refresh=True)
        self._drawn = self._clock()


def is_terminal(file: TextIO) -> bool:
    """True if `file` is a terminal that can move its cursor."""
    return file.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")
