"""What every counting baseline must do."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from worlds import leave_one_out, world

from lexrec import registry
from lexrec.config import load_recipe
from lexrec.data.batch import collate
from lexrec.data.dataset import TEST, TRAIN
from lexrec.evaluation.evaluate import evaluate

NAMES = registry.names("baselines")
HISTORIES = [[1, 2, 3, 4], [2, 3, 1, 5], [3, 2, 3, 6, 1], [4, 4, 2], [5, 3]]
SPLITS = [[TRAIN] * (len(h) - 1) + [TEST] for h in HISTORIES]
N_ITEMS = 8


def fitted(name, dataset=None):
    component = registry.load("baselines", name)
    return component(registry.config_class(component)()).fit(dataset or world(HISTORIES, N_ITEMS, SPLITS))


def score_all(scorer, histories):
    return scorer.score(scorer.encode(collate(histories, scorer.max_len)), 1, N_ITEMS + 1)


@pytest.mark.parametrize("name", NAMES)
class TestEveryBaseline:
    def test_its_recipe_builds_it(self, name):
        config = load_recipe(name).baseline
        assert config == registry.config_class(registry.load("baselines", name))()

    def test_scores_of_blocks_are_those_of_the_whole(self, name):
        scorer = fitted(name)
        histories = [[1, 2], [], [3], [2, 3, 4, 1]]
        query = scorer.encode(collate(histories, scorer.max_len))
        whole = score_all(scorer, histories)
        assert whole.shape == (4, N_ITEMS)
        assert whole.dtype == torch.float32
        for size in (1, 3, 5):
            spans = [(a, min(a + size, N_ITEMS + 1)) for a in range(1, N_ITEMS + 1, size)]
            assert torch.equal(torch.cat([scorer.score(query, *span) for span in spans], dim=1), whole)

    def test_overwriting_scores_changes_nothing(self, name):
        scorer = fitted(name)
        first = score_all(scorer, [[1, 2], [3]])
        kept = first.clone()
        first.fill_(torch.nan)
        assert torch.equal(score_all(scorer, [[1, 2], [3]]), kept)

    def test_a_row_does_not_depend_on_the_others_nor_on_padding(self, name):
        scorer = fitted(name)
        batch = score_all(scorer, [[1, 2], [3], []])
        for row, history in enumerate([[1, 2], [3], []]):
            assert torch.equal(score_all(scorer, [history])[0], batch[row])
            alone = scorer.encode(collate([history], max(len(history), 1)))
            assert torch.equal(scorer.score(alone, 1, N_ITEMS + 1)[0], batch[row])

    def test_an_empty_history_gets_popularity(self, name):
        score_I = score_all(fitted(name), [[]])[0]
        wanted_I = score_all(fitted("popularity"), [[]])[0]
        assert torch.equal(score_I.argsort(stable=True), wanted_I.argsort(stable=True))

    def test_an_item_without_training_events_gets_popularity(self, name):
        score_I = score_all(fitted(name), [[8]])[0]
        assert score_I.argmax() == score_all(fitted("popularity"), [[]])[0].argmax()

    def test_its_state_survives_safetensors(self, name):
        scorer = fitted(name)
        component = registry.load("baselines", name)
        again = component(scorer.config).load_state(load(save(scorer.state())))
        assert again.n_items == N_ITEMS
        assert torch.equal(score_all(again, [[1, 2], []]), score_all(scorer, [[1, 2], []]))

    def test_only_training_events_count(self, name):
        changed = [[*history[:-1], 7] for history in HISTORIES]
        other = fitted(name, world(changed, N_ITEMS, SPLITS))
        assert torch.equal(score_all(other, [[1, 2]]), score_all(fitted(name), [[1, 2]]))

    def test_a_data_set_without_training_events_is_no_crash(self, name):
        scorer = fitted(name, world([[1, 2]], N_ITEMS, [[TEST, TEST]]))
        assert torch.equal(score_all(scorer, [[1]]), torch.zeros(1, N_ITEMS))

    @given(data=st.data())
    def test_scores_are_finite_whatever_the_data(self, name, data):
        item = st.integers(1, N_ITEMS)
        histories = data.draw(st.lists(st.lists(item, min_size=1, max_size=6), min_size=1, max_size=5))
        dataset = world(histories, N_ITEMS, [[TRAIN] * (len(h) - 1) + [TEST] for h in histories])
        assert score_all(fitted(name, dataset), [[], *histories]).isfinite().all()
        assert len(evaluate(fitted(name, dataset), dataset).rank_E) == len(histories)


@pytest.mark.shared
def test_histories_help_on_real_data(shared):
    dataset = leave_one_out(shared / "data" / "ml100k")
    hit = {name: evaluate(fitted(name, dataset), dataset, light=True).metrics["hr@10"] for name in NAMES}
    assert hit["popularity"] < 0.09
    assert hit["markov"] > 0.14
    assert hit["item_knn"] > 0.14
