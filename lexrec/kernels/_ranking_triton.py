"""`count_rivals` for GPUs, which reads each score once, and `best_keys`, which does so twice.

Of `best_keys` one program a row writes only what may be among the k best:

    peak[c] = max over j = c mod 2048 of score[j]       2048 interleaved groups
    t       = the k-th greatest peak                    k groups reach t, so at least k scores do
    kept    = all scores >= t                           the k best are among them

Scores that lie anyhow leave little more than k kept. A row that keeps more than the room it is given (k
below a heap of equal scores) is done again in plain PyTorch.

Dimension key: B rows, J items of one block, M places a row is given, S shares of a row.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import torch
import triton
import triton.language as tl
from torch import Tensor

from lexrec.kernels._jit import kernel
from lexrec.kernels.ranking import NO_KEY, best_keys_by_groups

_GROUPS = 2048
_SHARE = 2**15
"""Scores of a row that one program counts."""


def count_rivals(score_BJ: Tensor, goal_B: Tensor) -> tuple[Tensor, Tensor]:
    """See `lexrec.kernels.ranking.count_rivals`."""
    B, J = score_BJ.shape
    n_shares = max(1, triton.cdiv(J, _SHARE))
    count_2SB = torch.zeros(2, n_shares, B, device=score_BJ.device)
    if B and J:
        _count[(B, n_shares)](
            score_BJ.contiguous(), goal_B.contiguous(), count_2SB, J, _SHARE, _GROUPS, num_warps=4
        )
    greater_B, tied_B = count_2SB.sum(1)
    return greater_B, tied_B


def takes(k: int) -> bool:
    """True if there are enough groups for lists of this length to leave few scores."""
    return k <= _GROUPS // 4


def best_keys(score_BJ: Tensor, first: int, k: int) -> Tensor:
    """See `lexrec.kernels.ranking.best_keys`."""
    B, J = score_BJ.shape
    score_BJ = score_BJ.contiguous()
    n_places = max(64, triton.next_power_of_2(2 * k))
    key_BM = torch.full((B, n_places), NO_KEY, dtype=torch.int64, device=score_BJ.device)
    kept_B = torch.zeros(B, dtype=torch.int32, device=score_BJ.device)
    _keep[(B,)](score_BJ, key_BM, kept_B, J, first, k, n_places, _GROUPS, num_warps=8)
    crowded_R = (kept_B > n_places).nonzero()[:, 0]
    if len(crowded_R):
        key_RM = best_keys_by_groups(score_BJ[crowded_R], first, k)
        best_RK = key_RM.topk(min(k, key_RM.shape[1]), dim=1).values
        key_BM[crowded_R] = NO_KEY
        key_BM[crowded_R, : best_RK.shape[1]] = best_RK
    return key_BM


@kernel
def _count(score_ptr, goal_ptr, count_ptr, J, SHARE: tl.constexpr, G: tl.constexpr):
    row, share, B, S = tl.program_id(0), tl.program_id(1), tl.num_programs(0), tl.num_programs(1)
    score_ptr += row.to(tl.int64) * J
    goal = tl.load(goal_ptr + row)
    greater_G, tied_G = tl.zeros([G], tl.float32), tl.zeros([G], tl.float32)
    for start in range(share * SHARE, tl.minimum((share + 1) * SHARE, J), G):
        column_G = start + tl.arange(0, G)
        score_G = tl.load(score_ptr + column_G, mask=column_G < J, other=float("nan"))
        greater_G += tl.where(score_G > goal, 1.0, 0.0)
        tied_G += tl.where(score_G == goal, 1.0, 0.0)
    tl.store(count_ptr + share * B + row, tl.sum(greater_G, 0))
    tl.store(count_ptr + (S + share) * B + row, tl.sum(tied_G, 0))


@kernel
def _keep(score_ptr, key_ptr, kept_ptr, J, first, k, M: tl.constexpr, G: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    score_ptr += row * J
    column_G = tl.arange(0, G)
    peak_G = tl.full([G], -(2**31), tl.int32)
    for start in range(0, J, G):
        score_G = tl.load(score_ptr + start + column_G, mask=start + column_G < J, other=float("-inf"))
        peak_G = tl.maximum(peak_G, _ordered(score_G))
    least = _kth_greatest(peak_G, k)
    for start in range(0, J, G):
        score_G = tl.load(score_ptr + start + column_G, mask=start + column_G < J, other=float("-inf"))
        order_G = _ordered(score_G)
        # -inf is what was set aside: not shown, however short the list.
        is_kept_G = (order_G >= least) & (score_G != float("-inf"))
        # Few are kept, in no order: they are sorted afterwards, so the lists do not depend on it.
        place_G = tl.atomic_add(kept_ptr + row + column_G * 0, 1, mask=is_kept_G)
        key_G = (order_G.to(tl.int64) << 32) + 4294967295 - (first + start + column_G).to(tl.int64)
        tl.store(key_ptr + row * M + place_G, key_G, mask=is_kept_G & (place_G < M))


@kernel
def _kth_greatest(order_G, k):
    """The greatest integer that at least k values reach, found bit by bit from the top."""
    wide_G = order_G.to(tl.int64) + 2147483648
    found = tl.full([], 0, tl.int64)
    for i in range(32):
        tried = found | (tl.full([], 2147483648, tl.int64) >> i)
        n_reach = tl.sum((wide_G >= tried).to(tl.int32), 0)
        found = tl.where(n_reach >= k, tried, found)
    return found - 2147483648


@kernel
def _ordered(score):
    """Float bits as integers in the order of the floats, -0.0 as 0.0 and NaN greatest."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    bits = tl.where(score == score, bits, 0x7FC00000)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
