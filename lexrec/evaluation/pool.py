"""The small-pool protocol: each target among a few random items that its user has not met.

It is what table 4 of the MLTFR paper reports and all that a black-box language model can be asked. It
flatters, and may order models differently (Krichene & Rendle 2020, doi.org/10.1145/3394486.3403226):
popularity alone tells most of ten candidates apart. Such a figure compares with none but those of the same
pools.

Dimension key: E events, P candidates of a pool, Q = P + 1 with the target first, R events of one batch,
J items of one block, I item indexes 0..n + 1.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lexrec.data.dataset import Dataset
from lexrec.errors import DataError
from lexrec.evaluation.events import Events
from lexrec.evaluation.ranks import BLOCK, TIE_SHARE, NanScoreError, Ties
from lexrec.evaluation.scorer import Scorer


def sampled(events: Events, sample: int | None, seed: int) -> Events:
    """So many of the events, drawn uniformly, in their order; all of them where there are no more."""
    if sample is None or sample >= len(events):
        return events
    pick_E = np.sort(np.random.default_rng(seed).choice(len(events), sample, replace=False))
    return Events(*(column_E[pick_E] for column_E in vars(events).values()))


def draw_pools(
    dataset: Dataset, events: Events, size: int, seed: int, is_candidate_I: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Candidates of each event besides its target, [E, size].

    Drawn uniformly without replacement from the candidates that are neither in the event's whole history nor
    its target. A pool depends on the seed and on where its event lies in the data set, not on other events.

    Raises:
        DataError: a user has met so much that fewer than `size` candidates are left.
    """
    candidate_C = np.flatnonzero(is_candidate_I)
    item_EP = np.empty((len(events), size), dtype=np.int64)
    for event in range(len(events)):
        start, end = int(events.start_E[event]), int(events.end_E[event])
        met = np.append(dataset.item_N[start:end].astype(np.int64), events.target_E[event])
        rng = np.random.default_rng([seed, end])
        # Nearly always enough; then the whole catalogue is never looked at for one event.
        drawn = candidate_C[rng.integers(len(candidate_C), size=2 * size)]
        drawn = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
        drawn = drawn[~np.isin(drawn, met)]
        if len(drawn) < size:
            unmet_C = np.setdiff1d(candidate_C, met)
            _require(dataset, events, event, len(unmet_C), size)
            drawn = rng.permutation(unmet_C)
        item_EP[event] = drawn[:size]
    return item_EP


def _require(dataset: Dataset, events: Events, event: int, n_unmet: int, size: int) -> None:
    if n_unmet < size:
        user = dataset.users.id(int(events.user_E[event]))
        raise DataError(
            f"user {user!r} has {n_unmet} candidates left that are not in the history, "
            f"a pool of {size} needs more; use a pool of at most {n_unmet}"
        )


def pool_ranks(
    scorer: Scorer,
    query: Any,
    target_R: Tensor,
    pool_RP: Tensor,
    *,
    ties: Ties = "expected",
    block: int = BLOCK,
) -> Tensor:
    """Rank of each target in its pool: 1 + greater + share * tied, float64 on the CPU, [R].

    Args:
        scorer: what scores the catalogue.
        query: `scorer.encode` of the batch.
        target_R: item index of each target.
        pool_RP: item indexes it competes with.
        ties: what a candidate with exactly the target's score costs.
        block: items scored at once; scores are taken from the blocks that full ranking compares.

    Raises:
        NanScoreError: a score of a pool is NaN.
    """
    item_RQ = torch.cat([target_R[:, None], pool_RP], dim=1)
    score_RQ = torch.full(item_RQ.shape, -torch.inf)
    for first in range(1, scorer.n_items + 1, block):
        last = min(first + block, scorer.n_items + 1)
        is_here_RQ = (item_RQ >= first) & (item_RQ < last)
        score_RJ = scorer.score(query, first, last).float()
        column_RQ = (item_RQ - first).clamp(0, last - first - 1)
        found_RQ = score_RJ.gather(1, column_RQ.to(score_RJ.device)).cpu()
        score_RQ = torch.where(is_here_RQ, found_RQ, score_RQ)
    is_nan_R = score_RQ.isnan().any(dim=1)
    if is_nan_R.any():
        raise NanScoreError(int(is_nan_R.nonzero()[0, 0]))
    goal_R1, rival_RP = score_RQ[:, :1], score_RQ[:, 1:]
    greater_R, tied_R = (rival_RP > goal_R1).sum(1), (rival_RP == goal_R1).sum(1)
    return 1 + greater_R.double() + TIE_SHARE[ties] * tied_R.double()
