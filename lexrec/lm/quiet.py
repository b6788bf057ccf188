"""Keeps transformers from writing to standard error, which belongs to progress and errors of ours."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and advice on standard error."""
    from transformers.utils import logging as hf_logging

    level, has_bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if has_bars:
            hf_logging.enable_progress_bar()
