"""Attention of item vectors to chosen rows of a projected token table, with the gradient of the choice.

    k, v = rows of table W_key, table W_value                     [U, K, D]
    out  = softmax(q k^T / sqrt(d/h) + s - stop(s)) v             [U, Q, D], heads side by side
    s    = scale * cos(row of table W_align, interest)            [U, K]; it carries a gradient alone

The table is projected once, [V, 3D], and read by token; what a step holds beside that is [V, 3D] for its
gradient, or U * K rows where fewer were chosen than there are tokens.

Dimension key: U units of Q queries, K chosen tokens, V tokens, W table width, D width, H heads, R rows with a
gradient (chosen ones or all tokens), X = 3D: alignment, key and value side by side.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lexrec.kernels.gpu import on_gpu
from lexrec.kernels.token_filter import unit_rows


class Projection(NamedTuple):
    """A frozen token table and the maps that make alignment, key and value of its rows."""

    table_VW: Tensor
    weight_XW: Tensor
    bias_X: Tensor
    projected_VX: Tensor
    """The table under these maps, without gradient."""


class Choice(NamedTuple):
    """What was chosen, and what by."""

    token_UK: Tensor
    interest_UD: Tensor
    scale: Tensor | None
    """Factor on the cosine; None: nothing is learnt from the choice."""


_MOST_CELLS = 2**14
"""Numbers of a unit's chosen keys up to which a multiprocessor holds them."""


def serves(k: int, dim: int) -> bool:
    """True if a GPU's kernels take units of K rows of this width."""
    return k * dim <= _MOST_CELLS


def project(table_VW: Tensor, weight_XW: Tensor, bias_X: Tensor) -> Projection:
    """Alignment, keys and values of every token, in the arithmetic of the surroundings (autocast or not)."""
    with torch.no_grad():
        return Projection(table_VW, weight_XW, bias_X, F.linear(table_VW, weight_XW, bias_X))


def attend(
    query_UQD: Tensor, choice: Choice, projection: Projection, n_heads: int, dropout: float = 0.0
) -> Tensor:
    """What each query gets, [U, Q, D]: heads side by side, before the output map.

    The gradient reaches the queries, the maps and the scale, not the interest (a constant here) or the table.
    On a GPU this is `_token_attention_triton.py`; elsewhere plain PyTorch to the same numbers.

    Args:
        query_UQD: projected queries.
        choice: tokens of each unit.
        projection: the table they belong to.
        n_heads: divides D.
        dropout: share of attention weights that are dropped.
    """
    query_UQD = query_UQD.to(projection.projected_VX.dtype)
    if not (on_gpu(query_UQD) and serves(choice.token_UK.shape[1], query_UQD.shape[2])):
        return _plain(query_UQD, choice, projection, n_heads, dropout)
    call = _Call(choice, projection, n_heads, dropout)
    mixed_UQD: Tensor = _Attend.apply(query_UQD, projection.weight_XW, projection.bias_X, choice.scale, call)  # type: ignore[no-untyped-call]
    return mixed_UQD


def _plain(query_UQD: Tensor, choice: Choice, projection: Projection, n_heads: int, dropout: float) -> Tensor:
    projected_VX = projection.projected_VX
    if torch.is_grad_enabled():
        projected_VX = F.linear(projection.table_VW, projection.weight_XW, projection.bias_X)
    row_UKD, *answer_UKD = F.embedding(choice.token_UK, projected_VX).chunk(3, dim=-1)
    q_UHQC, k_UHKC, v_UHKC = (
        x.view(*x.shape[:2], n_heads, -1).transpose(1, 2) for x in (query_UQD, *answer_UKD)
    )
    logit_UHQK = q_UHQC @ k_UHKC.transpose(-1, -2) * q_UHQC.shape[-1] ** -0.5
    if choice.scale is not None:
        interest_UD = choice.interest_UD.detach().to(row_UKD.dtype)
        score_UK = choice.scale * F.cosine_similarity(row_UKD, interest_UD[:, None], dim=-1)
        logit_UHQK = logit_UHQK + (score_UK - score_UK.detach())[:, None, None]
    share_UHQK = F.dropout(logit_UHQK.softmax(dim=-1), dropout)
    return (share_UHQK @ v_UHKC).transpose(1, 2).flatten(2)


class _Call(NamedTuple):
    """What of a call has no gradient."""

    choice: Choice
    projection: Projection
    n_heads: int
    dropout: float


class _Attend(torch.autograd.Function):
    """The kernels as one differentiable step."""

    @staticmethod
    def forward(
        ctx: Any, query_UQD: Tensor, weight_XW: Tensor, bias_X: Tensor, scale: Tensor | None, call: _Call
    ) -> Tensor:
        from lexrec.kernels import _token_attention_triton as kernels

        seed = torch.empty(1, dtype=torch.int64, device=query_UQD.device)
        choice, projected_VX = call.choice, call.projection.projected_VX
        ctx.asked = kernels.Asked(
            query_UQD.contiguous(),
            projected_VX,
            choice.token_UK.contiguous(),
            unit_rows(choice.interest_UD, projected_VX.dtype),
            None if scale is None else scale.detach().float(),
            seed.random_(2**31 - 1) if call.dropout > 0 else seed,
            call.n_heads,
            call.dropout,
        )
        ctx.table_VW, ctx.dtypes = call.projection.table_VW, (weight_XW.dtype, bias_X.dtype)
        return kernels.forward(ctx.asked)

    @staticmethod
    def backward(ctx: Any, grad_UQD: Tensor) -> tuple[Tensor | None, ...]:
        from lexrec.kernels import _token_attention_triton as kernels
        from lexrec.kernels._dense_triton import column_sums

        asked, table_VW = ctx.asked, ctx.table_VW
        of_query_UQD, row_RX, of_scale = kernels.backward(
            asked, grad_UQD.contiguous().to(asked.query_UQD.dtype)
        )
        if asked.token_UK.numel() <= len(table_VW):
            of_weight_XW = kernels.products(row_RX, table_VW.to(row_RX.dtype), asked.token_UK.flatten())
        else:
            of_weight_XW = row_RX.T @ table_VW.to(row_RX.dtype)
        of_bias_X = column_sums(row_RX)
        of_weight_XW, of_bias_X = of_weight_XW.to(ctx.dtypes[0]), of_bias_X.to(ctx.dtypes[1])
        return of_query_UQD, of_weight_XW, of_bias_X, of_scale, None
