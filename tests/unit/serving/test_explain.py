import pytest
import torch

from lexrec.errors import ConfigError, DataError
from lexrec.serving.explain import explain
from lexrec.serving.recommender import Recommender
from lexrec.serving.scorer_ranker import ScorerRanker
from lexrec.tokens.stored import write_folder
from lexrec.tokens.table import TokenTable
from lexrec.training.train import train
from tests.unit.serving.scorers import Summing


def summing(run, max_len: int = 50) -> Recommender:
    return Recommender(ScorerRanker(Summing(7, max_len)), run)


def test_influence_is_what_an_item_adds_to_a_score(markov):
    recommender = summing(markov)
    found = explain(recommender, [30, 99, 10], k=3)
    weight_II = recommender.ranker.scorer.weight_II
    items = [recommender.items.index(id_) for id_ in found.item_ids]
    assert found.history == [30, 10]
    assert found.influence == [weight_II[3, items].tolist(), weight_II[1, items].tolist()]
    recommended = recommender.recommend([[30, 10]], k=3)
    assert (found.item_ids, found.scores) == (recommended.item_ids[0], recommended.scores[0])
    assert found.unknown == [99]
    assert (found.experts, found.by_popularity) == ([], False)


def test_of_a_long_history_the_items_that_are_read_are_explained(markov):
    recommender = summing(markov, max_len=2)
    found = explain(recommender, [70, 60, 10, 20], k=1)
    weight_II = recommender.ranker.scorer.weight_II
    item = recommender.items.index(found.item_ids[0])
    assert found.history == [10, 20]
    # Without either of them 60 is read again.
    assert found.influence == [[float(weight_II[h, item] - weight_II[6, item])] for h in (1, 2)]


def test_an_item_taken_twice_is_left_out_once_at_a_time(markov):
    recommender = summing(markov)
    found = explain(recommender, [10, 20, 10], k=2)
    assert found.history == [10, 20, 10]
    assert found.influence[0] == found.influence[2]


def test_without_a_known_item_there_is_nothing_to_explain(markov):
    found = explain(summing(markov), [99], k=2)
    assert found.by_popularity
    assert (found.item_ids, found.influence, found.experts) == ([20, 10], [], [])
    assert found.json()["fallback"] == "popularity"


def test_a_table_of_lists_is_json(markov):
    found = explain(summing(markov), [30, 10], k=2)
    tree = found.json()
    assert set(tree) == {"items", "influence", "experts", "unknown"}
    assert [row["item_id"] for row in tree["items"]] == found.item_ids
    assert tree["influence"] == [
        {"item_id": 30, "on": found.influence[0]},
        {"item_id": 10, "on": found.influence[1]},
    ]


@pytest.fixture(scope="module")
def with_tokens(shop, tmp_path_factory) -> Recommender:
    folder = tmp_path_factory.mktemp("mltfr")
    names = []
    for seed, size in enumerate((30, 20)):
        weight_VW = torch.randn(size, 6, generator=torch.Generator().manual_seed(seed)).bfloat16()
        tokens = tuple(f"\u2581t{seed}.{i}" for i in range(size))
        table = TokenTable(f"table{seed}", weight_VW, tokens, "made", "", str(seed) * 64, "none")
        names.append(f"file:{write_folder(table, folder)}")
    small = ["model.dim=8", "model.n_heads=1", "item_encoder.n_heads=2", "item_encoder.k=5"]
    run = train(
        "sasrec_mltfr",
        data=shop,
        out=folder / "run",
        overrides=[*small, f"item_encoder.tables=[{','.join(names)}]", "train.max_epochs=1"],
        track=(),
    )
    return Recommender.load(run.path)


def test_experts_are_told_by_table_gate_and_tokens(with_tokens):
    found = explain(with_tokens, [10, 20, 30], k=2)
    views = with_tokens.ranker.inspect([1, 2, 3])
    assert [expert.table for expert in found.experts] == ["table0", "table1"]
    assert [expert.gate for expert in found.experts] == pytest.approx([float(v.gate_B[0]) for v in views])
    assert sum(expert.gate for expert in found.experts) == pytest.approx(1)
    for seed, (expert, view) in enumerate(zip(found.experts, views, strict=True)):
        weights = [token.weight for token in expert.tokens]
        assert weights == sorted(weights, reverse=True)
        assert sum(weights) == pytest.approx(1)
        assert {token.text for token in expert.tokens} == {f" t{seed}.{i}" for i in view.token_BK[0].tolist()}
    assert len(found.influence) == 3


def test_tokens_follow_the_history(with_tokens):
    chosen = [
        {token.text for expert in explain(with_tokens, history).experts for token in expert.tokens}
        for history in ([10], [70])
    ]
    assert chosen[0] != chosen[1]


def test_what_cannot_be_explained_is_refused(markov):
    with pytest.raises(DataError, match="k is at least 1, got 0"):
        explain(summing(markov), [10], k=0)

    class Answers:
        n_items = 7

    with pytest.raises(ConfigError, match="Answers ranks only; explain needs the run itself"):
        explain(Recommender(Answers(), markov), [10])
