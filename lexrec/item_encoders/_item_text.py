"""The texts of items, and the tokens of a table they are made of.

Dimension key: N texts, T tokens of the longest text, V tokens of a table, W width of a table, I item indexes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lexrec.errors import ConfigError
from lexrec.item_encoders._comparable import comparable
from lexrec.item_encoders._text_config import TextTokensConfig
from lexrec.tokens.table import TokenTable
from lexrec.tokens.tokenize import token_rows

if TYPE_CHECKING:
    import pyarrow as pa

Text = Mapping[str, str | None]
"""What is known of one item: column -> text."""


class TextTokens(NamedTuple):
    """Texts as rows of a token table."""

    token_NT: Tensor
    """int64 rows of the table; 0 where a text has ended."""
    is_token_NT: Tensor
    """True where there is a token."""


@dataclass(frozen=True)
class Part:
    """One text of an item read through one table."""

    table: TokenTable
    columns: tuple[str, ...]

    def read(self, texts: Sequence[Text], config: TextTokensConfig) -> TextTokens:
        """The tokens of this part of each item, cut off at `config.text_len`."""
        joined = [" ".join(text.get(column) or "" for column in self.columns) for text in texts]
        if config.lowercase:
            joined = [text.lower() for text in joined]
        rows = [row[: config.text_len] for row in token_rows(self.table, joined)]
        longest = max((1, *(len(row) for row in rows)))  # one place where no text has a token
        padded = [row + [0] * (longest - len(row)) for row in rows]
        token_NT = torch.tensor(padded, dtype=torch.int64).view(len(rows), longest)
        length_N1 = torch.tensor([len(row) for row in rows], dtype=torch.int64)[:, None]
        return TextTokens(token_NT, torch.arange(longest) < length_N1)


def parts(tables: Sequence[TokenTable], config: TextTokensConfig) -> list[Part]:
    """Every table, as the options want it, with every column, or with all columns joined."""
    columns = [(column,) for column in config.columns] if config.per_column else [config.columns]
    prepared = []
    for i, table in enumerate(tables):
        if config.random_seed is not None:
            table = table.random_like(config.random_seed + i)
        prepared.append(comparable(table, centre=config.centre, scale=config.table_scale))
    return [Part(table, names) for table in prepared for names in columns]


def item_texts(item_table: "pa.Table | None", config: TextTokensConfig) -> list[Text]:
    """The configured columns of each item, in index order.

    Raises:
        ConfigError: there is no such column, or no item has a word in any of them.
    """
    there = [] if item_table is None else item_table.column_names
    absent = [column for column in config.columns if column not in there]
    if item_table is None or absent:
        known = ", ".join(name for name in there if name != "item_id") or "none"
        raise ConfigError(
            f"text_tokens: the data set's items have no column {', '.join(map(repr, absent))}; "
            f"known: {known}; prepare it again with --items FILE --title COLUMN --category COLUMN, or choose "
            "item_encoder.columns"
        )
    texts = {column: item_table[column].to_pylist() for column in config.columns}
    found: list[Text] = [
        {column: None if text is None else str(text) for column, text in zip(texts, row, strict=True)}
        for row in zip(*texts.values(), strict=True)
    ]
    if not any(text for item in found for text in item.values()):
        raise ConfigError(f"text_tokens: no item has any text in {', '.join(config.columns)}")
    return found
