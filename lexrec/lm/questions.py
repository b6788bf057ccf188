"""Questions that name what the wanted item is: "I am looking for nail polish".

They are made from the item table: each value of a column in some wordings, so that a model is trained on
answers that its users gave (the item they took next) without a dialogue written by hand. One wording is never
trained, and measured all the same.

Dimension key: I item indexes 0..n + 1, C columns, V values (0: none), P wordings, B rows, Q text places.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lexrec.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

WORDINGS = (
    "{}, please",
    "I am looking for {}",
    "show me {}",
    "something like the last one, in {}",
    "what would suit me in {}?",
    "next, {}",
    "{}",
    "do you have any {}?",
)
"""The last one is kept out of training."""
_LONGEST = 24
"""Tokens of a question that are kept."""


class Text(NamedTuple):
    """Some text in each row, its tokens first, then places without one."""

    token_BQ: Tensor
    """int64."""
    is_token_BQ: Tensor

    @staticmethod
    def of(texts: Sequence[str], tokenizer: Any) -> "Text":
        """One text a row.

        Raises:
            ConfigError: one has no word.
        """
        empty = next((text for text in texts if not text.strip()), None)
        if empty is not None:
            raise ConfigError(f"a question has at least one word, got {empty!r}")
        said = [f" {' '.join(text.split())}" for text in texts]
        rows = tokenizer(said, add_special_tokens=False)["input_ids"]
        token_BQ, length_B = side_by_side(rows)
        return Text(token_BQ, torch.arange(token_BQ.shape[1]) < length_B[:, None])

    def to(self, device: torch.device) -> "Text":
        """The same text on another device."""
        return Text(self.token_BQ.to(device), self.is_token_BQ.to(device))


class Questions(nn.Module):
    """What can be asked for, as tokens.

    Args:
        columns: of the item table.
        labels: of each value, as it is said; labels[0] is none.
        value_IC: int64 value of each item index in each column; 0 where it has none.
        token_VPQ: int64 tokens of each value in each wording.
        length_VP: how many of them are real.
    """

    value_IC: Tensor
    token_VPQ: Tensor
    length_VP: Tensor

    def __init__(
        self,
        columns: Sequence[str],
        labels: Sequence[str],
        value_IC: Tensor,
        token_VPQ: Tensor,
        length_VP: Tensor,
    ) -> None:
        super().__init__()
        self.columns, self.labels = tuple(columns), tuple(labels)
        for name, tensor in (("value_IC", value_IC), ("token_VPQ", token_VPQ), ("length_VP", length_VP)):
            self.register_buffer(name, tensor, persistent=False)

    @staticmethod
    def of(item_table: "pa.Table | None", columns: Sequence[str], tokenizer: Any) -> "Questions":
        """Every value of some columns.

        Args:
            item_table: row i is item index i + 1.
            columns: which of its columns.
            tokenizer: transformers' tokenizer of the language model.

        Raises:
            ConfigError: there is no such column, or it says nothing of any item.
        """
        labels, values = [""], []
        for column in columns:
            said = item_labels(item_table, column)
            known = sorted(set(said) - {""})
            number_of = {"": 0} | {label: len(labels) + i for i, label in enumerate(known)}
            labels += known
            values.append([0, *(number_of[label] for label in said), 0])
        texts = [f" {wording.format(label)}" for label in labels for wording in WORDINGS]
        rows = [row[:_LONGEST] for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        token_XQ, length_X = side_by_side(rows)
        shape = (len(labels), len(WORDINGS))
        value_IC = torch.tensor(values, dtype=torch.int64).T.contiguous()
        return Questions(columns, labels, value_IC, token_XQ.view(*shape, -1), length_X.view(shape))

    def text(self, value_B: Tensor, wording_B: Tensor) -> Text:
        """The question for each row's value."""
        place_Q = torch.arange(self.token_VPQ.shape[2], device=value_B.device)
        length_B = self.length_VP[value_B, wording_B]
        return Text(self.token_VPQ[value_B, wording_B], place_Q < length_B[:, None])

    def draw(self, item_B: Tensor) -> tuple[Text, Tensor]:
        """A question that each item answers, its column and wording drawn, and True where there is one."""
        column_B = torch.randint(len(self.columns), item_B.shape, device=item_B.device)
        wording_B = torch.randint(len(WORDINGS) - 1, item_B.shape, device=item_B.device)
        value_B = self.value_IC[item_B, column_B]
        return self.text(value_B, wording_B), value_B > 0


def item_labels(item_table: "pa.Table | None", column: str) -> list[str]:
    """What a column calls each item, in lower case; of a path such as A > B > C its end. "" if it is empty.

    Raises:
        ConfigError: there is no such column, or it says nothing of any item.
    """
    there = [] if item_table is None else item_table.column_names
    if item_table is None or column not in there:
        known = ", ".join(name for name in there if name != "item_id") or "none"
        raise ConfigError(
            f"questions: the data set's items have no column {column!r}; known: {known}; "
            "prepare it again with --items FILE --category COLUMN"
        )
    texts = [str(value or "") for value in item_table[column].to_pylist()]
    labels = [" ".join(text.rpartition(">")[2].split()).lower() for text in texts]
    if not any(labels):
        raise ConfigError(f"questions: no item has any text in {column}")
    return labels


def woven(before_BS: Tensor, text_BQ: Tensor, place: int) -> Tensor:
    """`text_BQ` put in before slot `place` of each row, whatever further dimensions both have."""
    return torch.cat([before_BS[:, :place], text_BQ, before_BS[:, place:]], 1)


def side_by_side(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Tokens, [X, Q], and how many of each row are real."""
    longest = max(len(row) for row in rows)
    token_XQ = torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.int64)
    return token_XQ, torch.tensor([len(row) for row in rows], dtype=torch.int64)
