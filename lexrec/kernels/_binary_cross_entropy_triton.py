"""Kernel of `binary_cross_entropy.py`.

Dimension key: N states, R rows of a table, D width, X chosen rows of each state, n, d: of one tile.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import torch
import triton
import triton.language as tl
from torch import Tensor

from lexrec.kernels._jit import kernel

_ROWS = 32
"""States of a tile."""


def losses(
    query_ND: Tensor, table_RD: Tensor, index_NX: Tensor, weight_N: Tensor, beta: float, prior: float
) -> tuple[Tensor, Tensor]:
    """Weighted losses, [N], and their derivatives by each score, [N, X], in float32."""
    query_ND, table_RD, index_NX = query_ND.contiguous(), table_RD.contiguous(), index_NX.contiguous()
    (N, D), X = query_ND.shape, index_NX.shape[1]
    loss_N = query_ND.new_empty(N, dtype=torch.float32)
    slope_NX = query_ND.new_empty(N, X, dtype=torch.float32)
    if N:
        _losses[(triton.cdiv(N, _ROWS),)](
            query_ND, table_RD, index_NX, weight_N.contiguous(), loss_N, slope_NX,
            N, D, X, beta, prior, _ROWS, triton.next_power_of_2(D),
        )  # fmt: skip
    return loss_N, slope_NX


@kernel
def _losses(
    query, table, index, weight, loss, slope, N, D: tl.constexpr, X, beta, prior,
    ROWS: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    n, d = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64), tl.arange(0, TILE_D)
    is_in_nd = (n < N)[:, None] & (d < D)[None, :]
    query_nd = tl.load(query + n[:, None] * D + d[None, :], mask=is_in_nd, other=0.0).to(tl.float32)
    weight_n = tl.load(weight + n, mask=n < N, other=0.0)
    target_n = tl.load(index + n * X, mask=n < N, other=0)
    loss_n = tl.zeros([ROWS], tl.float32)
    for x in range(X):
        r = tl.load(index + n * X + x, mask=n < N, other=0)
        row_nd = tl.load(table + r[:, None] * D + d[None, :], mask=is_in_nd, other=0.0).to(tl.float32)
        logit_n = tl.sum(query_nd * row_nd, 1) + prior
        # Of the target its sigmoid is to rise, of the others to fall.
        sign = tl.where(x == 0, -1.0, 1.0)
        factor_n = tl.where(x == 0, beta, tl.where(r == target_n, 0.0, 1.0)) * weight_n
        signed_n = sign * logit_n
        small_n = tl.exp(-tl.abs(signed_n))
        loss_n += factor_n * (tl.maximum(signed_n, 0.0) + tl.log(1 + small_n))
        sigmoid_n = tl.where(signed_n >= 0, 1.0, small_n) / (1 + small_n)
        tl.store(slope + n * X + x, factor_n * sign * sigmoid_n, mask=n < N)
    tl.store(loss + n, loss_n, mask=n < N)
