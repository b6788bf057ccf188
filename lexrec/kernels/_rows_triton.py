"""Kernels of `rows.py`: rows by index, sums of rows by index, dot products with chosen rows.

Dimension key: R rows of a table, N states, K chosen rows of each, D width, n, d: of one tile.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import torch
import triton
import triton.language as tl
from torch import Tensor

from lexrec.kernels._jit import kernel

_ROWS = 32
"""States of a tile."""


def take(table_RD: Tensor, index: Tensor) -> Tensor:
    """`table_RD[index]`."""
    table_RD, index = table_RD.contiguous(), index.contiguous()
    D = table_RD.shape[1]
    out = table_RD.new_empty(*index.shape, D)
    N = index.numel()
    if N:
        _take[(triton.cdiv(N, _ROWS),)](table_RD, index, out, N, D, _ROWS, triton.next_power_of_2(D))
    return out


def add_up(grad: Tensor, index: Tensor, n_rows: int, padding: int) -> Tensor:
    """Sum of the rows of `grad` by their index, [n_rows, D]; those of index `padding` are left out."""
    grad, index = grad.contiguous(), index.contiguous()
    N, D = index.numel(), grad.shape[-1]
    out_RD = grad.new_zeros(n_rows, D, dtype=torch.float32)
    if N:
        tile_d = triton.next_power_of_2(D)
        _add_up[(triton.cdiv(N, _ROWS),)](grad, index, out_RD, N, D, padding, _ROWS, tile_d)
    return out_RD.to(grad.dtype)


def score(query_ND: Tensor, table_RD: Tensor, index_NK: Tensor) -> Tensor:
    """Dot products with chosen rows, float32 [N, K]."""
    query_ND, table_RD, index_NK = query_ND.contiguous(), table_RD.contiguous(), index_NK.contiguous()
    N, D = query_ND.shape
    K = index_NK.shape[1]
    out_NK = query_ND.new_empty(N, K, dtype=torch.float32)
    if N:
        tile_d = triton.next_power_of_2(D)
        _score[(triton.cdiv(N, _ROWS),)](query_ND, table_RD, index_NK, out_NK, N, D, K, _ROWS, tile_d)
    return out_NK


def score_gradients(
    grad_NK: Tensor, query_ND: Tensor, table_RD: Tensor, index_NK: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of states and table."""
    grad_NK, query_ND = grad_NK.contiguous(), query_ND.contiguous()
    table_RD, index_NK = table_RD.contiguous(), index_NK.contiguous()
    N, D = query_ND.shape
    of_query_ND = torch.empty_like(query_ND)
    of_table_RD = torch.zeros_like(table_RD, dtype=torch.float32)
    if N:
        _score_gradients[(triton.cdiv(N, _ROWS),)](
            grad_NK, query_ND, table_RD, index_NK, of_query_ND, of_table_RD,
            N, D, index_NK.shape[1], _ROWS, triton.next_power_of_2(D),
        )  # fmt: skip
    return of_query_ND, of_table_RD.to(table_RD.dtype)


@kernel
def _tile(N, D: tl.constexpr, ROWS: tl.constexpr, TILE_D: tl.constexpr):
    """States and columns of this program's tile, and which of them there are."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, TILE_D)
    return n.to(tl.int64), d, (n < N)[:, None] & (d < D)[None, :]


@kernel
def _take(table, index, out, N, D: tl.constexpr, ROWS: tl.constexpr, TILE_D: tl.constexpr):
    n, d, is_in_nd = _tile(N, D, ROWS, TILE_D)
    r = tl.load(index + n, mask=n < N, other=0)
    row_nd = tl.load(table + r[:, None] * D + d[None, :], mask=is_in_nd, other=0.0)
    tl.store(out + n[:, None] * D + d[None, :], row_nd, mask=is_in_nd)


@kernel
def _add_up(grad, index, out, N, D: tl.constexpr, padding, ROWS: tl.constexpr, TILE_D: tl.constexpr):
    n, d, is_in_nd = _tile(N, D, ROWS, TILE_D)
    r = tl.load(index + n, mask=n < N, other=0)
    grad_nd = tl.load(grad + n[:, None] * D + d[None, :], mask=is_in_nd, other=0.0).to(tl.float32)
    # Zeros, of unused slots for one, would all queue for the same few rows.
    counts_nd = is_in_nd & (r != padding)[:, None] & (grad_nd != 0)
    tl.atomic_add(out + r[:, None] * D + d[None, :], grad_nd, mask=counts_nd, sem="relaxed")


@kernel
def _score(query, table, index, out, N, D: tl.constexpr, K, ROWS: tl.constexpr, TILE_D: tl.constexpr):
    n, d, is_in_nd = _tile(N, D, ROWS, TILE_D)
    query_nd = tl.load(query + n[:, None] * D + d[None, :], mask=is_in_nd, other=0.0).to(tl.float32)
    for k in range(K):
        r = tl.load(index + n * K + k, mask=n < N, other=0)
        row_nd = tl.load(table + r[:, None] * D + d[None, :], mask=is_in_nd, other=0.0).to(tl.float32)
        tl.store(out + n * K + k, tl.sum(query_nd * row_nd, 1), mask=n < N)


@kernel
def _score_gradients(
    grad,
    query,
    table,
    index,
    of_query,
    of_table,
    N,
    D: tl.constexpr,
    K,
    ROWS: tl.constexpr,
    TILE_D: tl.constexpr,
):
    n, d, is_in_nd = _tile(N, D, ROWS, TILE_D)
    query_nd = tl.load(query + n[:, None] * D + d[None, :], mask=is_in_nd, other=0.0).to(tl.float32)
    of_query_nd = tl.zeros([ROWS, TILE_D], tl.float32)
    for k in range(K):
        r = tl.load(index + n * K + k, mask=n < N, other=0)
        grad_n = tl.load(grad + n * K + k, mask=n < N, other=0.0).to(tl.float32)
        at_nd = r[:, None] * D + d[None, :]
        row_nd = tl.load(table + at_nd, mask=is_in_nd, other=0.0).to(tl.float32)
        of_query_nd += grad_n[:, None] * row_nd
        counts_nd = is_in_nd & (grad_n != 0)[:, None]
        tl.atomic_add(of_table + at_nd, grad_n[:, None] * query_nd, mask=counts_nd, sem="relaxed")
    tl.store(of_query + n[:, None] * D + d[None, :], of_query_nd, mask=is_in_nd)
