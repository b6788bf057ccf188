"""Why an item: " because it is nail polish, like OPI Red Shatter", made of the item table.

    because it is VALUE, like TITLE       the newest event of the history with the same value
    because it is VALUE, after TITLE      where none has it: the newest event

Such sentences are what a model is trained on; what it says later is its own, greedily chosen.

Dimension key: I item indexes 0..n + 1, V values, T places of a title, B rows, L positions, Q text places.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lexrec.lm.prompt import read_texts
from lexrec.lm.questions import Questions, Text, side_by_side

if TYPE_CHECKING:
    import pyarrow as pa

OPENING = "because it is"
_LIKE, _AFTER = ", like", ", after"
_TITLE_LEN = 12
"""Tokens of a title that are kept."""


class Reasons(nn.Module):
    """Parts of sentences as tokens.

    Args:
        value_I: int64 value of each item index; 0: none, and no reason.
        parts: tokens and lengths of the opening [1, .], of values [V, .], of like and after [2, .], of titles
            [I, .] and of the end of a text [1, .].
    """

    value_I: Tensor

    def __init__(self, value_I: Tensor, parts: dict[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.register_buffer("value_I", value_I, persistent=False)
        for name, (token, length) in parts.items():
            self.register_buffer(f"{name}_token", token, persistent=False)
            self.register_buffer(f"{name}_length", length, persistent=False)

    @staticmethod
    def of(item_table: "pa.Table", questions: Questions, tokenizer: Any) -> "Reasons":
        """Reasons by the first column that questions name.

        Raises:
            ConfigError: no item has a title.
        """

        def cut(*texts: str) -> tuple[Tensor, Tensor]:
            return side_by_side(tokenizer(list(texts), add_special_tokens=False)["input_ids"])

        titles = read_texts(item_table, ["title"], _TITLE_LEN, tokenizer)
        end = torch.tensor([[tokenizer.eos_token_id]]), torch.tensor([1])
        parts = {
            "opening": cut(f" {OPENING}"),
            "value": cut(*(f" {label}" for label in questions.labels)),
            "link": cut(_LIKE, _AFTER),
            "title": (titles.token_IT, titles.length_I),
            "end": end,
        }
        return Reasons(questions.value_IC[:, 0], parts)

    @property
    def n_opening(self) -> int:
        """Tokens that every reason begins with."""
        return int(self.get_buffer("opening_token").shape[1])

    def opening(self, n_rows: int) -> Text:
        """The same beginning in every row."""
        token_BQ = self.get_buffer("opening_token").expand(n_rows, -1)
        return Text(token_BQ, torch.ones_like(token_BQ, dtype=torch.bool))

    def texts(self, item_BL: Tensor) -> tuple[Text, Tensor]:
        """A reason for the newest event of each row, from those before it; True where there is one.

        Args:
            item_BL: left-padded.
        """
        value_BL = self.value_I[item_BL]
        wanted_B1 = value_BL[:, -1:]
        is_alike_BL = (value_BL[:, :-1] == wanted_B1) & (wanted_B1 > 0) & (item_BL[:, :-1] > 0)
        place_L = torch.arange(1, item_BL.shape[1], device=item_BL.device)
        # The newest that is alike; where none is, the newest of all.
        best_B = (place_L * is_alike_BL).amax(1)
        shares_B = best_B > 0
        named_B1 = torch.where(shares_B, best_B - 1, item_BL.shape[1] - 2)[:, None]
        title_B = item_BL[:, :-1].gather(1, named_B1)[:, 0]
        none_B = torch.zeros_like(title_B)
        pieces = [
            self._part("opening", none_B),
            self._part("value", wanted_B1[:, 0]),
            self._part("link", (~shares_B).long()),
            self._part("title", title_B),
            self._part("end", none_B),
        ]
        token_BQ, is_token_BQ = (torch.cat(column, 1) for column in zip(*pieces, strict=True))
        order_BQ = (~is_token_BQ).to(torch.int8).argsort(dim=1, stable=True)
        text = Text(token_BQ.gather(1, order_BQ), is_token_BQ.gather(1, order_BQ))
        return text, (wanted_B1[:, 0] > 0) & (title_B > 0)

    def _part(self, name: str, which_B: Tensor) -> tuple[Tensor, Tensor]:
        token_BQ = self.get_buffer(f"{name}_token")[which_B]
        length_B = self.get_buffer(f"{name}_length")[which_B]
        return token_BQ, torch.arange(token_BQ.shape[1], device=which_B.device) < length_B[:, None]
