import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import world

from lexrec.baselines import item_knn
from lexrec.baselines.item_knn import ItemKnn, ItemKnnConfig
from lexrec.data.batch import collate
from lexrec.data.dataset import TRAIN


def fit(histories, n_items, **settings):
    dataset = world(histories, n_items, [[TRAIN] * len(h) for h in histories])
    return ItemKnn(ItemKnnConfig(**settings)).fit(dataset)


def scores(scorer, history):
    batch = collate([history], scorer.max_len)
    return scorer.score(scorer.encode(batch), 1, scorer.n_items + 1)[0].tolist()


def close(wanted):
    return pytest.approx(wanted, abs=2e-6)  # a millionth is popularity


BASKETS = [[1, 2, 2], [1, 2, 3], [1, 4]]


def test_cosine_of_distinct_users_by_hand():
    scorer = fit(BASKETS, 5, shrinkage=0)
    assert scores(scorer, [1]) == close([0, 2 / math.sqrt(6), 1 / math.sqrt(3), 1 / math.sqrt(3), 0])


def test_shrinkage_is_added_to_the_denominator():
    assert scores(fit(BASKETS, 5, shrinkage=4), [3])[0] == close(1 / (math.sqrt(3) + 4))


def test_older_items_count_less_and_only_the_newest_count():
    scorer = fit(BASKETS, 5, shrinkage=0, newest=2, decay=0.5)
    one, three = scores(scorer, [1]), scores(scorer, [3])
    wanted = [0.5 * a + b for a, b in zip(one, three, strict=True)]
    assert scores(scorer, [1, 3]) == scores(scorer, [4, 1, 3]) == close(wanted)


def test_only_the_nearest_neighbours_are_kept():
    scorer = fit(BASKETS, 5, shrinkage=0, neighbours=1)
    assert scores(scorer, [1]) == close([0, 2 / math.sqrt(6), 0, 0, 0])
    assert len(scorer.state()["item_S"]) == 4


def test_popularity_orders_what_no_neighbour_reaches():
    scorer = fit([[1, 2], [3, 4], [3, 5]], 6)
    one = scores(scorer, [1])
    assert one[1] > one[2] > one[3] == one[4] > one[5] == 0


@given(
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=6), min_size=1, max_size=6),
    st.sampled_from([1, 7, 2**21]),
    st.integers(1, 6),
)
def test_any_chunk_size_gives_the_similarities_of_a_plain_count(histories, pairs_at_once, neighbours):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_knn, "_PAIRS_AT_ONCE", pairs_at_once)
        scorer = fit(histories, 6, shrinkage=1.5, neighbours=neighbours)
    users = {item: {u for u, h in enumerate(histories) if item in h} for item in range(1, 7)}
    for item in range(1, 7):
        similar = {
            other: len(users[item] & users[other]) / (math.sqrt(len(users[item]) * len(users[other])) + 1.5)
            for other in range(1, 7)
            if other != item and users[item] & users[other]
        }
        kept = sorted(similar, key=lambda other: (-similar[other], other))[:neighbours]
        wanted = [similar[other] if other in kept else 0 for other in range(1, 7)]
        assert scores(scorer, [item]) == close(wanted)
