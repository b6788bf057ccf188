"""Attention of histories that stand one after another in a stream, in a training step in 16 bits on a GPU.

A token looks at its own history alone, at what is a token, at none that comes later and at none further back
than a reach; what is no token looks at itself. What stands before each history (a prefix) is seen by all.
Several heads of queries may share one of keys. For PyTorch a
stream is cut into blocks, which pads, unfolds and repeats keys and values in some twenty kernels; here it is
one forward and two backward that read everything where it lies (`_stream_attention_triton.py`).

Dimension key: N slots, P tokens of the prefix, H heads of queries, G of keys, K head width.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lexrec.kernels._training import trains_in_16_bits

_FAR = 2**30
"""How far off what is no token is; a reach is less."""
_WIDEST = 256
"""Width of a head up to which a tile of them fits a program."""
_MOST_BEFORE = 32
"""Tokens of a prefix up to which it is one tile."""


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


def serves(v_1GNK: Tensor, P: int) -> bool:
    """True where the kernels take over: exact products of float32 tiles would take the compiler minutes."""
    fits = v_1GNK.dtype.itemsize == 2 and v_1GNK.shape[-1] <= _WIDEST and P <= _MOST_BEFORE
    return fits and trains_in_16_bits(v_1GNK)


class Look(NamedTuple):
    """Who may look at whom, and by which scale."""

    place_4N: Tensor
    """Of `places`."""
    reach: int | None
    """Positions that a token looks back, its own included; None: to the beginning of its history."""
    scale: float
    """Of scores before the softmax."""


Prefix = tuple[Tensor, Tensor]
"""Keys and values, [1, G, P, K], of P tokens at the first positions, before each history."""


def stream_attention(
    q_1HNK: Tensor, k_1GNK: Tensor, v_1GNK: Tensor, look: Look, prefix: Prefix | None = None
) -> Tensor:
    """What the tokens see, heads side by side for each slot: [1, N, H, K].

    Args:
        q_1HNK: queries.
        k_1GNK: keys; H is a multiple of G.
        v_1GNK: values.
        look: who may look at whom.
        prefix: what all look at, as far as it is near enough; None: nothing.
    """
    prefix = prefix or (k_1GNK.detach()[:, :, :0], v_1GNK.detach()[:, :, :0])
    if serves(v_1GNK, prefix[0].shape[2]):
        # By rows of slots, as linear maps write them: no copies.
        given = (x.transpose(1, 2).flatten(0, 1) for x in (q_1HNK, k_1GNK, v_1GNK, *prefix))
        y_NHK: Tensor = _Attention.apply(*given, look)  # type: ignore[no-untyped-call]
        return y_NHK[None]
    k_1GTK, v_1GTK = torch.cat([prefix[0], k_1GNK], 2), torch.cat([prefix[1], v_1GNK], 2)
    may_look_NT = _may_look(look, prefix[0].shape[2])
    y_1HNK: Tensor = F.scaled_dot_product_attention(
        q_1HNK, k_1GTK, v_1GTK, attn_mask=may_look_NT, scale=look.scale, enable_gqa=True
    )
    return y_1HNK.transpose(1, 2)


def far(look: Look) -> int:
    """The reach as a number that what is no token is beyond of."""
    return _FAR // 2 if look.reach is None else look.reach


def _may_look(look: Look, P: int) -> Tensor:
    """True where the slot of a row looks at that of a column, those of the prefix first, [N, P + N]."""
    start_N, _, position_N, seen_N = look.place_4N
    place_N = torch.arange(len(start_N), device=start_N.device)
    reach = far(look)
    prefix_P = torch.arange(P, device=start_N.device)
    is_before_NN = (start_N[:, None] <= place_N) & (place_N <= place_N[:, None])
    is_near_NN = position_N[:, None] - seen_N < reach
    looks_NN = (is_before_NN & is_near_NN) | (place_N == place_N[:, None])
    return torch.cat([position_N[:, None] - prefix_P < reach, looks_NN], 1)


class _Attention(torch.autograd.Function):
    """The kernels as one differentiable step."""

    @staticmethod
    def forward(
        ctx: Any, q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, k_PGK: Tensor, v_PGK: Tensor, look: Look
    ) -> Tensor:
        from lexrec.kernels import _stream_attention_triton

        given: tuple[Tensor, ...] = (q_NHK, k_NGK, v_NGK, k_PGK, v_PGK)
        ctx.types, ctx.look = [x.dtype for x in given], look
        given = tuple(x.to(v_NGK.dtype).contiguous() for x in given)
        y_NHK, log_sum_HN = _stream_attention_triton.attention(given, look)
        ctx.save_for_backward(*given, y_NHK, log_sum_HN)
        return y_NHK

    @staticmethod
    def backward(ctx: Any, grad_NHK: Tensor) -> tuple[Tensor | None, ...]:
        from lexrec.kernels import _stream_attention_triton

        *given, y_NHK, log_sum_HN = ctx.saved_tensors
        made = y_NHK, log_sum_HN, grad_NHK.to(y_NHK.dtype).contiguous()
        found = _stream_attention_triton.gradients(tuple(given), made, ctx.look)
        return *(x.to(dtype) for x, dtype in zip(found, ctx.types, strict=True)), None
