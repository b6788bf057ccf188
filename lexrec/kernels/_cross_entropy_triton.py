"""Cross-entropy over a whole catalogue on a GPU: tiles of logits that never leave a multiprocessor.

    forward    of a block of states, over all items: the sum of powers and the sum of rows times powers, which
               is the gradient of a state but for its target's row: attention with rows as keys and values
    backward   of a block of items, over all states: scores once more

Nothing is added atomically, and a step repeats exactly.
Operands are 16-bit, products and sums float32; exponentials are powers of two, as the hardware has them.

Dimension key: N states, I items, D width, S shares, n, i, d: of one tile.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lexrec.kernels._jit import kernel

_LOG2E = tl.constexpr(1.4426950408889634)
_LOWEST = tl.constexpr(-1.0e30)
_PROGRAMS = 264
"""Programs that keep a large GPU busy: twice the multiprocessors of an H100."""
_MOST_SHARES = 16


class Plan(NamedTuple):
    """How a kernel cuts its work."""

    own: int
    """States, or items, of a program."""
    other: int
    """Items, or states, of each tile that it loops over."""
    n_warps: int
    n_stages: int
    """Loads in flight."""


_STATES, _ITEMS = Plan(64, 128, 4, 3), Plan(128, 128, 4, 3)
"""Of `_sums`, `_of_items`."""
_WIDE = Plan(64, 64, 4, 2)
"""For rows wider than 128: at most 75 KiB of a multiprocessor."""


def cross_entropy(
    query_ND: Tensor,
    row_ID: Tensor,
    target_N: Tensor,
    weight_N: Tensor,
    bias_I: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """As `cross_entropy.cross_entropy`; `dtype` is the 16-bit type that states and rows are rounded to."""
    if bias_I is None:
        bias_I = query_ND.new_empty(0, dtype=torch.float32)
    loss_N, *_ = _losses(query_ND, row_ID, target_N, weight_N, bias_I, dtype)
    loss: Tensor = loss_N.sum()
    return loss


@torch.library.custom_op("lexrec::cross_entropy", mutates_args=())
def _losses(
    query_ND: Tensor,
    row_ID: Tensor,
    target_N: Tensor,
    weight_N: Tensor,
    bias_I: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weighted losses [N] and their gradients by the states [N, D]; for the items' gradients the rest.

    That is log2-sums [N], how many states there are up to the last one in use [1], and the rounded operands.
    """
    query_ND, row_ID = (one.to(dtype, copy=True).contiguous() for one in (query_ND, row_ID))
    (N, D), n_items = query_ND.shape, len(row_ID)
    has_bias, tile_d = len(bias_I) > 0, max(16, triton.next_power_of_2(D))
    plan = _plan(_STATES, D)
    n_shares, share = _shares(N, n_items, plan)
    top_SN = query_ND.new_empty(n_shares, N, dtype=torch.float32)
    total_SN, mean_SND = torch.empty_like(top_SN), top_SN.new_empty(n_shares, N, D)
    _sums[(triton.cdiv(N, plan.own), n_shares)](
        query_ND, row_ID, bias_I, weight_N, top_SN, total_SN, mean_SND, N, n_items, D, share,
        has_bias, plan.own, plan.other, tile_d, num_warps=plan.n_warps, num_stages=plan.n_stages,
    )  # fmt: skip
    loss_N, of_query_ND = top_SN.new_empty(N), top_SN.new_empty(N, D)
    log_sum_N = torch.empty_like(loss_N)
    n_used_1 = torch.zeros(1, dtype=torch.int32, device=query_ND.device)
    _of_states[(triton.cdiv(N, 16),)](
        query_ND, row_ID, bias_I, weight_N, target_N, top_SN, total_SN, mean_SND,
        loss_N, of_query_ND, log_sum_N, n_used_1, N, D, n_shares,
        has_bias, 16, triton.next_power_of_2(n_shares), tile_d,
    )  # fmt: skip
    return loss_N, of_query_ND, log_sum_N, n_used_1, query_ND, row_ID


@_losses.register_fake
def _(
    query_ND: Tensor,
    row_ID: Tensor,
    target_N: Tensor,
    weight_N: Tensor,
    bias_I: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    of_N = query_ND.new_empty(len(query_ND), dtype=torch.float32)
    of_query_ND, n_used_1 = of_N.new_empty(query_ND.shape), of_N.new_empty(1, dtype=torch.int32)
    query_ND, row_ID = (one.new_empty(one.shape, dtype=dtype) for one in (query_ND, row_ID))
    return of_N, of_query_ND, torch.empty_like(of_N), n_used_1, query_ND, row_ID


@torch.library.custom_op("lexrec::cross_entropy_backward", mutates_args=())
def _gradients(
    query_ND: Tensor,
    row_ID: Tensor,
    target_N: Tensor,
    weight_N: Tensor,
    bias_I: Tensor,
    log_sum_N: Tensor,
    n_used_1: Tensor,
) -> tuple[Tensor, Tensor]:
    """Float32 gradients of rows and bias; `weight_N` is the derivative by each state's own loss."""
    (N, D), n_items = query_ND.shape, len(row_ID)
    has_bias, tile_d = len(bias_I) > 0, max(16, triton.next_power_of_2(D))
    plan = _plan(_ITEMS, D)
    n_shares, share = _shares(n_items, N, plan)
    of_row_SID = query_ND.new_empty(n_shares, n_items, D, dtype=torch.float32)
    of_bias_SI = query_ND.new_empty(n_shares, len(bias_I), dtype=torch.float32)
    _of_items[(triton.cdiv(n_items, plan.own), n_shares)](
        query_ND, row_ID, bias_I, weight_N, target_N, log_sum_N, of_row_SID, of_bias_SI, n_used_1,
        N, n_items, D, share,
        has_bias, plan.own, plan.other, tile_d, num_warps=plan.n_warps, num_stages=plan.n_stages,
    )  # fmt: skip
    return _total(of_row_SID), _total(of_bias_SI)


@_gradients.register_fake
def _(
    query_ND: Tensor,
    row_ID: Tensor,
    target_N: Tensor,
    weight_N: Tensor,
    bias_I: Tensor,
    log_sum_N: Tensor,
    n_used_1: Tensor,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(row_ID, dtype=torch.float32), torch.empty_like(bias_I)


def _save(ctx, inputs, output):
    query_ND, row_ID, target_N, weight_N, bias_I, _ = inputs
    _, of_query_ND, log_sum_N, n_used_1, *rounded = output
    ctx.types = query_ND.dtype, row_ID.dtype
    ctx.save_for_backward(of_query_ND, *rounded, target_N, weight_N, bias_I, log_sum_N, n_used_1)
    ctx.mark_non_differentiable(of_query_ND, log_sum_N, n_used_1, *rounded)


def _backward(ctx, grad_N, *_):
    of_query_ND, query_ND, row_ID, target_N, weight_N, *rest = ctx.saved_tensors
    of_row_ID, of_bias_I = _gradients(query_ND, row_ID, target_N, weight_N * grad_N, *rest)
    of_query_ND = of_query_ND * grad_N[:, None]
    return of_query_ND.to(ctx.types[0]), of_row_ID.to(ctx.types[1]), None, None, of_bias_I, None


_losses.register_autograd(_backward, setup_context=_save)


def _total(part_SX: Tensor) -> Tensor:
    return part_SX[0] if len(part_SX) == 1 else part_SX.sum(0)


def _plan(plan: Plan, width: int) -> Plan:
    return plan if width <= 128 else _WIDE


def _shares(n_own: int, n_other: int, plan: Plan) -> tuple[int, int]:
    """Shares that a loop is cut into so that there are enough programs, and the length of one."""
    n_tiles = triton.cdiv(n_other, plan.other)
    wanted = min(max(1, _PROGRAMS // triton.cdiv(n_own, plan.own)), _MOST_SHARES, n_tiles)
    share = triton.cdiv(n_tiles, wanted)
    return triton.cdiv(n_tiles, share), share * plan.other


@kernel
def _tile(pointer, at, is_in, d, D):
    """Rows `at` of a [*, D] array, zero beyond its ends."""
    return tl.load(pointer + at[:, None] * D + d[None, :], mask=is_in[:, None] & (d < D)[None, :], other=0.0)


@kernel
def _shift(bias, i, n_items):
    """What is added to the items' scores in units of log 2; -inf beyond the last item."""
    return tl.load(bias + i, mask=i < n_items, other=float("-inf")) * _LOG2E


@kernel
def _sums(
    query, row, bias, weight, top, total, mean, N, n_items, D: tl.constexpr, share,
    HAS_BIAS: tl.constexpr, TILE_N: tl.constexpr, TILE_I: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    """Largest log2-score, sum of powers and sum of rows times powers, of states over a share of the items."""
    n, d = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N), tl.arange(0, TILE_D)
    query_nd = _tile(query, n, n < N, d, D)
    first = tl.program_id(1) * share
    is_used = tl.max(tl.load(weight + n, mask=n < N, other=0.0), 0) > 0
    last = tl.where(is_used, tl.minimum(first + share, n_items), first)
    top_n = tl.full([TILE_N], _LOWEST, tl.float32)
    total_n, mean_nd = tl.zeros([TILE_N], tl.float32), tl.zeros([TILE_N, TILE_D], tl.float32)
    # The last tile of the catalogue apart: it alone has places of no item.
    last_whole = first + (last - first) // TILE_I * TILE_I
    for start in range(first, last_whole, TILE_I):
        top_n, total_n, mean_nd = _add_tile(
            top_n, total_n, mean_nd, query_nd, row, bias, start, n_items, D, HAS_BIAS, False, TILE_I, TILE_D
        )
    if last_whole < last:
        top_n, total_n, mean_nd = _add_tile(
            top_n,
            total_n,
            mean_nd,
            query_nd,
            row,
            bias,
            last_whole,
            n_items,
            D,
            HAS_BIAS,
            True,
            TILE_I,
            TILE_D,
        )
    at = tl.program_id(1) * N + n
    tl.store(top + at, top_n, mask=n < N)
    tl.store(total + at, total_n, mask=n < N)
    at_nd = at[:, None].to(tl.int64) * D + d[None, :]
    tl.store(mean + at_nd, mean_nd, mask=(n < N)[:, None] & (d < D)[None, :])


@kernel
def _add_tile(
    top_n, total_n, mean_nd, query_nd, row, bias, start, n_items, D: tl.constexpr,
    HAS_BIAS: tl.constexpr, IS_PART: tl.constexpr, TILE_I: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    i, d = start + tl.arange(0, TILE_I), tl.arange(0, TILE_D)
    row_id = _tile(row, i, i < n_items, d, D)
    score_ni = tl.dot(query_nd, tl.trans(row_id))
    if IS_PART:
        score_ni = tl.where((i < n_items)[None, :], score_ni, float("-inf"))
    if HAS_BIAS:
        score_ni = score_ni * _LOG2E + _shift(bias, i, n_items)[None, :]
        new_top_n = tl.maximum(top_n, tl.max(score_ni, 1))
        power_ni = tl.exp2(score_ni - new_top_n[:, None])
    else:
        # Multiplied and subtracted in one instruction, which counts: there are N x I of them.
        new_top_n = tl.maximum(top_n, tl.max(score_ni, 1) * _LOG2E)
        power_ni = tl.exp2(score_ni * _LOG2E - new_top_n[:, None])
    factor_n = tl.exp2(top_n - new_top_n)
    mean_nd = tl.dot(power_ni.to(row_id.dtype), row_id, mean_nd * factor_n[:, None])
    return new_top_n, total_n * factor_n + tl.sum(power_ni, 1), mean_nd


@kernel
def _of_states(
    query, row, bias, weight, target, top, total, mean, loss, of_query, log_sum, n_used,
    N, D: tl.constexpr, n_shares,
    HAS_BIAS: tl.constexpr, TILE_N: tl.constexpr, TILE_S: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    """Joins the shares of each state: its loss and its gradient, mean row less target's row."""
    n = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
    s, d = tl.arange(0, TILE_S), tl.arange(0, TILE_D)
    at_sn = s[:, None] * N + n[None, :]
    is_in_sn, is_in_nd = (s < n_shares)[:, None] & (n < N)[None, :], (n < N)[:, None] & (d < D)[None, :]
    top_sn = tl.load(top + at_sn, mask=is_in_sn, other=_LOWEST)
    total_sn = tl.load(total + at_sn, mask=is_in_sn, other=0.0)
    top_n = tl.max(top_sn, 0)
    total_n = tl.maximum(tl.sum(total_sn * tl.exp2(top_sn - top_n[None, :]), 0), 1e-30)  # nobody summed: 0
    mean_nd = tl.zeros([TILE_N, TILE_D], tl.float32)
    for share in range(n_shares):
        at_n = share * N + n
        factor_n = tl.exp2(tl.load(top + at_n, mask=n < N, other=_LOWEST) - top_n) / total_n
        at_nd = at_n[:, None].to(tl.int64) * D + d[None, :]
        mean_nd += tl.load(mean + at_nd, mask=is_in_nd, other=0.0) * factor_n[:, None]
    weight_n = tl.load(weight + n, mask=n < N, other=0.0)
    target_n = tl.load(target + n, mask=n < N, other=0)
    row_nd = _tile(row, target_n, n < N, d, D).to(tl.float32)
    score_n = tl.sum(_tile(query, n, n < N, d, D).to(tl.float32) * row_nd, 1)
    if HAS_BIAS:
        score_n += tl.load(bias + target_n, mask=n < N, other=0.0)
    is_used_n, log_sum_n = weight_n > 0, top_n + tl.log2(total_n)
    loss_n = tl.where(is_used_n, (log_sum_n / _LOG2E - score_n) * weight_n, 0.0)
    tl.store(loss + n, loss_n, mask=n < N)
    tl.store(of_query + n[:, None] * D + d[None, :], (mean_nd - row_nd) * weight_n[:, None], mask=is_in_nd)
    # An infinite sum makes every share 0 in the backward pass: a state that is not used moves nothing.
    tl.store(log_sum + n, tl.where(is_used_n, log_sum_n, float("inf")), mask=n < N)
    tl.atomic_max(n_used, tl.max(tl.where(is_used_n, n + 1, 0), 0))


@kernel
def _of_items(
    query, row, bias, weight, target, log_sum, out, out_bias, n_used, N, n_items, D: tl.constexpr, share,
    HAS_BIAS: tl.constexpr, TILE_I: tl.constexpr, TILE_N: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of items, and of their bias, from one share of the states."""
    i = tl.program_id(0) * TILE_I + tl.arange(0, TILE_I)
    d = tl.arange(0, TILE_D)
    row_id = _tile(row, i, i < n_items, d, D)
    if HAS_BIAS:
        shift_i = _shift(bias, i, n_items)
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, tl.load(n_used))
    out_id = tl.zeros([TILE_I, TILE_D], tl.float32)
    out_i = tl.zeros([TILE_I], tl.float32)
    for start in range(first, last, TILE_N):
        n = start + tl.arange(0, TILE_N)
        query_nd = _tile(query, n, n < N, d, D)
        weight_n = tl.load(weight + n, mask=n < N, other=0.0)
        target_n = tl.load(target + n, mask=n < N, other=-1).to(tl.int32)
        log_sum_n = tl.load(log_sum + n, mask=n < N, other=float("inf"))
        log_share_in = tl.dot(row_id, tl.trans(query_nd)) * _LOG2E - log_sum_n[None, :]
        if HAS_BIAS:
            log_share_in += shift_i[:, None]
        is_target_in = i[:, None] == target_n[None, :]
        slope_in = tl.exp2(log_share_in) * weight_n[None, :] - tl.where(is_target_in, weight_n[None, :], 0.0)
        out_id = tl.dot(slope_in.to(query_nd.dtype), query_nd, out_id)
        if HAS_BIAS:
            out_i += tl.sum(slope_in, 1)
    at_i = tl.program_id(1) * n_items + i
    tl.store(out + at_i[:, None] * D + d[None, :], out_id, mask=(i < n_items)[:, None] & (d < D)[None, :])
    if HAS_BIAS:
        tl.store(out_bias + at_i, out_i, mask=i < n_items)
