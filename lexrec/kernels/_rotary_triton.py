"""Kernel of `rotary.py`: a program turns a few heads, of queries first and then of keys.

Dimension key: R rows, S slots, H heads of queries, G of keys, K head width, T = R x S tokens, x: heads of one
tile, k: half a head's width.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import torch
import triton
import triton.language as tl
from torch import Tensor

from lexrec.kernels._jit import kernel

_CELLS = 1024
"""Numbers of a tile."""
Pair = tuple[Tensor, Tensor]


def turned(given: Pair, angles: Pair, types: tuple[torch.dtype, torch.dtype], back: bool) -> Pair:
    """Queries and keys turned, or with `back` their gradients turned back.

    The results lie in memory as [R, S, H, K], as linear maps write them.
    """
    given_RSHK = [x_RHSK.transpose(1, 2).contiguous() for x_RHSK in given]
    made_RSHK = [torch.empty_like(x, dtype=dtype) for x, dtype in zip(given_RSHK, types, strict=True)]
    R, S, H, K = given_RSHK[0].shape
    G, tile = given_RSHK[1].shape[2], triton.next_power_of_2(K // 2)
    rows = max(1, _CELLS // tile)
    n_rows = R * S * (H + G)
    _turned[(triton.cdiv(n_rows, rows),)](*given_RSHK, *angles, *made_RSHK, n_rows, H, G, K, rows, tile, back)
    return made_RSHK[0].transpose(1, 2), made_RSHK[1].transpose(1, 2)


@kernel
def _turned(
    query, key, cosine, sine, query_out, key_out, N,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = K // 2
    x, k = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, TILE)
    token_x, head_x = x // (H + G), x % (H + G)
    is_in_xk = (x < N)[:, None] & (k < HALF)[None, :]
    is_query_xk, is_key_xk = is_in_xk & (head_x < H)[:, None], is_in_xk & (head_x >= H)[:, None]
    query_at_xk = ((token_x * H + head_x) * K)[:, None] + k[None, :]
    key_at_xk = ((token_x * G + head_x - H) * K)[:, None] + k[None, :]
    first_xk = tl.load(query + query_at_xk, mask=is_query_xk, other=0.0).to(tl.float32)
    first_xk += tl.load(key + key_at_xk, mask=is_key_xk, other=0.0).to(tl.float32)
    second_xk = tl.load(query + query_at_xk + HALF, mask=is_query_xk, other=0.0).to(tl.float32)
    second_xk += tl.load(key + key_at_xk + HALF, mask=is_key_xk, other=0.0).to(tl.float32)
    angle_at_xk = (token_x * K)[:, None] + k[None, :]
    cos1_xk = tl.load(cosine + angle_at_xk, mask=is_in_xk, other=0.0).to(tl.float32)
    cos2_xk = tl.load(cosine + angle_at_xk + HALF, mask=is_in_xk, other=0.0).to(tl.float32)
    sin1_xk = tl.load(sine + angle_at_xk, mask=is_in_xk, other=0.0).to(tl.float32)
    sin2_xk = tl.load(sine + angle_at_xk + HALF, mask=is_in_xk, other=0.0).to(tl.float32)
    if BACK:
        made1_xk = first_xk * cos1_xk + second_xk * sin2_xk
        made2_xk = second_xk * cos2_xk - first_xk * sin1_xk
    else:
        made1_xk = first_xk * cos1_xk - second_xk * sin1_xk
        made2_xk = second_xk * cos2_xk + first_xk * sin2_xk
    tl.store(query_out + query_at_xk, made1_xk, mask=is_query_xk)
    tl.store(query_out + query_at_xk + HALF, made2_xk, mask=is_query_xk)
    tl.store(key_out + key_at_xk, made1_xk, mask=is_key_xk)
    tl.store(key_out + key_at_xk + HALF, made2_xk, mask=is_key_xk)
