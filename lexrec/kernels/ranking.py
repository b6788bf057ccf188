"""The k best of rows of scores and the rivals a target has in them: exact, and alike on every device.

A score and its item become one integer that sorts by score, then by lower item, so equal scores fall the
same way everywhere. NaN sorts before everything: whoever looks at a list sees it in the first place.

Dimension key: B rows, J items of one block, G groups of columns, M columns left of a block, N scores kept.
"""

import numpy as np
import torch
from torch import Tensor

_LARGEST_GROUP = 128
_LOW_BITS = 2**32 - 1
_NAN_BITS = 0x7FC00000

NO_KEY = -2139095041 << 32
"""Score -inf and no item: sorts after the key of every item."""


def count_rivals(score_BJ: Tensor, goal_B: Tensor) -> tuple[Tensor, Tensor]:
    """How many scores of each row are greater than its goal, and how many equal it: float32, [B] each.

    Args:
        score_BJ: float32 scores, at most 16 million a row (beyond, float32 no longer counts by one). NaN is
            neither greater nor equal.
        goal_B: what each row is compared with.
    """
    # Summing floats is several times faster than summing booleans.
    compared_BJ = torch.empty_like(score_BJ)
    greater_B = torch.gt(score_BJ, goal_B[:, None], out=compared_BJ).sum(1)
    tied_B = torch.eq(score_BJ, goal_B[:, None], out=compared_BJ).sum(1)
    return greater_B, tied_B


def best_keys(score_BJ: Tensor, first: int, k: int) -> Tensor:
    """Keys of some columns of a block, the k best of each row among them, int64 [B, M] in no order.

    A score of -inf has none: what was set aside is not shown, however short the list.

    Args:
        score_BJ: float32 scores of items first..first + J - 1.
        first: the item of column 0.
        k: how many must be among them; all where J is smaller.
    """
    if score_BJ.is_cuda and len(score_BJ):
        from lexrec.kernels import _ranking_triton

        if _ranking_triton.takes(k):
            return _ranking_triton.best_keys(score_BJ, first, k)
    return best_keys_by_groups(score_BJ, first, k)


def best_keys_by_groups(score_BJ: Tensor, first: int, k: int) -> Tensor:
    """`best_keys` in plain PyTorch.

    The k-th greatest maximum of groups of neighbours is reached by k groups, so by at least k scores: the
    k best are among those that reach it, and little more than k do where scores lie anyhow.
    """
    B, J = score_BJ.shape
    size = _LARGEST_GROUP
    while size > 1 and J // size < 2 * k:
        size //= 2
    G = J // size
    peak_BG = score_BJ[:, : G * size].view(B, G, size).amax(2)
    least_B1 = score_BJ.new_full((B, 1), -torch.inf)
    if k <= G:
        least_B1 = peak_BG.topk(k, dim=1).values[:, -1:]
    place_N = _reaching(score_BJ, least_B1)
    row_N, column_N = place_N // J, place_N % J
    kept_B = row_N.bincount(minlength=B)
    key_BM = torch.full((B, int(kept_B.max()) if B else 0), NO_KEY, device=score_BJ.device)
    nth_N = torch.arange(len(row_N), device=row_N.device) - (kept_B.cumsum(0) - kept_B)[row_N]
    key_BM[row_N, nth_N] = make_keys(score_BJ.flatten()[place_N], column_N + first)
    return key_BM


def _reaching(score_BJ: Tensor, least_B1: Tensor) -> Tensor:
    """Flat places of the scores that are not below what each row asks for, -inf left out, in order."""
    least_B1 = least_B1.clamp(min=torch.finfo(score_BJ.dtype).min)
    if score_BJ.is_cuda:
        return (~(score_BJ < least_B1)).flatten().nonzero()[:, 0]
    # PyTorch takes six times as long to compare into booleans on a CPU.
    return torch.from_numpy(np.flatnonzero(~np.less(score_BJ.detach().numpy(), least_B1.detach().numpy())))


def make_keys(score: Tensor, item: Tensor) -> Tensor:
    """One int64 for each score and its item, greater for the better; the shapes are broadcast."""
    bits = (score + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0, its equal
    # Processors make NaN of either sign; one of them would sort last.
    bits = bits.where(score == score, _NAN_BITS)
    return (_ordered(bits).long() << 32) + (_LOW_BITS - item)


def scores_of(key: Tensor) -> Tensor:
    """The float32 scores of keys."""
    return _ordered((key >> 32).int()).view(torch.float32)


def items_of(key: Tensor) -> Tensor:
    """The int64 items of keys."""
    return _LOW_BITS - (key & _LOW_BITS)


def _ordered(bits: Tensor) -> Tensor:
    """Float bits as integers in the order of the floats; its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
