"""A question in words after a history, answered with items of the catalogue, and with reasons in words.

Dimension key: I item indexes 0..n + 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lexrec.data.batch import collate
from lexrec.errors import ConfigError
from lexrec.evaluation.events import Pairs
from lexrec.evaluation.queries import require_asked
from lexrec.evaluation.ranks import Aside, top_k
from lexrec.lm.questions import Text
from lexrec.lm.reasons import OPENING
from lexrec.models.idiomoe import Idiomoe
from lexrec.serving.ranker import Ranked, Ranker
from lexrec.serving.scorer_ranker import ScorerRanker

_LONGEST = 48
"""Tokens of a reason."""


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


class Reason(NamedTuple):
    """What the model says of one item."""

    text: str
    is_grounded: bool
    """True where what it says the item is, the item table says too."""


@torch.inference_mode()
def reasons(ranker: Ranker, history: Sequence[int], items: Sequence[int]) -> list[Reason]:
    """Why each item, in the words of the model itself: greedy, from its own state after history and item.

    Args:
        ranker: of a run that was trained on questions and on reasons.
        history: item indexes, oldest first.
        items: item indexes that the run was trained on.

    Raises:
        ConfigError: it was not.
    """
    if not isinstance(ranker, ScorerRanker):
        raise ConfigError(f"{type(ranker).__name__} ranks only; ask needs the run itself")
    scorer, model = require_asked(ranker.scorer)
    if model.reasons is None:
        raise ConfigError("the run was not trained on reasons: its items have no titles")
    if not items:
        return []
    known = [item for item in history if item <= model.items.n_items]
    item_K = torch.tensor(items, device=scorer.device)
    batch = collate([known] * len(items), max(1, min(len(known), scorer.max_len))).to(scorer.device)
    state = model.read_text(model.step(model.begin(batch), item_K), *model.reasons.opening(len(items)))
    end = model.lm.tokenizer.eos_token_id
    said: list[list[int]] = [[] for _ in items]
    has_ended = [False] * len(items)
    for _ in range(_LONGEST):
        token_K = model.lm.text_logits(state.hidden_BD).argmax(1)
        for i, token in enumerate(token_K.tolist()):
            has_ended[i] |= token == end
            if not has_ended[i]:
                said[i].append(token)
        if all(has_ended):
            break
        state = model.read_text(state, token_K[:, None], torch.ones_like(token_K[:, None], dtype=torch.bool))
    return [
        _reason(model, item, model.lm.tokenizer.decode(tokens))
        for item, tokens in zip(items, said, strict=True)
    ]


def _reason(model: Idiomoe, item: int, said: str) -> Reason:
    assert model.questions is not None
    label = model.questions.labels[int(model.questions.value_IC[item, 0])]
    words = " ".join(said.split())
    return Reason(f"{OPENING} {words}", label != "" and words.startswith(label))
