import pytest

from lexrec.errors import ConfigError, DataError
from lexrec.serving.recommender import Recommender
from lexrec.serving.session import Session
from lexrec.training.train import train


@pytest.fixture(scope="module")
def recommender(shop, tmp_path_factory) -> Recommender:
    overrides = ["model.dim=8", "model.max_len=3", "train.max_epochs=2"]
    out = tmp_path_factory.mktemp("runs") / "sasrec"
    return Recommender.load(train("sasrec", data=shop, out=out, overrides=overrides, track=()).path)


def whole(recommender: Recommender, history: list[int], keep_seen: bool = False) -> list[int]:
    return recommender.recommend([history], 5, keep_seen=keep_seen).item_ids[0]


def test_each_event_gives_the_list_of_the_whole_history(recommender):
    session, history = Session(recommender, [10]), [10]
    for item in (20, 40, 10, 70, 30):
        assert session.add(item)
        history.append(item)
        found = session.recommend(5)
        assert [id_ for id_, _ in found] == whole(recommender, history)
        expected = recommender.recommend([history], 5).scores[0]
        assert [score for _, score in found] == pytest.approx(expected, abs=1e-5)
    kept = [id_ for id_, _ in session.recommend(5, keep_seen=True)]
    assert kept == whole(recommender, history, keep_seen=True)


def test_a_visit_starts_from_nothing_with_what_is_popular(recommender):
    session = Session(recommender)
    assert [id_ for id_, _ in session.recommend(2)] == [20, 10]
    session.add(40)
    assert [id_ for id_, _ in session.recommend(5)] == whole(recommender, [40])


def test_unknown_items_change_nothing_and_are_kept(recommender):
    session = Session(recommender, [10, 99])
    before = session.recommend(3)
    assert not session.add(98)
    assert session.recommend(3) == before
    assert session.unknown == [99, 98]


def test_what_cannot_be_is_refused(recommender, markov):
    with pytest.raises(ConfigError, match="a session needs a trained model"):
        Session(Recommender.load(markov.path))
    with pytest.raises(DataError, match="k is at least 1, got 0"):
        Session(recommender).recommend(0)
