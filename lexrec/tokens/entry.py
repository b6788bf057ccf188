"""What to read: one line of the catalogue, or the same made from a source that a user wrote."""

import re

from pydantic import Field

from lexrec.config import Config

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


class Entry(Config):
    """One token table to be read: where it lies and, where known, what must be found there."""

    name: str
    """What the table is called in recipes and reports."""
    source: str
    """`hf:repo@rev#file:tensor`, `pypi:name==version#file:tensor` or `file:path#tensor`."""
    tokens: str = ""
    """File with the token strings, beside the tensor's file; empty looks for the usual names."""
    tokenizer: str = ""
    """tokenizer.json, beside the tensor's file; empty looks for it."""
    shape: tuple[int, int] | None = None
    """Rows and width; another shape is refused."""
    licence: str = ""
    sha256: str = Field("", pattern="^([0-9a-f]{64})?$")
    """Hash of the tensor's bytes as the source stores them; other bytes are refused."""
    about: str = ""
    """One line for people."""

    @property
    def scheme(self) -> str:
        return self.source.partition(":")[0]

    @property
    def location(self) -> str:
        """The source between its scheme and `#`."""
        return self.source.partition(":")[2].partition("#")[0]

    @property
    def fragment(self) -> str:
        """The source after `#`, empty where there is none."""
        return self.source.partition("#")[2]


def plain_name(text: str) -> str:
    """A name that is safe as a folder: letters, digits, dot, dash and underscore."""
    return _NOT_IN_NAMES.sub("-", text).strip("-.").lower() or "table"
