"""Kernel of `shift.py`: a program a row, which counts the items of the rows before it.

Dimension key: B rows, L positions of the inputs, W = L + 1 of the window, N slots, r, l, n: of one program.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import torch
import triton
import triton.language as tl
from torch import Tensor

from lexrec.kernels._jit import kernel


def shift(item_BW: Tensor, length_B: Tensor, capacity: int) -> tuple[Tensor, ...]:
    """The fields of `shift.Shifted`."""
    B, W = item_BW.shape
    L = W - 1
    input_BL, n_inputs_B = item_BW.new_empty(B, L), torch.empty_like(length_B)
    slot_N, target_N = item_BW.new_empty(capacity), item_BW.new_empty(capacity)
    weight_N = torch.empty(capacity, device=item_BW.device)
    n_unused = triton.cdiv(capacity, B)
    _shift[(B,)](
        item_BW.contiguous(), length_B, input_BL, n_inputs_B, slot_N, target_N, weight_N,
        B, L, capacity, n_unused,
        triton.next_power_of_2(B), triton.next_power_of_2(L), triton.next_power_of_2(n_unused),
    )  # fmt: skip
    return input_BL, n_inputs_B, slot_N, target_N, weight_N


@kernel
def _shift(
    item, length, read, n_inputs, slot, target, weight, B, L, capacity, n_unused,
    TILE_B: tl.constexpr, TILE_L: tl.constexpr, TILE_N: tl.constexpr,
):  # fmt: skip
    b, r, l = tl.program_id(0), tl.arange(0, TILE_B), tl.arange(0, TILE_L)  # noqa: E741
    n_r = tl.maximum(tl.load(length + r, mask=r < B, other=0) - 1, 0)
    n_before, n_all = tl.sum(tl.where(r < b, n_r, 0), 0), tl.sum(n_r, 0)
    n_own = tl.maximum(tl.load(length + b) - 1, 0)
    is_input_l = (l >= L - n_own) & (l < L)
    item_l = tl.load(item + b * (L + 1) + l, mask=is_input_l, other=0)
    next_l = tl.load(item + b * (L + 1) + 1 + l, mask=is_input_l, other=0)
    tl.store(read + b * L + l, item_l, mask=l < L)
    tl.store(n_inputs + b, n_own)
    at_l = n_before + l - (L - n_own)
    fits_l = is_input_l & (at_l < capacity)
    tl.store(slot + at_l, (b * L + l).to(tl.int64), mask=fits_l)
    tl.store(target + at_l, next_l, mask=fits_l)
    tl.store(weight + at_l, 1.0, mask=fits_l)
    # Each program fills its share of the slots that are left over.
    n = b * n_unused + tl.arange(0, TILE_N)
    is_unused_n = (n < (b + 1) * n_unused) & (n < capacity) & (n >= n_all)
    tl.store(slot + n, (tl.zeros([TILE_N], tl.int64) + B) * L, mask=is_unused_n)
    tl.store(target + n, tl.zeros([TILE_N], tl.int64) + 1, mask=is_unused_n)
    tl.store(weight + n, 0.0, mask=is_unused_n)
