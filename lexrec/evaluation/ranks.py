"""Exact ranks and top-k lists over the whole catalogue, some rows and a block of items at a time.

Memory is bounded by one tile of scores, however large batch and catalogue are; nothing of the size of
rows x items exists. Items set aside are overwritten inside the tile they fall in.

Dimension key: B rows, J items of one block, K list length, I item indexes 0..n + 1, D items barred from a
block, S pairs set aside.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lexrec.data.batch import PAD
from lexrec.errors import RunError
from lexrec.evaluation.events import Pairs
from lexrec.evaluation.scorer import Scorer
from lexrec.kernels.ranking import NO_KEY, best_keys, count_rivals, items_of, scores_of

Ties = Literal["expected", "optimistic", "pessimistic"]
TIE_SHARE = {"expected": 0.5, "optimistic": 0.0, "pessimistic": 1.0}
"""Places a tied item costs the target."""

BLOCK = 16384
"""Items of a block where the catalogue is too large for one, or the rows cannot be parted."""


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
    block: int | None = None,
) -> Tensor:
    """Rank of each target among the items that compete: 1 + greater + share * tied.

    Args:
        scorer: what scores the catalogue; PAD and MASK are never asked for.
        query: `scorer.encode` of the batch.
        target_B: item index of each target. It competes even where `aside.exclude` names it. One that
            `aside.is_allowed_I` bars cannot be recommended: its rank is inf.
        aside: what does not compete, or not with its own score.
        ties: what an item with exactly the target's score costs: half a place, none or a whole one.
        block: items scored at once; None: as many as suit the device.

    Returns:
        float64 ranks on the CPU, [B].

    Raises:
        NanScoreError: a score is NaN; comparisons with it would flatter the model.
    """
    ranks = []
    for part in _parts(scorer, query, aside, block):
        rivals = _Rivals(part, target_B)
        for first, last in part.spans:
            score_BJ = part.score(first, last)
            part.require_numbers(score_BJ.amax(1))
            rivals.find_goals(score_BJ, first)
            rivals.count(score_BJ, first, last)
        ranks.append(rivals.rank_B(ties))
    return _reachable(torch.cat(ranks), target_B, aside)


def ranks_and_lists(
    scorer: Scorer,
    query: Any,
    target_B: Tensor,
    k: int,
    aside: Aside,
    *,
    ties: Ties = "expected",
    block: int | None = None,
) -> tuple[Tensor, TopK]:
    """`target_ranks` and `top_k` of the same rows, from scores that are made once.

    Args:
        k: length of the lists, at least 1.
        scorer, query, target_B, aside, ties, block: as for `target_ranks`.

    Raises:
        NanScoreError: a score of a target or of an item that may be shown is NaN.
    """
    ranks, lists = [], []
    for part in _parts(scorer, query, aside, block):
        rivals, best = _Rivals(part, target_B), _Best(k)
        for first, last in part.spans:
            score_BJ = part.score(first, last)
            rivals.find_goals(score_BJ, first)
            part.set_aside(score_BJ, first, last, -torch.inf)
            # Before counting, which spoils the targets' scores; a NaN is first in its list, and seen there.
            best.add(score_BJ, first)
            rivals.count(score_BJ, first, last)
        ranks.append(rivals.rank_B(ties))
        lists.append(best.key_BK)
    return _reachable(torch.cat(ranks), target_B, aside), _unkey(lists)


def top_k(scorer: Scorer, query: Any, k: int, aside: Aside, *, block: int | None = None) -> TopK:
    """The k best items of each row, exactly; equal scores in order of the item index.

    Args:
        scorer: what scores the catalogue.
        query: `scorer.encode` of the batch.
        k: length of the lists, at least 1.
        aside: what is not to be shown, or scores 0.
        block: items scored at once; None: as many as suit the device.

    Raises:
        NanScoreError: a score of an item that may be shown is NaN.
    """
    lists = []
    for part in _parts(scorer, query, aside, block):
        best = _Best(k)
        for first, last in part.spans:
            score_BJ = part.score(first, last)
            part.set_aside(score_BJ, first, last, -torch.inf)
            best.add(score_BJ, first)
        lists.append(best.key_BK)
    return _unkey(lists)


class _Tile(NamedTuple):
    """How much is scored at once on one kind of device."""

    cells: int
    """Scores of a tile: many enough that beginning costs little, few enough for memory."""
    whole: int
    """The largest catalogue that is one block: its scores are needed once for ranks, otherwise twice."""


_TILES = {"cpu": _Tile(2**22, 2**17), "cuda": _Tile(2**28, 2**22)}
_FEWEST_ROWS = 32


def _parts(scorer: Scorer, query: Any, aside: Aside, block: int | None) -> "Iterator[_Part]":
    """The rows of a batch, a tile's worth at a time; all at once where the query is no tensor of rows."""
    n_items = scorer.n_items
    if not isinstance(query, Tensor):
        yield _Part(scorer, query, aside, slice(0, None), block or BLOCK)
        return
    tile = _TILES.get(query.device.type, _TILES["cpu"])
    block = min(block or (n_items if n_items <= tile.whole else BLOCK), n_items)
    n_rows = max(_FEWEST_ROWS, tile.cells // block)
    if query.device.type == "cpu":
        n_rows = (
            1 << n_rows.bit_length() - 1
        )  # Products are compiled for each shape, so there had better be few.
    n_parts = max(1, -(-len(query) // n_rows))
    bounds = [len(query) * i // n_parts for i in range(n_parts + 1)]
    exclude, zero = aside.exclude.split(bounds), aside.zero.split(bounds)
    for i, (first, last) in enumerate(pairwise(bounds)):
        here = Aside(exclude[i], zero[i], aside.is_allowed_I)
        yield _Part(scorer, query[first:last], here, slice(first, last), block)


class _Part:
    """Some rows of a batch, scored block by block over the blocks in which anything may compete."""

    def __init__(self, scorer: Scorer, query: Any, aside: Aside, rows: slice, block: int) -> None:
        self.scorer, self.query, self.aside, self.rows = scorer, query, aside, rows
        end, allowed = scorer.n_items + 1, aside.is_allowed_I
        spans = [(first, min(first + block, end)) for first in range(1, end, block)]
        self.spans = [s for s in spans if allowed is None or allowed[slice(*s)].any()] or spans[:1]

    def score(self, first: int, last: int) -> Tensor:
        """Scores of one block, to be overwritten by the caller, float32 [B, J]."""
        score_BJ = self.scorer.score(self.query, first, last).float()
        self._overwrite(score_BJ, self.aside.zero, first, last, 0.0)
        return score_BJ

    def require_numbers(self, value_B: Tensor) -> None:
        """Refuse a row whose value is NaN."""
        is_nan_B = value_B.isnan()
        if is_nan_B.any():
            raise NanScoreError(self.rows.start + int(is_nan_B.nonzero()[0, 0]))

    def set_aside(self, score_BJ: Tensor, first: int, last: int, value: float) -> None:
        """Overwrite the scores of a block's items that do not compete."""
        self._overwrite(score_BJ, self.aside.exclude, first, last, value)
        if self.aside.is_allowed_I is not None:
            barred_D = (~self.aside.is_allowed_I[first:last]).nonzero()[:, 0]
            score_BJ.index_fill_(1, barred_D.to(score_BJ.device), value)

    def _overwrite(self, score_BJ: Tensor, pairs: Pairs, first: int, last: int, value: float) -> None:
        if len(pairs.row_S) == 0:
            return
        # A block that holds the whole catalogue has them all: looking would make a GPU's host wait.
        is_whole = last - first == self.scorer.n_items
        row_S, item_S = Pairs(pairs.row_S, pairs.item_S - 1) if is_whole else pairs.within(first, last)
        score_BJ[row_S.to(score_BJ.device), item_S.to(score_BJ.device)] = value


class _Rivals:
    """The items that beat or tie each target of a part, counted block by block."""

    def __init__(self, part: _Part, target_B: Tensor) -> None:
        self.part, self.target_B = part, target_B[part.rows]
        self.goal_B = torch.full(self.target_B.shape, torch.nan)
        self.greater_B = self.tied_B = torch.zeros((), dtype=torch.float64)
        self._is_looked_up = len(part.spans) > 1
        for first, last in part.spans if self._is_looked_up else ():
            if ((self.target_B >= first) & (self.target_B < last)).any():
                self._look(part.score(first, last), first)

    def find_goals(self, score_BJ: Tensor, first: int) -> None:
        """Take the targets' scores from the very block in which their rivals are compared with them.

        A dot product of its own may round differently from the block's matrix product, and the target
        would lose to, or beat, its equals by a rounding error.
        """
        if not self._is_looked_up:
            self._look(score_BJ, first)

    def count(self, score_BJ: Tensor, first: int, last: int) -> None:
        """Count the rivals of one block. Spoils its scores."""
        # NaN neither beats nor ties, whatever the target's score is; -inf would tie with -inf.
        self.part.set_aside(score_BJ, first, last, torch.nan)
        own_B1, is_here_B1 = self._own(score_BJ, first)
        score_BJ.scatter_(1, own_B1, score_BJ.gather(1, own_B1).masked_fill(is_here_B1, torch.nan))
        greater_B, tied_B = count_rivals(score_BJ, self.goal_B)
        self.greater_B, self.tied_B = self.greater_B + greater_B.double(), self.tied_B + tied_B.double()

    def rank_B(self, ties: Ties) -> Tensor:
        """1 + greater + share * tied, float64 on the CPU, once every block is counted."""
        return (1 + self.greater_B + TIE_SHARE[ties] * self.tied_B).cpu()

    def _look(self, score_BJ: Tensor, first: int) -> None:
        """The goals of the targets that the block holds; those that no block holds stay NaN."""
        own_B1, is_here_B1 = self._own(score_BJ, first)
        own_score_B1 = score_BJ.gather(1, own_B1)
        self.part.require_numbers(own_score_B1.where(is_here_B1, 0.0)[:, 0])
        self.goal_B = own_score_B1.where(is_here_B1, self.goal_B.to(score_BJ.device)[:, None])[:, 0]

    def _own(self, score_BJ: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """The column of each target, and True where it lies in the block."""
        column_B1 = (self.target_B.to(score_BJ.device) - first)[:, None]
        own_B1 = column_B1.clamp(0, score_BJ.shape[1] - 1)
        return own_B1, own_B1 == column_B1


class _Best:
    """The k best of each row of a part, over the blocks so far."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.key_BK = torch.empty((0, 0), dtype=torch.int64)

    def add(self, score_BJ: Tensor, first: int) -> None:
        """Let the items of one block compete."""
        key_BM = best_keys(score_BJ, first, self.k)
        if len(self.key_BK):
            key_BM = torch.cat([self.key_BK, key_BM], dim=1)
        n_absent = self.k - key_BM.shape[1]
        if n_absent > 0:
            key_BM = torch.cat([key_BM, key_BM.new_full((len(key_BM), n_absent), NO_KEY)], dim=1)
        self.key_BK = key_BM.topk(self.k, dim=1).values


def _reachable(rank_B: Tensor, target_B: Tensor, aside: Aside) -> Tensor:
    if aside.is_allowed_I is not None:
        rank_B[~aside.is_allowed_I[target_B.cpu()]] = torch.inf
    return rank_B


def _unkey(lists: list[Tensor]) -> TopK:
    key_BK = torch.cat(lists)
    score_BK = scores_of(key_BK)
    # NaN sorts first, so a list that has one begins with it.
    is_nan_B = score_BK[:, 0].isnan()
    if is_nan_B.any():
        raise NanScoreError(int(is_nan_B.nonzero()[0, 0]))
    return TopK(items_of(key_BK).where(score_BK > -torch.inf, PAD), score_BK)
