"""A history as the tokens a language model reads: each event is an item token and, where wanted, its texts.

    [item 7] Red  Nail Polish ; Make up   [item 12] Brush ...

Every event takes the same number of places, 1 + T; those that an item's text leaves empty hold no token and
are seen by nobody, so shapes are known before the items are.

Dimension key: I item indexes 0..n + 1, B rows, L positions, N events, T text places of an event, S slots.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lexrec.data.batch import PAD, Batch
from lexrec.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

_BETWEEN = ";"
"""Between two columns of an item's text."""


class Events(NamedTuple):
    """The events of a batch as places in a stream."""

    item_N: Tensor
    """int64; PAD where there is no event."""
    history_NT: Tensor
    """int64 row of the batch, [N, 1 + T]."""
    position_NT: Tensor
    """int64 position of each place in its history, [N, 1 + T]."""
    is_token_NT: Tensor
    """True where there is a token, [N, 1 + T]."""
    item_place_N: Tensor
    """int64 flat place of each event's item token."""
    end_place_N: Tensor
    """int64 flat place of each event's last token."""


class Prompt(nn.Module):
    """Texts of items, cut into tokens once.

    Args:
        token_IT: int64 text tokens of each item index, [I, T]; T = 0: ids alone.
        length_I: how many of them are real.
    """

    token_IT: Tensor
    length_I: Tensor

    def __init__(self, token_IT: Tensor, length_I: Tensor) -> None:
        super().__init__()
        self.register_buffer("token_IT", token_IT, persistent=False)
        self.register_buffer("length_I", length_I, persistent=False)

    @staticmethod
    def ids_alone(n_items: int) -> "Prompt":
        """No texts."""
        return Prompt(
            torch.zeros(n_items + 2, 0, dtype=torch.int64), torch.zeros(n_items + 2, dtype=torch.int64)
        )

    @property
    def n_texts(self) -> int:
        """Text places of an event (T)."""
        return self.token_IT.shape[1]

    def mean_length(self, count_I: "NDArray[np.int64] | None") -> float:
        """Text tokens of an event, on average over `count_I` events of each item index; None: over items."""
        length_I = self.length_I.double()
        weight_I = torch.ones_like(length_I) if count_I is None else torch.from_numpy(count_I).double()
        weight_I[[0, -1]] = 0  # neither PAD nor MASK
        return float((length_I * weight_I).sum() / weight_I.sum().clamp(min=1))

    def events(self, batch: Batch) -> Events:
        """The events of a batch's slots, or of all its places where it has none."""
        item_BL = batch.item_BL
        B, L = item_BL.shape
        count_BL = (1 + self.length_I[item_BL]) * batch.is_item_BL
        start_M = (count_BL.cumsum(1) - count_BL).flatten()
        item_M = item_BL.flatten()
        if batch.slot_N is None:
            place_N = torch.arange(B * L, device=item_BL.device)
            item_N = item_M
        else:
            place_N = batch.slot_N.clamp(max=B * L - 1)
            item_N = torch.where(batch.slot_N < B * L, item_M[place_N], PAD)
        offset_T = torch.arange(1 + self.n_texts, device=item_BL.device)
        length_N = self.length_I[item_N]
        is_token_NT = (offset_T <= length_N[:, None]) & (item_N != PAD)[:, None]
        event_N = torch.arange(len(item_N), device=item_BL.device)
        return Events(
            item_N,
            (place_N // L)[:, None].expand(-1, len(offset_T)),
            start_M[place_N][:, None] + offset_T,
            is_token_NT,
            event_N * len(offset_T),
            event_N * len(offset_T) + length_N,
        )


def read_texts(
    item_table: "pa.Table | None", columns: Sequence[str], text_len: int, tokenizer: Any
) -> Prompt:
    """The texts of all items as tokens, titles before what else is named.

    Args:
        item_table: row i is item index i + 1.
        columns: which of its columns, in this order.
        text_len: tokens of each column's text that are kept.
        tokenizer: transformers' tokenizer of the language model.

    Raises:
        ConfigError: there is no such column, or no item has a word in any of them.
    """
    there = [] if item_table is None else item_table.column_names
    absent = [column for column in columns if column not in there]
    if item_table is None or absent:
        known = ", ".join(name for name in there if name != "item_id") or "none"
        raise ConfigError(
            f"model.columns: the data set's items have no column {', '.join(map(repr, absent))}; "
            f"known: {known}; "
            "prepare it again with --items FILE --title COLUMN, or set model.columns=[] for ids alone"
        )
    values = [item_table[column].to_pylist() for column in columns]
    if not any(value for column in values for value in column):
        raise ConfigError(f"model.columns: no item has any text in {', '.join(columns)}")
    between = _cut(tokenizer, [_BETWEEN])[0]
    cut = [_cut(tokenizer, [f" {value}" if value else "" for value in column]) for column in values]
    rows: list[list[int]] = [[]]
    for texts in zip(*cut, strict=True):
        kept = [text[:text_len] for text in texts if text]
        rows.append([token for i, text in enumerate(kept) for token in (between if i else []) + text])
    rows.append([])
    longest = max(len(row) for row in rows)
    token_IT = torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.int64)
    return Prompt(token_IT, torch.tensor([len(row) for row in rows], dtype=torch.int64))


def _cut(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return found
