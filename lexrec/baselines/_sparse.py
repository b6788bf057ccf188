"""Rows of (item, value) pairs, and pairs added up into a block of scores. Nothing here is dense.

Dimension key: R rows of the matrix, S stored pairs, T taken pairs, B rows of a batch, J items of one block.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Taken(NamedTuple):
    """Pairs for the rows of a batch, to be added up."""

    row_T: Tensor
    item_T: Tensor
    value_T: Tensor

    def add_to(self, score_BJ: Tensor, first: int) -> Tensor:
        """Add each pair that falls into items first..first + J - 1. Returns `score_BJ`, changed."""
        J = score_BJ.shape[1]
        here_T = (self.item_T >= first) & (self.item_T < first + J)
        place_T = self.row_T[here_T] * J + (self.item_T[here_T] - first)
        score_BJ.view(-1).index_add_(0, place_T, self.value_T[here_T])
        return score_BJ


class SparseRows(NamedTuple):
    """A sparse matrix by rows: row r holds the pairs offset_R[r]..offset_R[r + 1] - 1."""

    offset_R: Tensor
    """R + 1 offsets."""
    item_S: Tensor
    value_S: Tensor

    def take(self, row_T: Tensor, matrix_row_T: Tensor, weight_T: Tensor) -> Taken:
        """Matrix rows for batch rows, values times the weight; a batch row may take several."""
        start_T = self.offset_R[matrix_row_T]
        length_T = self.offset_R[matrix_row_T + 1] - start_T
        shift_T = start_T - (length_T.cumsum(0) - length_T)
        place = torch.arange(int(length_T.sum())) + shift_T.repeat_interleave(length_T)
        value = self.value_S[place] * weight_T.repeat_interleave(length_T)
        return Taken(row_T.repeat_interleave(length_T), self.item_S[place].long(), value)

    def state(self) -> dict[str, Tensor]:
        return self._asdict()

    @staticmethod
    def of(state: Mapping[str, Tensor]) -> "SparseRows":
        return SparseRows(state["offset_R"], state["item_S"], state["value_S"])
