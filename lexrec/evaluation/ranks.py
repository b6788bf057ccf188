"""Exact ranks and top-k lists over the whole catalogue, a block of items at a time.

Memory is bounded by one block of scores, rows x `block` floats, however large the catalogue is; nothing
of the size of rows x items exists. Items set aside are overwritten inside the block they fall in.

Dimension key: B rows, J items of one block, C chunks of a block, K list length, M columns left of a block,
I item indexes 0..n + 1, D items barred from a block.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lexrec.data.batch import PAD
from lexrec.errors import RunError
from lexrec.evaluation.events import Pairs
from lexrec.evaluation.scorer import Scorer

Ties = Literal["expected", "optimistic", "pessimistic"]
TIE_SHARE = {"expected": 0.5, "optimistic": 0.0, "pessimistic": 1.0}
"""Places a tied item costs the target."""

BLOCK = 16384
"""Items scored at once: 16 MiB of float32 scores for 256 rows."""

_CHUNK = 64


class NanScoreError(RunError):
    """A row has a score that is not a number; `row` is its place in the batch."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} of the batch has NaN scores, so no item of it can be ranked")
        self.row = row


class Aside(NamedTuple):
    """Items that do not compete as the scorer scores them."""

    exclude: Pairs
    """Items that do not compete in single rows, such as those already seen."""
    zero: Pairs
    """Items that compete in single rows with a score of 0, the true item among them: how the code of
    S3-Rec, FMLP-Rec and BSARec treats what was seen."""
    is_allowed_I: Tensor | None = None
    """[n_items + 2], True where an item may compete in any row; None: all do."""

    @staticmethod
    def of(exclude: Pairs | None = None, is_allowed_I: Tensor | None = None) -> "Aside":
        """Nothing scored 0."""
        return Aside(exclude if exclude is not None else Pairs.of([]), Pairs.of([]), is_allowed_I)


class TopK(NamedTuple):
    """Best items of each row, best first; PAD with score -inf where fewer than k may be shown."""

    item_BK: Tensor
    score_BK: Tensor


def target_ranks(
    scorer: Scorer,
    query: Any,
    target_B: Tensor,
    aside: Aside,
    *,
    ties: Ties = "expected",
    block: int = BLOCK,
) -> Tensor:
    """Rank of each target among the items that compete: 1 + greater + share * tied.

    Args:
        scorer: what scores the catalogue; PAD and MASK are never asked for.
        query: `scorer.encode` of the batch.
        target_B: item index of each target. It competes even where `aside.exclude` names it. One that
            `aside.is_allowed_I` bars cannot be recommended: its rank is inf.
        aside: what does not compete, or not with its own score.
        ties: what an item with exactly the target's score costs: half a place, none or a whole one.
        block: items scored at once.

    Returns:
        float64 ranks on the CPU, [B].

    Raises:
        NanScoreError: a score is NaN; comparisons with it would flatter the model.
    """
    catalogue = _Catalogue(scorer, query, aside, block)
    goal_B1 = catalogue.gather(target_B)[:, None]
    rank_B = torch.ones(len(target_B), dtype=torch.float64, device=goal_B1.device)
    own = Pairs(torch.arange(len(target_B), device=target_B.device), target_B)
    for first, last in catalogue.spans:
        score_BJ = catalogue.score(first, last)
        # NaN neither beats nor ties, whatever the target's score is; -inf would tie with -inf.
        catalogue.set_aside(score_BJ, first, last, torch.nan, own)
        # Summing floats is several times faster than summing booleans, and exact up to 16 million.
        compared_BJ = torch.empty_like(score_BJ)
        greater_B = torch.gt(score_BJ, goal_B1, out=compared_BJ).sum(1)
        tied_B = torch.eq(score_BJ, goal_B1, out=compared_BJ).sum(1)
        rank_B += greater_B.double() + TIE_SHARE[ties] * tied_B.double()
    rank_B = rank_B.cpu()
    if aside.is_allowed_I is not None:
        rank_B[~aside.is_allowed_I[target_B.cpu()]] = torch.inf
    return rank_B


def top_k(
    scorer: Scorer,
    query: Any,
    k: int,
    aside: Aside,
    *,
    block: int = BLOCK,
) -> TopK:
    """The k best items of each row, exactly; equal scores in order of the item index.

    Args:
        scorer: what scores the catalogue.
        query: `scorer.encode` of the batch.
        k: length of the lists, at least 1.
        aside: what is not to be shown, or scores 0.
        block: items scored at once.

    Raises:
        NanScoreError: a score is NaN.
    """
    catalogue = _Catalogue(scorer, query, aside, block)
    best_BK: Tensor | None = None
    for first, last in catalogue.spans:
        score_BJ = catalogue.score(first, last)
        catalogue.set_aside(score_BJ, first, last, -torch.inf)
        key_BM = _block_keys(score_BJ, first, k)
        if best_BK is None:
            nothing_B1 = score_BJ.new_full((len(score_BJ), 1), -torch.inf)
            best_BK = _key(nothing_B1, torch.zeros_like(nothing_B1, dtype=torch.int64)).expand(-1, k)
        best_BK = torch.cat([best_BK, key_BM], dim=1).topk(k, dim=1).values
    assert best_BK is not None
    return _unkey(best_BK)


class _Catalogue:
    """The scores of one batch, block by block, over the blocks in which anything may compete."""

    def __init__(self, scorer: Scorer, query: Any, aside: Aside, block: int) -> None:
        end, allowed = scorer.n_items + 1, aside.is_allowed_I
        spans = [(first, min(first + block, end)) for first in range(1, end, block)]
        self.scorer, self.query, self.aside = scorer, query, aside
        self.spans = [s for s in spans if allowed is None or allowed[slice(*s)].any()] or spans[:1]
        self._kept: Tensor | None = None

    def gather(self, target_B: Tensor) -> Tensor:
        """Each target's score, taken from the same block its rivals are compared in, [B].

        A dot product of its own may round differently from the block's matrix product, and the target
        would lose to, or beat, its equals by a rounding error. NaN where no block holds the target.
        """
        goal_B: Tensor | None = None
        for first, last in self.spans:
            row_S = ((target_B >= first) & (target_B < last)).nonzero()[:, 0]
            if len(row_S) == 0:
                continue
            score_BJ = self._checked(first, last)
            column_S = (target_B[row_S] - first).to(score_BJ.device)
            row_S = row_S.to(score_BJ.device)
            if goal_B is None:
                goal_B = score_BJ.new_full((len(target_B),), torch.nan)
            goal_B[row_S] = score_BJ[row_S, column_S]
            if len(self.spans) == 1:
                self._kept = score_BJ
        return torch.full((len(target_B),), torch.nan) if goal_B is None else goal_B

    def score(self, first: int, last: int) -> Tensor:
        """Scores of one block, to be overwritten by the caller, [B, J]."""
        if self._kept is None:
            return self._checked(first, last)
        kept, self._kept = self._kept, None
        return kept

    def set_aside(self, score_BJ: Tensor, first: int, last: int, value: float, *more: Pairs) -> None:
        """Overwrite the scores of a block's items that do not compete, and of `more` pairs."""
        for pair in (self.aside.exclude, *more):
            _overwrite(score_BJ, pair.within(first, last), value)
        if self.aside.is_allowed_I is not None:
            barred_D = (~self.aside.is_allowed_I[first:last]).nonzero()[:, 0]
            score_BJ.index_fill_(1, barred_D.to(score_BJ.device), value)

    def _checked(self, first: int, last: int) -> Tensor:
        score_BJ = self.scorer.score(self.query, first, last).float()
        is_nan_B = score_BJ.amax(1).isnan()
        if is_nan_B.any():
            raise NanScoreError(int(is_nan_B.nonzero()[0, 0]))
        _overwrite(score_BJ, self.aside.zero.within(first, last), 0.0)
        return score_BJ


def _overwrite(score_BJ: Tensor, pairs: Pairs, value: float) -> None:
    score_BJ[pairs.row_S.to(score_BJ.device), pairs.item_S.to(score_BJ.device)] = value


def _block_keys(score_BJ: Tensor, first: int, k: int) -> Tensor:
    """Keys of columns that hold the k best of a block, [B, M].

    The best k lie in the k chunks with the greatest maxima: any other chunk has k better ones before it.
    Looking for them among maxima reads a block once instead of selecting from all of it.
    """
    B, J = score_BJ.shape
    C = J // _CHUNK
    column_J = torch.arange(J, device=score_BJ.device)
    if 2 * k >= C:
        return _key(score_BJ, (column_J + first).expand(B, J))
    peak_BC = score_BJ[:, : C * _CHUNK].view(B, C, _CHUNK).amax(2)
    chunk_BK = _item(_key(peak_BC, column_J[:C].expand(B, C)).topk(k, dim=1).values)
    inside_BM = (chunk_BK[:, :, None] * _CHUNK + column_J[:_CHUNK]).flatten(1)
    column_BM = torch.cat([inside_BM, column_J[C * _CHUNK :].expand(B, -1)], dim=1)
    return _key(score_BJ.gather(1, column_BM), column_BM + first)


def _key(score: Tensor, item: Tensor) -> Tensor:
    """One int64 that sorts by score, then by lower item: ties fall the same way on every device."""
    bits = (score + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0, its equal
    return (_ordered(bits).long() << 32) + (2**32 - 1 - item)


def _unkey(key_BK: Tensor) -> TopK:
    score_BK = _ordered((key_BK >> 32).int()).view(torch.float32)
    return TopK(_item(key_BK).where(score_BK > -torch.inf, PAD), score_BK)


def _item(key: Tensor) -> Tensor:
    return 2**32 - 1 - (key & (2**32 - 1))


def _ordered(bits: Tensor) -> Tensor:
    """Float bits as integers in the order of the floats; its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
