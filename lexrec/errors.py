"""Every error lexrec raises on purpose. The command line prints its text as one line and exits 2.

LexrecError
├── ConfigError    a recipe, an override or a component name is wrong
├── DataError      interactions, an item table or a data set folder is wrong
├── TokensError    a token table cannot be found, read or trusted
├── LmError        a pretrained language model cannot be found, read or changed as asked
├── RunError       a run directory is incomplete, changed or unreadable
│   └── DamagedError   a file of it is missing or damaged
└── ProtocolError  results that were not measured alike would be compared

A message carries the offending value, what is allowed, and the fix.
"""

from pathlib import Path


class LexrecError(Exception):
    """Base class: catch this to catch everything lexrec raises on purpose."""


class ConfigError(LexrecError):
    """A recipe, an override or a component name is wrong."""


class DataError(LexrecError):
    """Interactions, an item table or a data set folder is wrong."""


class TokensError(LexrecError):
    """A token table cannot be found, read or trusted."""


class LmError(LexrecError):
    """A pretrained language model cannot be found, read or changed as asked."""


class RunError(LexrecError):
    """A run directory is incomplete, changed or unreadable."""


class DamagedError(RunError):
    """A file of a run directory is missing or damaged."""

    def __init__(self, path: Path, why: object) -> None:
        super().__init__(f"{path} is missing or damaged: {' '.join(str(why).split())}")
        self.path = path


class ProtocolError(LexrecError):
    """Results that were not measured alike would be compared."""
