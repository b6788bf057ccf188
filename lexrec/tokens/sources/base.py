"""What a source of token tables promises. One new file in this folder is one new scheme."""

from abc import ABC, abstractmethod
from typing import ClassVar

from lexrec.tokens.entry import Entry
from lexrec.tokens.table import TokenTable


class TokenSource(ABC):
    """Reads one table for `scheme:location#fragment`; the scheme is the name of the source's file."""

    is_remote: ClassVar[bool]
    """True where reading needs a network: the result is then cached, and refused when offline."""

    @abstractmethod
    def read(self, entry: Entry) -> TokenTable:
        """Read the table in bf16, with its provenance.

        Raises:
            TokensError: it cannot be found, read or trusted.
        """


COMPONENT_BASE = TokenSource
