"""A question in words after a history, answered with items of the catalogue.

Dimension key: I item indexes 0..n + 1.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lexrec.data.batch import collate
from lexrec.errors import ConfigError
from lexrec.evaluation.events import Pairs
from lexrec.evaluation.queries import require_asked
from lexrec.evaluation.ranks import Aside, top_k
from lexrec.lm.questions import Text
from lexrec.serving.ranker import Ranked, Ranker
from lexrec.serving.scorer_ranker import ScorerRanker


@torch.inference_mode()
def rank_answers(
    ranker: Ranker,
    history: Sequence[int],
    text: str,
    k: int,
    exclude: Sequence[int],
    allow: NDArray[np.int64] | None,
) -> Ranked:
    """The best items for one question, in one pass over history and text.

    Args:
        ranker: of a run that was trained on questions.
        history: item indexes, oldest first.
        text: the question.
        k: length of the list.
        exclude: items that are not to be shown.
        allow: the only items that are; None: all.

    Raises:
        ConfigError: the run was not trained on questions, or the text has no word.
    """
    if not isinstance(ranker, ScorerRanker):
        raise ConfigError(f"{type(ranker).__name__} ranks only; ask needs the run itself")
    scorer, model = require_asked(ranker.scorer)
    is_allowed_I = None
    if allow is not None:
        is_allowed_I = torch.zeros(scorer.n_items + 2, dtype=torch.bool)
        is_allowed_I[torch.from_numpy(allow)] = True
    # Items that came after training have no place in what was read.
    known = [item for item in history if item <= model.items.n_items]
    batch = collate([known], max(1, min(len(known), scorer.max_len))).to(scorer.device)
    query = scorer.query(model.answer(batch, Text.of([text], model.lm.tokenizer).to(scorer.device)))
    best = top_k(scorer, query, min(k, scorer.n_items), Aside.of(Pairs.of([exclude]), is_allowed_I))
    return Ranked(best.item_BK.cpu().numpy(), best.score_BK.cpu().numpy())
