from worlds import world

from lexrec.baselines.popularity import Popularity, PopularityConfig
from lexrec.data.batch import collate


def test_everybody_gets_the_training_counts():
    dataset = world([[1, 2, 2, 3, 4], [2, 1, 3, 3]], n_items=5)
    scorer = Popularity(PopularityConfig()).fit(dataset)
    score_BJ = scorer.score(scorer.encode(collate([[1], [], [4, 4]], 1)), 1, 6)
    assert score_BJ.tolist() == [[2, 3, 0, 0, 0]] * 3
