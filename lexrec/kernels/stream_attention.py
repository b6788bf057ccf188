"""Attention of histories that stand one after another in a stream, in a training step in 16 bits on a GPU.

A token looks at its own history alone, at what is a token, at none that comes later and at none further back
than a reach; what is no token looks at itself. Several heads of queries may share one of keys. For PyTorch a
stream is cut into blocks, which pads, unfolds and repeats keys and values in some twenty kernels; here it is
one forward and two backward that read everything where it lies (`_stream_attention_triton.py`).

Dimension key: N slots, H heads of queries, G of keys, K head width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lexrec.kernels._training import trains_in_16_bits

_FAR = 2**30
"""How far off what is no token is; a reach is less."""
_WIDEST = 256
"""Width of a head up to which a tile of them fits a program."""


def places(history_N: Tensor, position_N: Tensor, is_token_N: Tensor) -> Tensor:
    """What the kernels are told of each slot, int32 [4, N]: the first slot of its history, the one behind its
    last, its position, and its position as others see it.

    Args:
        history_N: any number of the history; each is contiguous.
        position_N: position in the history.
        is_token_N: True where there is a token.
    """
    N = len(history_N)
    place_N = torch.arange(N, device=history_N.device)
    is_first_N = torch.ones_like(is_token_N)
    is_first_N[1:] = history_N[1:] != history_N[:-1]
    start_N = torch.where(is_first_N, place_N, 0).cummax(0).values
    behind_N = torch.where(is_first_N, place_N, N).roll(-1)
    behind_N[-1] = N
    end_N = behind_N.flip(0).cummin(0).values.flip(0)
    seen_N = torch.where(is_token_N, position_N, -_FAR)
    return torch.stack([start_N, end_N, position_N, seen_N]).int()


def serves(v_1GNK: Tensor) -> bool:
    """True where the kernels take over: exact products of float32 tiles would take the compiler minutes."""
    return trains_in_16_bits(v_1GNK) and v_1GNK.dtype.itemsize == 2 and v_1GNK.shape[-1] <= _WIDEST


def stream_attention(
    q_1HNK: Tensor, k_1GNK: Tensor, v_1GNK: Tensor, place_4N: Tensor, reach: int | None, scale: float
) -> Tensor:
    """What the tokens see, heads side by side for each slot: [1, N, H, K].

    Args:
        q_1HNK: queries.
        k_1GNK: keys; H is a multiple of G.
        v_1GNK: values.
        place_4N: of `places`.
        reach: positions that a token looks back, its own included; None: to the beginning of its history.
        scale: of scores before the softmax.
    """
    reach = _FAR // 2 if reach is None else reach
    if serves(v_1GNK):
        # By rows of slots, as linear maps write them: no copies.
        given = (x.transpose(1, 2).flatten(0, 1) for x in (q_1HNK, k_1GNK, v_1GNK))
        y_NHK: Tensor = _Attention.apply(*given, place_4N, reach, scale)  # type: ignore[no-untyped-call]
        return y_NHK[None]
    may_look_NN = may_look(place_4N, reach)
    y_1HNK: Tensor = F.scaled_dot_product_attention(
        q_1HNK, k_1GNK, v_1GNK, attn_mask=may_look_NN, scale=scale, enable_gqa=True
    )
    return y_1HNK.transpose(1, 2)


def may_look(place_4N: Tensor, reach: int) -> Tensor:
    """True where the slot of a row looks at that of a column, [N, N]."""
    start_N, _, position_N, seen_N = place_4N
    place_N = torch.arange(place_4N.shape[1], device=place_4N.device)
    is_before_NN = (start_N[:, None] <= place_N) & (place_N <= place_N[:, None])
    is_near_NN = position_N[:, None] - seen_N < reach
    looks_NN: Tensor = (is_before_NN & is_near_NN) | (place_N == place_N[:, None])
    return looks_NN


class _Attention(torch.autograd.Function):
    """The kernels as one differentiable step."""

    @staticmethod
    def forward(
        ctx: Any, q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, place_4N: Tensor, reach: int, scale: float
    ) -> Tensor:
        from lexrec.kernels import _stream_attention_triton

        ctx.types = q_NHK.dtype, k_NGK.dtype
        q_NHK, k_NGK, v_NGK = (x.to(v_NGK.dtype).contiguous() for x in (q_NHK, k_NGK, v_NGK))
        ctx.look = _stream_attention_triton.Look(place_4N, reach, scale)
        y_NHK, log_sum_HN = _stream_attention_triton.attention(q_NHK, k_NGK, v_NGK, ctx.look)
        ctx.save_for_backward(q_NHK, k_NGK, v_NGK, y_NHK, log_sum_HN)
        return y_NHK

    @staticmethod
    def backward(ctx: Any, grad_NHK: Tensor) -> tuple[Tensor | None, ...]:
        from lexrec.kernels import _stream_attention_triton

        q_NHK, k_NGK, v_NGK, y_NHK, log_sum_HN = ctx.saved_tensors
        made = y_NHK, log_sum_HN, grad_NHK.to(y_NHK.dtype).contiguous()
        of_q, of_k, of_v = _stream_attention_triton.gradients((q_NHK, k_NGK, v_NGK), made, ctx.look)
        return of_q.to(ctx.types[0]), of_k.to(ctx.types[1]), of_v, None, None, None
