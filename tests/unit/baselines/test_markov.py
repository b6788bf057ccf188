from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import world

from lexrec.baselines.markov import Markov, MarkovConfig
from lexrec.data.batch import collate
from lexrec.data.dataset import TEST, TRAIN


def scores(scorer, history):
    return scorer.score(scorer.encode(collate([history], 1)), 1, scorer.n_items + 1)[0].tolist()


def train_only(histories, n_items):
    return world(histories, n_items, [[TRAIN] * len(h) for h in histories])


def test_transition_shares_by_hand():
    scorer = Markov(MarkovConfig(prior=2.0)).fit(train_only([[1, 2, 1, 3], [1, 2]], 3))
    # After 1: twice 2, once 3. Of six events three are 1, two are 2 and one is 3.
    wanted = [(0 + 2 * 3 / 6) / 5, (2 + 2 * 2 / 6) / 5, (1 + 2 * 1 / 6) / 5]
    assert scores(scorer, [3, 1]) == pytest.approx(wanted)


def test_only_the_newest_item_counts():
    scorer = Markov(MarkovConfig()).fit(train_only([[1, 2, 3], [3, 1, 2]], 3))
    assert scores(scorer, [1, 3]) == scores(scorer, [2, 2, 3])


def test_nothing_follows_from_one_user_to_the_next_nor_into_held_out_events():
    dataset = world([[1, 2], [3, 1, 4]], 4, [[TRAIN, TRAIN], [TRAIN, TRAIN, TEST]])
    scorer = Markov(MarkovConfig(prior=1e-6)).fit(dataset)
    assert scores(scorer, [2]) == pytest.approx([0.5, 0.25, 0.25, 0])  # nothing follows 2: popularity
    assert scores(scorer, [1]) == pytest.approx([0, 1, 0, 0], abs=1e-5)  # 2 alone follows 1, never 4


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=8), min_size=1, max_size=6))
def test_scores_are_the_smoothed_probabilities_of_a_plain_count(histories):
    scorer = Markov(MarkovConfig()).fit(train_only(histories, 5))
    follows = Counter(pair for h in histories for pair in pairwise(h))
    events = Counter(item for h in histories for item in h)
    for newest in range(1, 6):
        total = sum(n for (before, _), n in follows.items() if before == newest)
        wanted = [
            (follows[newest, item] + events[item] / events.total()) / (total + 1) for item in range(1, 6)
        ]
        assert scores(scorer, [newest]) == pytest.approx(wanted, rel=1e-5)
        assert sum(wanted) == pytest.approx(1)
