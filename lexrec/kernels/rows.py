"""Rows of a table by index, and their dot products, with gradients that are summed in place.

PyTorch's own gradient of an embedding sorts the indexes on a GPU, some ten kernels, and a dot product of
chosen rows first makes a copy of each: [N, K, D]. In a training step on a GPU `_rows_triton.py` adds
atomically and copies nothing, at the price that sums differ in their last bit from run to run. On a CPU many
chosen rows of a small table are read from the product with all of them, a chunk of states at a time.

Dimension key: R rows of the table, N states, K chosen rows of each, D width, C states of a chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lexrec.kernels._training import trains_in_16_bits

_FEW = 4
"""Chosen rows of a state up to which products and sums are quicker than a matrix product each."""
_MANY = 16
_WORTH = 64
"""On a CPU, rows of a matrix product that take as long as one chosen row."""
_CHUNK_CELLS = 2**20
"""Scores of a chunk: 4 MiB."""
_NONE = -1


def take_rows(table_RD: Tensor, index: Tensor, padding: int) -> Tensor:
    """`table_RD[index]`, [*index.shape, D]; the row `padding` gets no gradient, as in `F.embedding`."""
    if not trains_in_16_bits(table_RD):
        return F.embedding(index, table_RD, padding_idx=padding)
    taken: Tensor = _Take.apply(table_RD, index, padding)  # type: ignore[no-untyped-call]
    return taken


def pick_rows(x_RD: Tensor, index_N: Tensor) -> Tensor:
    """`x_RD[index_N]`, [N, D]. Not by [ ], whose gradient sorts the indexes on a GPU."""
    if not trains_in_16_bits(x_RD):
        return x_RD.index_select(0, index_N)
    picked_ND: Tensor = _Take.apply(x_RD, index_N, _NONE)  # type: ignore[no-untyped-call]
    return picked_ND


def score_rows(query_ND: Tensor, table_RD: Tensor, index_NK: Tensor) -> Tensor:
    """Dot products of each state with its chosen rows, [N, K]."""
    if trains_in_16_bits(table_RD):
        score_NK: Tensor = _Score.apply(query_ND, table_RD, index_NK)  # type: ignore[no-untyped-call]
        return score_NK
    K = index_NK.shape[1]
    if not table_RD.is_cuda and K > _MANY and len(table_RD) < _WORTH * K:
        read_NK: Tensor = _Read.apply(query_ND, table_RD, index_NK)  # type: ignore[no-untyped-call]
        return read_NK
    return dot_rows(query_ND, F.embedding(index_NK, table_RD))


def dot_rows(query_ND: Tensor, row_NKD: Tensor) -> Tensor:
    """Dot products of each state with rows of its own, [N, K]."""
    if row_NKD.shape[1] <= _FEW:
        return (row_NKD * query_ND[:, None]).sum(-1)
    return (row_NKD @ query_ND[:, :, None])[..., 0]


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_RD: Tensor, index: Tensor, padding: int) -> Tensor:
        from lexrec.kernels import _rows_triton

        ctx.save_for_backward(index)
        ctx.n_rows, ctx.padding = len(table_RD), padding
        return _rows_triton.take(table_RD, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        from lexrec.kernels import _rows_triton

        (index,) = ctx.saved_tensors
        return _rows_triton.add_up(grad, index, ctx.n_rows, ctx.padding), None, None


class _Read(torch.autograd.Function):
    """Chosen scores out of all of them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(query_ND: Tensor, table_RD: Tensor, index_NK: Tensor) -> Tensor:
        with torch.autocast(query_ND.device.type, enabled=False):
            chunks = _chunks(query_ND, table_RD)
            return torch.cat([(query_ND[c] @ table_RD.T).gather(1, index_NK[c]) for c in chunks])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_NK: Tensor) -> tuple[Tensor, Tensor, None]:
        query_ND, table_RD, index_NK = ctx.saved_tensors
        of_query, of_table_RD = [], torch.zeros_like(table_RD)
        for c in _chunks(query_ND, table_RD):
            slope_CR = grad_NK.new_zeros(len(grad_NK[c]), len(table_RD)).scatter_add(
                1, index_NK[c], grad_NK[c]
            )
            of_query.append(slope_CR @ table_RD)
            of_table_RD = of_table_RD + slope_CR.T @ query_ND[c]
        return torch.cat(of_query), of_table_RD, None


def _chunks(query_ND: Tensor, table_RD: Tensor) -> list[slice]:
    step = max(1, _CHUNK_CELLS // len(table_RD))
    return [slice(first, first + step) for first in range(0, max(len(query_ND), 1), step)]


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_ND: Tensor, table_RD: Tensor, index_NK: Tensor) -> Tensor:
        from lexrec.kernels import _rows_triton

        ctx.save_for_backward(query_ND, table_RD, index_NK)
        return _rows_triton.score(query_ND, table_RD, index_NK)

    @staticmethod
    def backward(ctx: Any, grad_NK: Tensor) -> tuple[Tensor, Tensor, None]:
        from lexrec.kernels import _rows_triton

        return *_rows_triton.score_gradients(grad_NK, *ctx.saved_tensors), None
