"""Attention of item vectors to chosen rows of a projected token table, with the gradient of the choice.

    k, v = rows of table W_key, table W_value                     [U, K, D]
    out  = softmax(q k^T / sqrt(d/h) + s - stop(s)) v             [U, Q, D], heads side by side
    s    = scale * cos(row of table W_align, interest)            [U, K]; it carries a gradient alone

The table is projected once, [V, 3D], and read by token; what a step holds beside that is [V, 3D] for its
gradient, or U * K rows where fewer were chosen than there are tokens.

Dimension key: U units of Q queries, K chosen tokens, V tokens, W table width, D width, H heads, R rows with a
gradient (chosen ones or all tokens), X = 3D: alignment, key and value side by side.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lexrec.kernels.dense import wide_product
from lexrec.kernels.gpu import has_kernels, on_gpu
from lexrec.kernels.token_filter import unit_rows


class Projection(NamedTuple):
    """A frozen token table and the maps that make alignment, key and value of its rows."""

    table_VW: Tensor
    weight_XW: Tensor
    bias_X: Tensor
    projected_VX: Tensor
    """The table under these maps, without gradient."""
    stream: "torch.cuda.Stream | None" = None
    """Where it is made and the gradient of the maps summed; None: wherever it is read."""

    def wait(self, *beside: Tensor) -> None:
        """Let what is enqueued here from now on find it made, and what was made beside it."""
        if self.stream is not None:
            here = torch.cuda.current_stream(self.projected_VX.device)
            here.wait_stream(self.stream)
            for tensor in (self.projected_VX, *beside):
                tensor.record_stream(here)

    def beside(self, *lent: Tensor) -> AbstractContextManager[object]:
        """On its stream, after what is enqueued here so far, which made the tensors that are lent to it."""
        if self.stream is None:
            return nullcontext()
        self.stream.wait_stream(torch.cuda.current_stream(self.projected_VX.device))
        for tensor in lent:
            tensor.record_stream(self.stream)
        return torch.cuda.stream(self.stream)


class Choice(NamedTuple):
    """What was chosen, and what by."""

    token_UK: Tensor
    interest_UD: Tensor
    scale: Tensor | None
    """Factor on the cosine; None: nothing is learnt from the choice."""


class Dropout(NamedTuple):
    """Which attention weights are dropped."""

    share: float
    seed: Tensor
    """int32, one number on the device."""

    @staticmethod
    def drawn(share: float, device: torch.device) -> "Dropout":
        """From torch's default generator; nothing is drawn where nothing is dropped."""
        if share > 0 and has_kernels(device):
            from lexrec.kernels._dropout_triton import draw_seed

            return Dropout(share, draw_seed(device))
        seed = torch.empty(1, dtype=torch.int32, device=device)
        return Dropout(share, seed.random_() if share > 0 else seed)


_MOST_CELLS = 2**14
"""Numbers of a unit's chosen keys up to which a multiprocessor holds them."""


def serves(k: int, dim: int) -> bool:
    """True if a GPU's kernels take units of K rows of this width."""
    return k * dim <= _MOST_CELLS


def project(table_VW: Tensor, weight_XW: Tensor, bias_X: Tensor) -> Projection:
    """Alignment, keys and values of every token, in the arithmetic of the surroundings (autocast or not).

    On a GPU it is made on the current stream, whose name it keeps: who reads it on another one waits for it.
    """
    stream = torch.cuda.current_stream(table_VW.device) if on_gpu(table_VW) else None
    with torch.no_grad():
        return Projection(table_VW, weight_XW, bias_X, F.linear(table_VW, weight_XW, bias_X), stream)


def attend(
    query_UQD: Tensor,
    choice: Choice,
    projection: Projection,
    n_heads: int,
    dropout: Dropout | None = None,
) -> Tensor:
    """What each query gets, [U, Q, D]: heads side by side, before the output map.

    The gradient reaches the queries, the maps and the scale, not the interest (a constant here) or the table.
    On a GPU this is `_token_attention_triton.py`; elsewhere plain PyTorch to the same numbers.

    Args:
        query_UQD: projected queries.
        choice: tokens of each unit.
        projection: the table they belong to.
        n_heads: divides D.
        dropout: of attention weights; None: all are kept.
    """
    query_UQD = query_UQD.to(projection.projected_VX.dtype)
    if on_gpu(query_UQD) and serves(choice.token_UK.shape[1], query_UQD.shape[2]):
        return _by_kernels(query_UQD, choice, projection, n_heads, dropout)
    return _plain(query_UQD, choice, projection, n_heads, 0.0 if dropout is None else dropout.share)


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


def _by_kernels(
    query_UQD: Tensor, choice: Choice, projection: Projection, n_heads: int, dropout: Dropout | None
) -> Tensor:
    from lexrec.kernels import _token_attention_triton as kernels

    dropout = dropout or Dropout.drawn(0.0, query_UQD.device)
    token_UK, scale, projected_VX = choice.token_UK.contiguous(), choice.scale, projection.projected_VX
    direction_UD = order = None
    if torch.is_grad_enabled():
        # What only the backward pass reads is made on the side, and so is what that pass ends with.
        with projection.beside(token_UK, choice.interest_UD):
            direction_UD = unit_rows(choice.interest_UD, projected_VX.dtype)
            order = kernels.sorted_choices(token_UK, len(projected_VX), query_UQD.shape[1])
            row_RX = _Rows.apply(projection.weight_XW, projection.bias_X, projection, token_UK)  # type: ignore[no-untyped-call]
            made = None if projection.stream is None else projection.stream.record_event()
    else:
        row_RX, made = projected_VX, None
    asked = kernels.Asked(
        query_UQD.contiguous(),
        projected_VX,
        token_UK,
        direction_UD,
        order,
        None if scale is None else scale.detach().float(),
        dropout.seed,
        dropout.share,
        n_heads,
    )
    if scale is not None:
        # Its parts are summed by the step behind, so that what waits for this one need not wait for a sum.
        n_parts = kernels.n_scale_parts(token_UK, len(projected_VX), *query_UQD.shape[1:])
        scale = scale.float().expand(n_parts)
    mixed_UQD: Tensor = _Attend.apply(query_UQD, row_RX, scale, asked, made)  # type: ignore[no-untyped-call]
    return mixed_UQD


class _Rows(torch.autograd.Function):
    """The rows that units read, as far as gradients go: a tensor of their shape that holds nothing.

    It is a row for each choice, or for each token where choices are more. It has a step of its own in the
    backward pass so that the maps' gradient, a product as large as the table, is made on the stream of the
    projection while that of the queries goes on.
    """

    @staticmethod
    def forward(
        ctx: Any, weight_XW: Tensor, bias_X: Tensor, projection: Projection, token_UK: Tensor
    ) -> Tensor:
        from lexrec.kernels import _token_attention_triton as kernels

        n_choices, (V, X) = token_UK.numel(), projection.projected_VX.shape
        R = kernels.n_rows(n_choices, V)
        ctx.table_VW, ctx.token_R = projection.table_VW, token_UK.flatten() if n_choices == R else None
        ctx.dtypes = weight_XW.dtype, bias_X.dtype
        return projection.projected_VX.new_empty(()).expand(R, X)

    @staticmethod
    def backward(ctx: Any, row_RX: Tensor) -> tuple[Tensor, Tensor, None, None]:
        from lexrec.kernels import _token_attention_triton as kernels
        from lexrec.kernels._dense_triton import column_sums

        table_VW, token_R = ctx.table_VW.to(row_RX.dtype), ctx.token_R
        # The small one first: behind the product, which fills a GPU, nothing should have to wait.
        of_bias_X = column_sums(row_RX)
        if token_R is not None:
            of_weight_XW = kernels.products(row_RX, table_VW, token_R)
        else:
            of_weight_XW = wide_product(row_RX, table_VW)
        return of_weight_XW.to(ctx.dtypes[0]), of_bias_X.to(ctx.dtypes[1]), None, None


class _Attend(torch.autograd.Function):
    """The kernels as one differentiable step."""

    @staticmethod
    def forward(
        ctx: Any, query_UQD: Tensor, row_RX: Tensor, scale: Tensor | None, asked: Any, made: Any
    ) -> Tensor:
        from lexrec.kernels import _token_attention_triton as kernels

        ctx.asked, ctx.made = asked, made
        return kernels.forward(asked)

    @staticmethod
    def backward(ctx: Any, grad_UQD: Tensor) -> tuple[Tensor | None, ...]:
        from lexrec.kernels import _token_attention_triton as kernels

        asked = ctx.asked
        if ctx.made is not None:
            here = torch.cuda.current_stream(grad_UQD.device)
            here.wait_event(ctx.made)
            for tensor in (asked.direction_UD, *(asked.order or ())):
                if tensor is not None:
                    tensor.record_stream(here)
        found = kernels.backward(asked, grad_UQD.contiguous().to(asked.query_UQD.dtype))
        return *found, None, None
