import shutil
import subprocess
import sys

import pytest

import lexrec
from lexrec.errors import ConfigError, DataError, RunError
from lexrec.serving.recommender import Recommender
from lexrec.serving.scorer_ranker import ScorerRanker
from tests.unit.serving.scorers import Summing

POPULAR = [20, 10, 30]
"""By training events 4, 3 and 2; everything else has none."""


@pytest.fixture
def recommender(markov) -> Recommender:
    return Recommender.load(markov.path)


@pytest.fixture
def summing(markov) -> Recommender:
    """Of the same shop, but scored by the whole history."""
    return Recommender(ScorerRanker(Summing(7, max_len=2)), markov)


def test_the_shop_is_as_expected(recommender):
    assert recommender.items.ids == [10, 20, 30, 40, 50, 60, 70]
    assert recommender.run.train_count_I.tolist() == [0, 3, 4, 2, 0, 0, 0, 0, 0]


def test_ids_go_in_and_ids_and_scores_come_out(recommender):
    found = recommender.recommend([[10], [20]], k=2)
    assert [items[0] for items in found.item_ids] == [20, 30]  # what came next in training
    assert all(type(id_) is int for items in found.item_ids for id_ in items)
    assert all(scores == sorted(scores, reverse=True) for scores in found.scores)
    assert all(type(score) is float for scores in found.scores for score in scores)
    assert found.unknown == [[], []]
    assert found.by_popularity == [False, False]


def test_the_public_name_is_this_class():
    assert lexrec.Recommender is Recommender


def test_items_of_the_history_are_left_out_unless_kept(recommender):
    assert recommender.recommend([[30, 20]], k=1).item_ids == [[10]]
    assert recommender.recommend([[30, 20]], k=1, keep_seen=True).item_ids == [[30]]


def test_items_that_the_model_no_longer_reads_are_left_out_too(summing):
    found = summing.recommend([[10, 20, 30, 40]], k=7)
    assert set(found.item_ids[0]) == {50, 60, 70}


def test_where_fewer_items_are_left_lists_are_shorter(recommender):
    found = recommender.recommend([[10, 20, 30, 40, 50], []], k=5)
    assert [len(items) for items in found.item_ids] == [2, 5]
    assert [len(scores) for scores in found.scores] == [2, 5]


def test_unknown_ids_are_reported_and_skipped(recommender):
    found = recommender.recommend([[5, 10, "x"], [20]], k=1)
    assert found.unknown == [[5, "x"], []]
    assert found.item_ids == recommender.recommend([[10], [20]], k=1).item_ids


@pytest.mark.parametrize("name", ["recommender", "summing"])
def test_without_a_known_item_the_answer_is_popularity(name, request):
    found = request.getfixturevalue(name).recommend([[], [99], [10]], k=4)
    assert found.by_popularity == [True, True, False]
    assert found.item_ids[:2] == [[*POPULAR, 40]] * 2
    assert found.scores[:2] == [[4.0, 3.0, 2.0, 0.0]] * 2
    assert found.unknown == [[], [99], []]


def test_allow_and_deny_bound_every_list_the_popular_one_too(recommender):
    found = recommender.recommend([[20], []], k=3, allow=[70, 10, 30], deny=[30, "unknown"])
    assert found.item_ids == [[10, 70], [10, 70]]
    assert recommender.recommend([[20]], k=1, deny=[30]).item_ids == [[10]]
    assert recommender.recommend([[20], []], allow=[20], deny=[20]).item_ids == [[], []]


def test_the_same_lists_again_and_many_others_are_answered_alike(recommender):
    first = recommender.recommend([[20]], k=7, allow=(10, 30))
    for id_ in recommender.items.ids * 2:
        assert recommender.recommend([[]], allow=[id_]).item_ids == [[id_]]
        assert recommender.recommend([[]], deny=[id_], k=7).item_ids[0].count(id_) == 0
    assert recommender.recommend([[20]], k=7, allow=iter((10, 30))) == first


def test_users_of_the_data_set_are_known_with_all_their_events(recommender):
    found = recommender.recommend_users(["dan", "ann"], k=7)
    assert [set(items) for items in found.item_ids] == [{30, 40, 60}, {60, 70}]
    assert found.unknown == [[], []]
    by_history = recommender.recommend([[10, 20, 50, 70], [10, 20, 30, 40, 50]], k=7)
    assert found == by_history
    assert 70 in recommender.recommend_users(["dan"], keep_seen=True).item_ids[0]


def test_titles_are_there_where_known(recommender):
    assert recommender.titles([20, 10, 30, 70]) == ["Twenty", "Ten", "", ""]


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda r: r.recommend([[10]], k=0), "k is at least 1, got 0"),
        (
            lambda r: r.recommend(["10"]),
            r"a history is a list of item ids, got '10'; write \[\[...\]\] for one",
        ),
        (lambda r: r.recommend([10]), "a history is a list of item ids, got 10"),
        (lambda r: r.recommend([[10]], allow=[99]), "allow: none of its 1 ids is an item of .*, such as 99"),
        (lambda r: r.recommend([[10]], allow=[]), "allow: none of its 0 ids is an item of "),
        (lambda r: r.recommend_users(["eve"]), r"user 'eve' is not in the data set \(4 users are\)"),
        (lambda r: r.recommend_users(["ann"], k=-1), "k is at least 1, got -1"),
    ],
)
def test_nonsense_is_refused(recommender, ask, text):
    with pytest.raises(DataError, match=text):
        ask(recommender)


def test_only_whole_runs_are_loaded(markov, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(markov.path, copy)
    with pytest.raises(
        ConfigError, match="device 'abacus' is not usable here; use auto, cpu, cuda or cuda:N"
    ):
        Recommender.load(copy, device="abacus")
    weights = copy / "checkpoints" / "00000000" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"model\.safetensors is missing or damaged"):
        Recommender.load(copy)
    (copy / "DONE").unlink()
    with pytest.raises(RunError, match=r"is not finished \(no DONE\)"):
        Recommender.load(copy)
    with pytest.raises(RunError, match="is not a run directory"):
        Recommender.load(tmp_path)


def test_the_data_set_is_opened_only_for_its_users(markov, shop, tmp_path):
    recommender = Recommender.load(markov.path, data=tmp_path)
    assert recommender.recommend([[10]], k=1).item_ids == [[20]]
    with pytest.raises(DataError, match="is not a prepared data set"):
        recommender.recommend_users(["ann"])
    assert Recommender.load(markov.path, data=shop).recommend_users(["ann"], k=1).item_ids


def test_a_first_recommendation_loads_nothing_that_it_does_not_need(markov):
    code = (
        "import sys, torch, lexrec\n"
        "before = set(sys.modules)\n"
        f"found = lexrec.Recommender.load({str(markov.path)!r}).recommend([[10]], k=1)\n"
        "heavy = {'pandas', 'ibis', 'duckdb', 'transformers', 'sympy', 'pyarrow.compute', 'torch._dynamo'}\n"
        "heavy |= {'lexrec.training.train', 'lexrec.data.prepare'}\n"
        "print(found.item_ids, heavy & (set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[[20]] set()\n", done.stderr
