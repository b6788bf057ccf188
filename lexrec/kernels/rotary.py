"""Rotary positions of queries and keys in a language model's training step in 16 bits on a GPU.

    y1 = x1 cos1 - x2 sin1      y2 = x2 cos2 + x1 sin2      1, 2: halves of a head; https://arxiv.org/abs/2104.09864

One kernel for queries and keys of all heads, and the same one backward (`_rotary_triton.py`), in place of a
dozen in float32 and the casts to what attention multiplies. Elsewhere it is plain PyTorch.

Dimension key: R rows, S slots, H heads of queries, G of keys, K head width.
"""

from typing import Any

import torch
from torch import Tensor

from lexrec.kernels._training import trains_in_16_bits


def rotary(q_RHSK: Tensor, k_RGSK: Tensor, cos_RSK: Tensor, sin_RSK: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys turned by their positions; in 16 bits where the kernel serves.

    Args:
        q_RHSK: queries.
        k_RGSK: keys.
        cos_RSK: of each position's angles; one row does for all. They are given no gradient.
        sin_RSK: likewise.
    """
    if trains_in_16_bits(q_RHSK):
        dtype, shape = torch.get_autocast_dtype("cuda"), (len(q_RHSK), *cos_RSK.shape[1:])
        angles = cos_RSK.detach().expand(shape), sin_RSK.detach().expand(shape)
        q_RHSK, k_RGSK = _Rotary.apply(q_RHSK, k_RGSK, *angles, dtype)  # type: ignore[no-untyped-call]
        return q_RHSK, k_RGSK
    return _turned(q_RHSK, cos_RSK, sin_RSK), _turned(k_RGSK, cos_RSK, sin_RSK)


def _turned(x_RHSK: Tensor, cos_RSK: Tensor, sin_RSK: Tensor) -> Tensor:
    first, second = x_RHSK.chunk(2, -1)
    return x_RHSK * cos_RSK[:, None] + torch.cat([-second, first], -1) * sin_RSK[:, None]


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_RHSK: Tensor, k_RGSK: Tensor, cos_RSK: Tensor, sin_RSK: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        from lexrec.kernels import _rotary_triton

        angles = cos_RSK.contiguous(), sin_RSK.contiguous()
        ctx.save_for_backward(*angles)
        ctx.types = q_RHSK.dtype, k_RGSK.dtype
        ctx.set_materialize_grads(True)
        return _rotary_triton.turned((q_RHSK, k_RGSK), angles, (dtype, dtype), back=False)

    @staticmethod
    def backward(ctx: Any, of_q_RHSK: Tensor, of_k_RGSK: Tensor) -> tuple[Tensor | None, ...]:
        from lexrec.kernels import _rotary_triton

        given = of_q_RHSK, of_k_RGSK
        return *_rotary_triton.turned(given, ctx.saved_tensors, ctx.types, back=True), None, None, None
