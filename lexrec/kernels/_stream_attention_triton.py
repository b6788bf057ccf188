"""Kernels of `stream_attention.py`: a program does one head of a block of slots.

Forward keeps running sums over the blocks of keys from the beginning of its first slot's history on; backward
makes the weights anew from the logarithm of their sum. One kernel makes the gradients of queries, one those
of keys and values, for all heads of queries that share them: every sum is in one program, in one order.

    y_n = sum_t p_nt v_t      dv_t = sum_n p_nt dy_n      ds_nt = p_nt (<dy_n, v_t> - <dy_n, y_n>)

Dimension key: N slots, H heads of queries, G of keys, K head width, P tokens of the prefix,
n: queries, t: keys, p: keys of the prefix, k: of one tile.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lexrec.kernels._jit import kernel
from lexrec.kernels.stream_attention import Look, far

_LOG2E = tl.constexpr(1.4426950408889634)
_CELLS = 64 * 64
"""Numbers of a tile of heads: what a program keeps fits the multiprocessors of small GPUs too."""


Given = tuple[Tensor, ...]
"""Queries, keys, values, and keys and values of the prefix: [N, H, K], twice [N, G, K], twice [P, G, K]."""


def attention(given: Given, look: Look) -> tuple[Tensor, Tensor]:
    """What slots see, [N, H, K], and the binary logarithm of their weights' sums, [H, N]; all contiguous."""
    grid, sizes = _sizes(given)
    N, H, _ = given[0].shape
    y_NHK, log_sum_HN = torch.empty_like(given[0]), given[0].new_empty(H, N, dtype=torch.float32)
    _forward[(grid, H)](*given, look.place_4N, far(look), look.scale, y_NHK, log_sum_HN, N, **sizes)
    return y_NHK, log_sum_HN


def gradients(given: Given, made: tuple[Tensor, Tensor, Tensor], look: Look) -> Given:
    """Of all that is given; `made` is what `attention` gave, and the gradient of what slots see."""
    y_NHK, log_sum_HN, grad_NHK = made
    grid, sizes = _sizes(given)
    (N, H, K), (P, G, _) = given[0].shape, given[3].shape
    of_q, of_k, of_v = (torch.empty_like(x) for x in given[:3])
    along_HN = torch.empty_like(log_sum_HN)
    # Of the prefix, each block of slots and head of queries has its part.
    part = log_sum_HN.new_empty(grid, G, H // G, 2, P, K)
    looks = look.place_4N, far(look), look.scale
    _of_queries[(grid, H)](*given, *looks, y_NHK, log_sum_HN, grad_NHK, along_HN, of_q, part, N, **sizes)
    _of_keys[(grid, G)](
        *given[:3], *looks, log_sum_HN, grad_NHK, along_HN, of_k, of_v, N, **_without_prefix(sizes)
    )
    if not P:
        return of_q, of_k, of_v, *given[3:]  # As empty as their gradients.
    of_prefix_2PGK = part.sum((0, 2)).permute(1, 2, 0, 3)
    return of_q, of_k, of_v, of_prefix_2PGK[0], of_prefix_2PGK[1]


def _without_prefix(sizes: dict[str, Any]) -> dict[str, Any]:
    return {name: size for name, size in sizes.items() if name not in ("P", "TILE_P")}


def _sizes(given: Given) -> tuple[int, dict[str, Any]]:
    """Blocks of slots, and what a program is compiled for."""
    (N, H, K), (P, G, _) = given[0].shape, given[3].shape
    TILE_K = max(16, triton.next_power_of_2(K))
    block = min(64, _CELLS // TILE_K)
    sizes = {"H": H, "G": G, "K": K, "P": P, "BLOCK": block, "TILE_K": TILE_K, "num_warps": 4}
    return triton.cdiv(N, block), sizes | {"TILE_P": max(16, triton.next_power_of_2(P))}


@kernel
def _heads(x, n, h, N, H: tl.constexpr, K: tl.constexpr, TILE_K: tl.constexpr):
    """Where a head of slots is, and True where there is one."""
    k = tl.arange(0, TILE_K)
    return x + (n.to(tl.int64)[:, None] * H + h) * K + k[None, :], (n < N)[:, None] & (k < K)[None, :]


@kernel
def _keys_values(key, value, t, g, N, G: tl.constexpr, K: tl.constexpr, TILE_K: tl.constexpr):
    """A head of keys and of values."""
    key_at_tk, is_in_tk = _heads(key, t, g, N, G, K, TILE_K)
    value_at_tk, _ = _heads(value, t, g, N, G, K, TILE_K)
    key_tk = tl.load(key_at_tk, mask=is_in_tk, other=0.0)
    return key_tk, tl.load(value_at_tk, mask=is_in_tk, other=0.0)


@kernel
def _may_look(place, n, t, N, reach):
    """True where query n looks at key t; both lie in the stream or see nothing."""
    start_n = tl.load(place + n, mask=n < N, other=0)
    position_n = tl.load(place + 2 * N + n, mask=n < N, other=0)
    seen_t = tl.load(place + 3 * N + t, mask=t < N, other=0)
    is_before_nt = (start_n[:, None] <= t[None, :]) & (t[None, :] <= n[:, None])
    is_near_nt = position_n[:, None] - seen_t[None, :] < reach
    return ((is_before_nt & is_near_nt) | (t[None, :] == n[:, None])) & (n < N)[:, None]


@kernel
def _may_look_before(place, n, p, N, P, reach):
    """True where query n looks at token p of the prefix."""
    position_n = tl.load(place + 2 * N + n, mask=n < N, other=0)
    return (position_n[:, None] - p[None, :] < reach) & (n < N)[:, None] & (p < P)[None, :]


@kernel
def _seen(query_nk, key_tk, value_tk, may_look_nt, most_n, sum_n, y_nk, scale):
    """The running sums with more keys: the largest score, weights and what they see by it."""
    score_nt = tl.dot(query_nk, tl.trans(key_tk), input_precision="ieee") * (scale * _LOG2E)
    score_nt = tl.where(may_look_nt, score_nt, -1.0e30)
    more_n = tl.maximum(most_n, tl.max(score_nt, 1))
    weight_nt = tl.where(may_look_nt, tl.exp2(score_nt - more_n[:, None]), 0.0)
    fade_n = tl.exp2(most_n - more_n)
    seen_nk = tl.dot(weight_nt.to(value_tk.dtype), value_tk, input_precision="ieee")
    return more_n, sum_n * fade_n + tl.sum(weight_nt, 1), y_nk * fade_n[:, None] + seen_nk


@kernel
def _forward(
    query, key, value, first_key, first_value, place, reach, scale, out, log_sum, N,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, P: tl.constexpr,
    BLOCK: tl.constexpr, TILE_K: tl.constexpr, TILE_P: tl.constexpr,
):  # fmt: skip
    block, h = tl.program_id(0), tl.program_id(1)
    n = block * BLOCK + tl.arange(0, BLOCK)
    at_nk, is_in_nk = _heads(query, n, h, N, H, K, TILE_K)
    query_nk = tl.load(at_nk, mask=is_in_nk, other=0.0)
    most_n = tl.full([BLOCK], -1.0e30, tl.float32)
    sum_n = tl.zeros([BLOCK], tl.float32)
    y_nk = tl.zeros([BLOCK, TILE_K], tl.float32)
    if P > 0:
        p = tl.arange(0, TILE_P)
        key_pk, value_pk = _keys_values(first_key, first_value, p, h // (H // G), P, G, K, TILE_K)
        may_look_np = _may_look_before(place, n, p, N, P, reach)
        most_n, sum_n, y_nk = _seen(query_nk, key_pk, value_pk, may_look_np, most_n, sum_n, y_nk, scale)
    first = tl.load(place + block * BLOCK) // BLOCK * BLOCK
    for start in range(first, (block + 1) * BLOCK, BLOCK):
        t = start + tl.arange(0, BLOCK)
        may_look_nt = _may_look(place, n, t, N, reach)
        key_tk, value_tk = _keys_values(key, value, t, h // (H // G), N, G, K, TILE_K)
        most_n, sum_n, y_nk = _seen(query_nk, key_tk, value_tk, may_look_nt, most_n, sum_n, y_nk, scale)
    sum_n = tl.maximum(sum_n, 1.0e-30)
    at_nk, is_in_nk = _heads(out, n, h, N, H, K, TILE_K)
    tl.store(at_nk, y_nk / sum_n[:, None], mask=is_in_nk)
    tl.store(log_sum + h * N + n, most_n + tl.log2(sum_n), mask=n < N)


@kernel
def _slopes(query_nk, key_tk, value_tk, grad_nk, log_sum_n, along_n, may_look_nt, scale):
    """Weights, and derivatives of the scores before they are scaled."""
    score_nt = tl.dot(query_nk, tl.trans(key_tk), input_precision="ieee") * (scale * _LOG2E)
    weight_nt = tl.where(may_look_nt, tl.exp2(tl.where(may_look_nt, score_nt - log_sum_n[:, None], 0.0)), 0.0)
    pull_nt = tl.dot(grad_nk, tl.trans(value_tk), input_precision="ieee")
    return weight_nt, weight_nt * (pull_nt - along_n[:, None])


@kernel
def _of_queries(
    query, key, value, first_key, first_value, place, reach, scale, y, log_sum, grad, along, out, part, N,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, P: tl.constexpr,
    BLOCK: tl.constexpr, TILE_K: tl.constexpr, TILE_P: tl.constexpr,
):  # fmt: skip
    block, h = tl.program_id(0), tl.program_id(1)
    n = block * BLOCK + tl.arange(0, BLOCK)
    at_nk, is_in_nk = _heads(query, n, h, N, H, K, TILE_K)
    query_nk = tl.load(at_nk, mask=is_in_nk, other=0.0)
    at_nk, is_in_nk = _heads(grad, n, h, N, H, K, TILE_K)
    grad_nk = tl.load(at_nk, mask=is_in_nk, other=0.0)
    at_nk, is_in_nk = _heads(y, n, h, N, H, K, TILE_K)
    y_nk = tl.load(at_nk, mask=is_in_nk, other=0.0)
    along_n = tl.sum(grad_nk.to(tl.float32) * y_nk.to(tl.float32), 1)
    tl.store(along + h * N + n, along_n, mask=n < N)
    log_sum_n = tl.load(log_sum + h * N + n, mask=n < N, other=0.0)
    of_query_nk = tl.zeros([BLOCK, TILE_K], tl.float32)
    if P > 0:
        p = tl.arange(0, TILE_P)
        key_pk, value_pk = _keys_values(first_key, first_value, p, h // (H // G), P, G, K, TILE_K)
        may_look_np = _may_look_before(place, n, p, N, P, reach)
        weight_np, slope_np = _slopes(
            query_nk, key_pk, value_pk, grad_nk, log_sum_n, along_n, may_look_np, scale
        )
        weight_np, slope_np = weight_np.to(key_pk.dtype), slope_np.to(key_pk.dtype)
        of_query_nk += tl.dot(slope_np, key_pk, input_precision="ieee")
        at_pk, is_in_pk = _heads(part, p, 0, P, 1, K, TILE_K)
        at_pk += (block * H + h).to(tl.int64) * 2 * P * K
        of_key_pk = tl.dot(tl.trans(slope_np), query_nk, input_precision="ieee") * scale
        tl.store(at_pk, of_key_pk, mask=is_in_pk)
        of_value_pk = tl.dot(tl.trans(weight_np), grad_nk, input_precision="ieee")
        tl.store(at_pk + P * K, of_value_pk, mask=is_in_pk)
    first = tl.load(place + block * BLOCK) // BLOCK * BLOCK
    for start in range(first, (block + 1) * BLOCK, BLOCK):
        t = start + tl.arange(0, BLOCK)
        may_look_nt = _may_look(place, n, t, N, reach)
        key_tk, value_tk = _keys_values(key, value, t, h // (H // G), N, G, K, TILE_K)
        _, slope_nt = _slopes(query_nk, key_tk, value_tk, grad_nk, log_sum_n, along_n, may_look_nt, scale)
        of_query_nk += tl.dot(slope_nt.to(key_tk.dtype), key_tk, input_precision="ieee")
    at_nk, is_in_nk = _heads(out, n, h, N, H, K, TILE_K)
    tl.store(at_nk, of_query_nk * scale, mask=is_in_nk)


@kernel
def _of_keys(
    query, key, value, place, reach, scale, log_sum, grad, along, out_key, out_value, N,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    block, g = tl.program_id(0), tl.program_id(1)
    t = block * BLOCK + tl.arange(0, BLOCK)
    key_tk, value_tk = _keys_values(key, value, t, g, N, G, K, TILE_K)
    of_key_tk = tl.zeros([BLOCK, TILE_K], tl.float32)
    of_value_tk = tl.zeros([BLOCK, TILE_K], tl.float32)
    # Nobody behind the history of the block's last key looks at any of it.
    last = tl.load(place + N + tl.minimum((block + 1) * BLOCK, N) - 1)
    for start in range(block * BLOCK, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        may_look_nt = _may_look(place, n, t, N, reach)
        for h in range(g * (H // G), (g + 1) * (H // G)):
            at_nk, is_in_nk = _heads(query, n, h, N, H, K, TILE_K)
            query_nk = tl.load(at_nk, mask=is_in_nk, other=0.0)
            at_nk, is_in_nk = _heads(grad, n, h, N, H, K, TILE_K)
            grad_nk = tl.load(at_nk, mask=is_in_nk, other=0.0)
            log_sum_n = tl.load(log_sum + h * N + n, mask=n < N, other=0.0)
            along_n = tl.load(along + h * N + n, mask=n < N, other=0.0)
            weight_nt, slope_nt = _slopes(
                query_nk, key_tk, value_tk, grad_nk, log_sum_n, along_n, may_look_nt, scale
            )
            of_value_tk += tl.dot(tl.trans(weight_nt.to(grad_nk.dtype)), grad_nk, input_precision="ieee")
            of_key_tk += tl.dot(tl.trans(slope_nt.to(query_nk.dtype)), query_nk, input_precision="ieee")
    at_tk, is_in_tk = _heads(out_key, t, g, N, G, K, TILE_K)
    tl.store(at_tk, of_key_tk * scale, mask=is_in_tk)
    at_tk, is_in_tk = _heads(out_value, t, g, N, G, K, TILE_K)
    tl.store(at_tk, of_value_tk, mask=is_in_tk)
