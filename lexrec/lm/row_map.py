"""Item rows from texts: what a new item, of which only a title is known, is scored by.

    x_i = standardised mean of T[token] over i's distinct tokens, weighted by log(n / items that have it)
    row_i ~ x_i M + b          M, b: ridge regression in closed form on the items that were trained

T is the language model's own token table, so nothing is run; an item counts n / (n + 5) with n training
events, since rows of rare items are half noise. The ridge is picked on a tenth of the items, held out.

Dimension key: I item indexes 0..n + 1, T text places, V vocabulary, W width of T, D width of rows, N items.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lexrec.lm.prompt import Prompt

_RIDGES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
_HALF_TRUSTED = 5
"""Training events with which an item counts half."""
_HELD_OUT = 10
"""One item in so many."""


class Predicted(NamedTuple):
    """Rows from texts alone."""

    row_ID: Tensor
    ridge: float
    r2: float
    """Share of the held-out rows' variance that their texts explain; below 0: worse than one mean row."""


def text_features(texts: Prompt, table_VW: Tensor) -> Tensor:
    """What a text is about, float32 [I, W]; 0 where there is none.

    Args:
        texts: of each item index.
        table_VW: the language model's token table.
    """
    token_IT, length_I = texts.token_IT, texts.length_I
    n_rows, n_texts = token_IT.shape
    is_token_IT = torch.arange(n_texts) < length_I[:, None]
    # Sorted, a token that comes again stands beside itself.
    sorted_IT = token_IT.masked_fill(~is_token_IT, len(table_VW)).sort(1).values
    is_first_IT = torch.ones_like(is_token_IT)
    is_first_IT[:, 1:] = sorted_IT[:, 1:] != sorted_IT[:, :-1]
    is_first_IT &= sorted_IT < len(table_VW)
    sorted_IT = sorted_IT.clamp(max=len(table_VW) - 1)
    count_V = torch.bincount(sorted_IT[is_first_IT], minlength=len(table_VW))
    rarity_V = torch.log(max(int((length_I > 0).sum()), 1) / count_V.clamp(min=1)) + 0.1
    weight_IT = rarity_V[sorted_IT] * is_first_IT
    x_IW = torch.zeros(n_rows, table_VW.shape[1])
    for place in range(n_texts):  # [I, T, W] would be gigabytes
        x_IW += weight_IT[:, place, None] * table_VW[sorted_IT[:, place]].float()
    return x_IW / weight_IT.sum(1, keepdim=True).clamp(min=1e-9)


def predict_rows(x_IW: Tensor, row_ND: Tensor, known_N: Tensor, count_N: Tensor) -> Predicted:
    """The rows that texts predict for every item, known ones too.

    Args:
        x_IW: `text_features` of every item index.
        row_ND: rows of the items that were trained.
        known_N: their item indexes.
        count_N: their training events.
    """
    x_NW, row_ND = x_IW[known_N].double(), row_ND.double()
    mean_W, std_W = x_NW.mean(0), x_NW.std(0).clamp(min=1e-9)
    weight_N = (count_N / (count_N + _HALF_TRUSTED)).double()
    x_NW = _with_one((x_NW - mean_W) / std_W)
    is_held_N = torch.arange(len(known_N)) % _HELD_OUT == 0
    fit, held = (_Items(x_NW[keep], row_ND[keep], weight_N[keep]) for keep in (~is_held_N, is_held_N))
    r2, ridge = max((_explained(_ridge(fit, ridge), held), ridge) for ridge in _RIDGES)
    map_XD = _ridge(_Items(x_NW, row_ND, weight_N), ridge)
    row_ID = _with_one((x_IW.double() - mean_W) / std_W) @ map_XD
    return Predicted(row_ID.float(), ridge, r2)


class _Items(NamedTuple):
    """Texts with a 1 behind them, rows, and how much each item counts."""

    x_NX: Tensor
    row_ND: Tensor
    weight_N: Tensor


def _with_one(x_NW: Tensor) -> Tensor:
    return torch.cat([x_NW, torch.ones_like(x_NW[:, :1])], 1)


def _ridge(items: _Items, ridge: float) -> Tensor:
    """The argmin of sum_n w_n |x_n M - row_n|^2 + ridge |M|^2; the last row of M, the mean, is free."""
    x_NX, row_ND, weight_N = items
    weighted_NX = x_NX * weight_N[:, None]
    penalty_X = torch.full((x_NX.shape[1],), ridge, dtype=x_NX.dtype)
    penalty_X[-1] = 1e-6
    map_XD: Tensor = torch.linalg.solve(weighted_NX.T @ x_NX + penalty_X.diag(), weighted_NX.T @ row_ND)
    return map_XD


def _explained(map_XD: Tensor, items: _Items) -> float:
    x_NX, row_ND, weight_N = items
    mean_D = (row_ND * weight_N[:, None]).sum(0) / weight_N.sum()
    left_N, all_N = ((row_ND - x_NX @ map_XD) ** 2).sum(1), ((row_ND - mean_D) ** 2).sum(1)
    return float(1 - (left_N * weight_N).sum() / (all_N * weight_N).sum().clamp(min=1e-30))
