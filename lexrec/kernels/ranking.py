"""The k best of rows of scores and the rivals a target has in them: exact, and alike on every device.

A score and its item become one integer that sorts by score, then by lower item, so equal scores fall the
same way everywhere. NaN sorts before everything: whoever looks at a list sees it in the first place.

Dimension key: B rows, J items of one block, G groups of columns, M columns left of a block, N scores kept.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LARGEST_GROUP = 128
_FEW = 2**16
"""Scores up to which looking at each is quicker than at groups first."""
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
    if not score_BJ.is_cuda:
        return _count_on_cpu(score_BJ.detach().numpy(), goal_B.detach().numpy())
    from lexrec.kernels import _ranking_triton

    return _ranking_triton.count_rivals(score_BJ, goal_B)


def _count_on_cpu(score_BJ: NDArray[np.float32], goal_B: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    # NumPy compares into a byte each, PyTorch six times slower, and counts bytes sixteen times as fast.
    greater_BJ = np.greater(score_BJ, goal_B[:, None])
    greater_B = torch.tensor([np.count_nonzero(row_J) for row_J in greater_BJ], dtype=torch.float32)
    tied_BJ = np.equal(score_BJ, goal_B[:, None], out=greater_BJ)
    n_tied_B = [np.count_nonzero(row_J) for row_J in tied_BJ] if tied_BJ.any() else [0] * len(tied_BJ)
    return greater_B, torch.tensor(n_tied_B, dtype=torch.float32)


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
    if B == 0:
        return torch.full((0, 0), NO_KEY, device=score_BJ.device)
    size = _LARGEST_GROUP
    while size > 1 and J // size < 2 * k:
        size //= 2
    peak_BG = score_BJ[:, : J // size * size].view(B, -1, size).amax(2)
    least_B1 = score_BJ.new_full((B, 1), -torch.inf)
    if k <= peak_BG.shape[1]:
        least_B1 = peak_BG.topk(k, dim=1).values[:, -1:]
    least_B1 = least_B1.clamp(min=torch.finfo(score_BJ.dtype).min)
    if score_BJ.is_cuda:
        place_N = (~(score_BJ < least_B1)).flatten().nonzero()[:, 0]
    else:
        score, peak, least = (x.detach().numpy() for x in (score_BJ, peak_BG, least_B1))
        place_N = torch.from_numpy(_reaching(score, peak, least, size))
    row_N, column_N = place_N // J, place_N % J
    kept_B = row_N.bincount(minlength=B)
    key_BM = torch.full((B, int(kept_B.max())), NO_KEY, device=score_BJ.device)
    nth_N = torch.arange(len(row_N), device=row_N.device) - (kept_B.cumsum(0) - kept_B)[row_N]
    key_BM[row_N, nth_N] = make_keys(score_BJ.flatten()[place_N], column_N + first)
    return key_BM


def _reaching(
    score_BJ: NDArray[np.float32], peak_BG: NDArray[np.float32], least_B1: NDArray[np.float32], size: int
) -> NDArray[np.int64]:
    """Flat places of the scores that are not below what each row asks for, in order, on a CPU."""
    if score_BJ.size <= _FEW:
        return np.flatnonzero(~np.less(score_BJ, least_B1))
    # Of many, only groups whose greatest score reaches are looked into, and the short one at the end.
    (B, J), n_full = score_BJ.shape, peak_BG.shape[1]
    is_asked_BG = np.ones((B, -(-J // size)), dtype=np.bool_)
    is_asked_BG[:, :n_full] = ~np.less(peak_BG, least_B1)
    row_P, group_P = np.divmod(np.flatnonzero(is_asked_BG), is_asked_BG.shape[1])
    # The short group is read together with the end of the one before it.
    place_P = row_P * J + np.minimum(group_P * size, J - size)
    score_PS = np.lib.stride_tricks.sliding_window_view(score_BJ.ravel(), size)[place_P]
    is_kept_PS = ~np.less(score_PS, least_B1[row_P])
    is_kept_PS[group_P == n_full, : -J % size] = False
    p_N, s_N = np.divmod(np.flatnonzero(is_kept_PS), size)
    place_N: NDArray[np.int64] = place_P[p_N] + s_N
    return place_N


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
