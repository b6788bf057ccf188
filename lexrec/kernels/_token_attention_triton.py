"""Attention to chosen rows of a projected table on a GPU: no keys or values of U x K x D are made.

A program serves a unit: it reads the K rows that were chosen for it straight from the table
(_one_query_triton.py, _many_queries_triton.py). The gradient of the table's rows comes in one of two forms,
whichever has fewer:

- one row for each choice, [U * K, 3D], in the order alignment, key, value
- one row for each token, [V, 3D]: choices are sorted by token, and a program adds up those of a token

Sums are always added in the same order, so a gradient is the same bits each time.

Dimension key: U units of Q queries, K chosen tokens, V tokens, W table width, D width, H heads of C, R rows
with a gradient, S parts of a sum, X = 3D.
"""

# mypy: disable-error-code="no-untyped-call, import-untyped"

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from lexrec.kernels._many_queries_triton import many_queries, many_queries_backward
from lexrec.kernels._one_query_triton import one_query, one_query_backward
from lexrec.kernels._table_rows_triton import (
    aligned_rows,
    choice_rows,
    joined_rows,
    row_products,
)
from lexrec.kernels._token_sums_triton import chunk_sums, summed_rows

_PROGRAMS = 132
"""As many as an H100 has multiprocessors."""
_CHUNK = 32
"""Choices that a program adds up by token."""
_MANY = 4
"""Choices a token from which on a program a token is quicker: of 1.6 it took twice as long, of 12.8 half."""
_WHOLE = 64
"""Choices of one token that such a program adds up at most before others help."""


class Order(NamedTuple):
    """Choices by token."""

    order_C: Tensor
    """Their numbers, those of a token in order."""
    sorted_C: Tensor
    """The token of each of them."""
    start_V: Tensor | None
    """Where tokens were chosen many times: where those of each begin, and behind them all where they end."""


class Asked(NamedTuple):
    """One call: who asks, and what was chosen for them."""

    query_UQD: Tensor
    projected_VX: Tensor
    """Alignment, keys and values of every token, side by side."""
    token_UK: Tensor
    direction_UD: Tensor | None
    """What was chosen by, of length 1; only the backward pass asks."""
    order: "Order | None"
    scale: Tensor | None
    """Factor on the cosine, float32, one number; None: nothing is learnt from the choice."""
    seed: Tensor
    """int32, one number: which attention weights are dropped."""
    dropout: float
    n_heads: int


def forward(asked: Asked) -> Tensor:
    """The mixture of values that each query gets, [U, Q, D]."""
    U, Q, _ = asked.query_UQD.shape
    mixed_UQD = torch.empty_like(asked.query_UQD)
    if Q == 1:
        one_query[(U,)](*_pointers(asked), mixed_UQD, *_numbers(asked), **_blocks(asked))
    else:
        grid = (U, asked.n_heads)
        many_queries[grid](*_pointers(asked), mixed_UQD, Q, *_numbers(asked), **_blocks(asked))
    return mixed_UQD


class Gradients(NamedTuple):
    """What the backward pass finds."""

    query_UQD: Tensor
    row_RX: Tensor
    """Of the projected rows: of each choice in order, or of each token."""
    scale_S: Tensor | None
    """Parts of that of the scale."""


def backward(asked: Asked, grad_UQD: Tensor) -> Gradients:
    """Gradients of the queries, of the projected rows and of the scale."""
    U, Q, _ = asked.query_UQD.shape
    if Q == 1:
        return _backward_of_one(asked, grad_UQD)
    H, K, X = asked.n_heads, asked.token_UK.shape[1], asked.projected_VX.shape[1]
    query_UQD, row_RX = torch.empty_like(asked.query_UQD), grad_UQD.new_empty(U * K, X)
    pull_UHK = grad_UQD.new_empty(U, H, K, dtype=torch.float32)
    given = (*_pointers(asked), grad_UQD, query_UQD, row_RX, pull_UHK, Q)
    many_queries_backward[(U, H)](*given, *_numbers(asked), **_blocks(asked))
    of_scale_U = grad_UQD.new_empty(U, dtype=torch.float32)
    filtering = (asked.direction_UD, _factor(asked), pull_UHK, row_RX, of_scale_U)
    sizes = {"H": H, **_learning(asked), "BK": triton.next_power_of_2(K)}
    aligned_rows[(U,)](
        asked.projected_VX, asked.token_UK, *filtering, K, asked.projected_VX.stride(0), D=X // 3, **sizes
    )
    V = len(asked.projected_VX)
    if n_rows(U * K, V) < U * K:
        row_RX = torch.ops.aten.embedding_dense_backward(row_RX, asked.token_UK.flatten(), V, -1, False)
    return Gradients(query_UQD, row_RX, None if asked.scale is None else of_scale_U)


def _backward_of_one(asked: Asked, grad_U1D: Tensor) -> Gradients:
    (U, K), H = asked.token_UK.shape, asked.n_heads
    query_U1D = torch.empty_like(asked.query_UQD)
    slope_UKH = grad_U1D.new_empty(U, K, H, dtype=torch.float32)
    share_UKH = torch.empty_like(slope_UKH)
    given, blocks = (*_pointers(asked), grad_U1D, query_U1D, slope_UKH, share_UKH), _blocks(asked)
    one_query_backward[(U,)](*given, *_numbers(asked), **blocks)
    vectors = (asked.query_UQD, grad_U1D, asked.direction_UD, slope_UKH, share_UKH)
    of_rows = _rows_of_chunks if asked.order is None or asked.order.start_V is None else _rows_of_tokens
    row_RX, pulled_S = of_rows(asked, vectors)
    return Gradients(query_U1D, row_RX, None if asked.scale is None else pulled_S)


def _rows_of_tokens(asked: Asked, vectors: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """A program a token."""
    assert asked.order is not None
    order_C, sorted_C, start_V = asked.order
    (V, X), (U, K) = asked.projected_VX.shape, asked.token_UK.shape
    blocks, stride = _blocks(asked), asked.projected_VX.stride(0)
    new, n_chunks = vectors[0].new_empty, triton.cdiv(U * K, _WHOLE)
    row_VX, pulled_V = new(V, X), new(V, dtype=torch.float32)
    sum_NX = new(n_chunks, X, dtype=torch.float32)
    learning, shape = _learning(asked), {name: blocks[name] for name in ("H", "C", "BH", "BC")}
    sizes = {**shape, "BD": learning["BD"], "BN": 4, "CHUNK": _WHOLE, "num_warps": 1}
    chunk_sums[(n_chunks,)](*vectors, order_C, sorted_C, sum_NX, U * K, K, **sizes)
    found = (asked.projected_VX, _factor(asked), row_VX, pulled_V)
    numbers = (K, stride, (X // 3 // asked.n_heads) ** -0.5)
    summed_rows[(V,)](
        *vectors, order_C, start_V, sum_NX, *found, *numbers, **sizes, LEARNS=learning["LEARNS"]
    )
    return row_VX, pulled_V


def _rows_of_chunks(asked: Asked, vectors: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """A program a chunk of choices, whose rows are added up by token if they are sorted."""
    (V, X), (U, K), H = asked.projected_VX.shape, asked.token_UK.shape, asked.n_heads
    learning, stride, sharpness = _learning(asked), asked.projected_VX.stride(0), (X // 3 // H) ** -0.5
    new, chunk, sums = vectors[0].new_empty, _chunk(X // 3), asked.order is not None
    n_chunks = triton.cdiv(U * K, chunk)
    # Of tokens that nobody chose nothing is written.
    row_RX = vectors[0].new_zeros(V, X) if sums else new(U * K, X)
    pulled_S, part_N2X = (
        new(n, dtype=torch.float32) for n in (n_chunks * (1 + sums), n_chunks * 2 * X * sums)
    )
    order_C, token_C = (asked.token_UK, asked.token_UK) if asked.order is None else asked.order[:2]
    found = (asked.projected_VX, _factor(asked), row_RX, pulled_S)
    sizes = {**learning, "CHUNK": chunk}
    choice_rows[(n_chunks,)](
        *vectors,
        order_C,
        token_C,
        *found,
        part_N2X,
        U * K,
        K,
        stride,
        sharpness,
        H=H,
        C=X // 3 // H,
        SUMS=sums,
        **sizes,
    )
    if sums:
        joined_rows[(n_chunks,)](
            part_N2X, token_C, *found, U * K, stride, sharpness, D=X // 3, **sizes, num_warps=1
        )
    return row_RX, pulled_S


def _chunk(D: int) -> int:
    """Choices that a program adds up: what its registers hold."""
    fitting: int = 2**12 // triton.next_power_of_2(D)
    return max(16, min(_CHUNK, fitting))


def n_rows(n_choices: int, n_tokens: int) -> int:
    """Rows that the gradient of a projected table comes in: one for each choice, or for each token."""
    return min(n_choices, n_tokens)


def n_scale_parts(token_UK: Tensor, n_tokens: int, n_queries: int, dim: int) -> int:
    """Parts that the gradient of the scale comes in."""
    if n_queries > 1:
        return len(token_UK)
    n_choices = token_UK.numel()
    if n_choices > _MANY * n_tokens:
        return n_tokens
    n_chunks: int = triton.cdiv(n_choices, _chunk(dim))
    return n_chunks * (1 if n_rows(n_choices, n_tokens) == n_choices else 2)


def sorted_choices(token_UK: Tensor, n_tokens: int, n_queries: int) -> Order | None:
    """What `backward` needs to add up by token; None where it does not."""
    if n_queries > 1 or n_rows(token_UK.numel(), n_tokens) == token_UK.numel():
        return None
    # A sort takes a pass for each byte.
    dtype = torch.int16 if n_tokens < 2**15 - 1 else torch.int32
    sorted_C, order_C = token_UK.flatten().to(dtype).sort(stable=True)
    if token_UK.numel() <= _MANY * n_tokens:
        return Order(order_C, sorted_C, None)
    token_V = torch.arange(n_tokens + 1, device=sorted_C.device, dtype=dtype)
    return Order(order_C, sorted_C, torch.searchsorted(sorted_C, token_V, out_int32=True))


def products(row_RX: Tensor, table_VW: Tensor, token_R: Tensor) -> Tensor:
    """row_RX^T table_VW[token_R], [X, W], without a copy of the table's rows."""
    (R, X), W = row_RX.shape, table_VW.shape[1]
    BW, BR = 64, 64
    n_parts = max(1, min(triton.cdiv(_PROGRAMS, triton.cdiv(W, BW)), triton.cdiv(R, 4 * BR)))
    R_part = triton.cdiv(R, n_parts * BR) * BR
    product_SXW = torch.empty(n_parts, X, W, dtype=torch.float32, device=row_RX.device)
    sizes = {"X": X, "BX": max(16, triton.next_power_of_2(X)), "BR": BR, "BW": BW, "num_warps": 8}
    row_products[(triton.cdiv(W, BW), n_parts)](
        row_RX, table_VW, token_R, product_SXW, R, R_part, W, table_VW.stride(0), **sizes
    )
    return product_SXW.sum(0)


def _factor(asked: Asked) -> Tensor:
    """The scale; what stands for it where there is none is not read."""
    return asked.seed if asked.scale is None else asked.scale


def _learning(asked: Asked) -> dict[str, Any]:
    return {
        "BD": max(16, triton.next_power_of_2(asked.query_UQD.shape[2])),
        "LEARNS": asked.scale is not None,
    }


def _pointers(asked: Asked) -> tuple[Tensor, ...]:
    return asked.query_UQD, asked.projected_VX, asked.token_UK, asked.seed


def _numbers(asked: Asked) -> tuple[Any, ...]:
    """Sizes and factors that all kernels take last."""
    D, K = asked.query_UQD.shape[2], asked.token_UK.shape[1]
    return K, asked.projected_VX.stride(0), (D // asked.n_heads) ** -0.5, asked.dropout


def _blocks(asked: Asked) -> dict[str, Any]:
    (_, Q, D), K, H = asked.query_UQD.shape, asked.token_UK.shape[1], asked.n_heads
    blocks = {"H": H, "C": D // H, "DROPS": asked.dropout > 0}
    power = triton.next_power_of_2
    if Q == 1:
        return {**blocks, "BK": power(K), "BH": power(H), "BC": power(D // H), "num_warps": 4}
    # A matrix product has sides of 16 at least.
    most = 64 if asked.query_UQD.element_size() == 2 else 16
    sides = {"BQ": max(16, min(most, power(Q))), "BK": max(16, power(K)), "BC": max(16, power(D // H))}
    return {**blocks, **sides, "num_warps": 4}
