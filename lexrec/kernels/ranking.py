"""The k best of rows of scores and the rivals a target has in them: exact, and alike on every device.

A score and its item become one integer that sorts by score, then by lower item, so equal scores fall the
same way everywhere. NaN sorts before everything: whoever looks at a list sees it in the first place.

Dimension key: B rows, J items of one block, G groups of columns, K list length, M columns left of a block.
"""

import math

import torch
from torch import Tensor

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

    Args:
        score_BJ: float32 scores of items first..first + J - 1.
        first: the item of column 0.
        k: how many must be among them; all where J is smaller.
    """
    if score_BJ.is_cuda:
        from lexrec.kernels import _ranking_triton

        if _ranking_triton.takes(k):
            return _ranking_triton.best_keys(score_BJ, first, k)
    return best_keys_by_groups(score_BJ, first, k)


def best_keys_by_groups(score_BJ: Tensor, first: int, k: int) -> Tensor:
    """`best_keys` in plain PyTorch.

    The best k lie in the k groups with the greatest maxima: any other group has k better ones before it,
    and among equals lower ones, since groups are runs of neighbours. Looking for them among maxima reads a
    block once instead of selecting from all of it. Both selections are smallest where there are as many
    groups as columns in the k best of them.
    """
    B, J = score_BJ.shape
    size = 1 << max(0, round(math.log2(max(1.0, J / k)) / 2))
    G = J // size
    column_J = torch.arange(J, device=score_BJ.device)
    if size < 4:
        return make_keys(score_BJ, column_J + first)
    peak_BG = score_BJ[:, : G * size].view(B, G, size).amax(2)
    group_BK = items_of(make_keys(peak_BG, column_J[:G]).topk(k, dim=1, sorted=False).values)
    inside_BM = (group_BK[:, :, None] * size + column_J[:size]).flatten(1)
    column_BM = torch.cat([inside_BM, column_J[G * size :].expand(B, -1)], dim=1)
    return make_keys(score_BJ.gather(1, column_BM), column_BM + first)


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
