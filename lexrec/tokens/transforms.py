"""What can be done to a token table before it is used: pure functions, each returning a new table.

Every function keeps the provenance: the name grows by `+what`, the source by ` | what`, and the sha256
stays that of the tensor that was read. Arithmetic is float32 (PCA: float64), the result bf16.
Dimension key: V tokens, W width of the language model, P reduced width.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lexrec.errors import TokensError
from lexrec.tokens import vocabulary
from lexrec.tokens.table import TokenTable

_BLOCK = 1 << 24


def scaled(table: TokenTable) -> TokenTable:
    """The table divided by the root mean square of all its entries, so that it becomes 1.

    Tables differ in scale by two orders of magnitude; whatever compares them (Fisher weights, one
    learning rate for several experts) would measure that.

    Raises:
        TokensError: every entry is zero.
    """
    total = sum(float(rows_NW.double().square().sum()) for rows_NW in blocks(table.weight_VW))
    rms = (total / table.weight_VW.numel()) ** 0.5
    if rms == 0:
        raise TokensError(f"token table {table.name}: every entry is zero, it cannot be scaled")
    return _changed(table, "scaled", _map_rows(table.weight_VW, lambda rows_NW: rows_NW / rms))


def centred(table: TokenTable) -> TokenTable:
    """The table minus its mean row, so that the mean over tokens is zero in every dimension.

    Raw tables share a common direction (mean cosine of random pairs up to .9), which hides what
    distinguishes tokens.
    """
    mean_W = _mean(table.weight_VW).float()
    return _changed(table, "centred", _map_rows(table.weight_VW, lambda rows_NW: rows_NW - mean_W))


def row_normalised(table: TokenTable) -> TokenTable:
    """Every row divided by its Euclidean norm, so that rare and frequent tokens weigh the same.

    A zero row stays zero. The root mean square becomes W ** -0.5: apply `scaled` after this, not before.
    """

    def unit(rows_NW: Tensor) -> Tensor:
        norm_N1 = rows_NW.norm(dim=1, keepdim=True)
        return rows_NW / torch.where(norm_N1 > 0, norm_N1, 1.0)

    return _changed(table, "row-normalised", _map_rows(table.weight_VW, unit))


def first(table: TokenTable, n: int, *, drop_special: bool = False) -> TokenTable:
    """Only the first n tokens: vocabularies are roughly ordered by frequency.

    Args:
        table: any table.
        n: rows to keep; a table with fewer keeps them all.
        drop_special: leave out tokens that stand for no text (`<s>`, `[unused7]`, `<0x0A>`, placeholders)
            before counting.

    The tokenizer is dropped: its token ids no longer are row numbers.

    Raises:
        TokensError: n is below 1, or special tokens are to be dropped and the table has no strings.
    """
    if n < 1:
        raise TokensError(f"token table {table.name}: cannot keep the first {n} tokens; n is at least 1")
    if drop_special and not table.tokens:
        raise TokensError(f"token table {table.name}: has no token strings to tell special tokens by")
    kept = [
        row
        for row in range(table.n_tokens)
        if not (drop_special and vocabulary.is_special(table.tokens[row]))
    ][:n]
    if not kept:
        raise TokensError(f"token table {table.name}: every token is special, none is left")
    what = f"first{n}-plain" if drop_special else f"first{n}"
    smaller = replace(
        table,
        weight_VW=table.weight_VW[torch.tensor(kept)],
        tokens=tuple(table.tokens[row] for row in kept) if table.tokens else (),
        tokenizer=None,
    )
    return _changed(smaller, what, smaller.weight_VW)


def pca(table: TokenTable, width: int) -> TokenTable:
    """The table's rows, centred, in the coordinates of its `width` strongest principal directions.

    Of all projections to that width this one loses the least squared distance between rows. It makes
    tables of several language models equally wide. Column p has the p-th largest variance; each
    direction's sign makes its largest component positive, so the result is the same everywhere.

    Raises:
        TokensError: width is not between 1 and the table's own.
    """
    if not 1 <= width <= table.width:
        raise TokensError(
            f"token table {table.name}: pca to width {width}; choose between 1 and its width {table.width}"
        )
    mean_W = _mean(table.weight_VW)
    covariance_WW = torch.zeros(table.width, table.width, dtype=torch.float64)
    for rows_NW in blocks(table.weight_VW):
        centred_NW = rows_NW.double() - mean_W
        covariance_WW += centred_NW.T @ centred_NW
    _, directions_WW = torch.linalg.eigh(covariance_WW)
    directions_WP = directions_WW.flip(1)[:, :width]
    peak_P = directions_WP.gather(0, directions_WP.abs().argmax(dim=0, keepdim=True)).squeeze(0)
    directions_WP = directions_WP * peak_P.sign()
    weight_VP = _map_rows(table.weight_VW, lambda rows_NW: (rows_NW.double() - mean_W) @ directions_WP)
    return _changed(table, f"pca{width}", weight_VP)


def _changed(table: TokenTable, what: str, weight_VW: Tensor) -> TokenTable:
    return replace(table, name=f"{table.name}+{what}", source=f"{table.source} | {what}", weight_VW=weight_VW)


def blocks(weight_VW: Tensor) -> Iterator[Tensor]:
    """Rows in float32, some at a time: a table of 10^8 entries never stands in float32 as a whole."""
    step = max(1, _BLOCK // weight_VW.shape[1])
    for start in range(0, len(weight_VW), step):
        yield weight_VW[start : start + step].float()


def _map_rows(weight_VW: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([change(rows_NW).to(torch.bfloat16) for rows_NW in blocks(weight_VW)])


def _mean(weight_VW: Tensor) -> Tensor:
    total_W = torch.zeros(weight_VW.shape[1], dtype=torch.float64)
    for rows_NW in blocks(weight_VW):
        total_W += rows_NW.double().sum(dim=0)
    return total_W / len(weight_VW)
