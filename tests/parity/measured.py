"""What lexrec measures on `random_world`."""

import numpy as np
import torch
from random_world import N_ITEMS, random_world
from torch import Tensor
from worlds import world

from lexrec.data.batch import Batch
from lexrec.data.dataset import TEST, TRAIN
from lexrec.evaluation.evaluate import Evaluation, EvaluationConfig, evaluate


class Given:
    """Scores of each user, made elsewhere."""

    n_items, max_len, trims = N_ITEMS, 1, True

    def __init__(self, score_UI: np.ndarray) -> None:
        self.score_UI = torch.from_numpy(score_UI)

    def encode(self, batch: Batch) -> Tensor:
        return batch.user_B

    def score(self, query: Tensor, first: int, last: int) -> Tensor:
        return self.score_UI[query, first - 1 : last - 1]


def evaluate_random_world(ks: tuple[int, ...]) -> Evaluation:
    """Leave-one-out, seen items removed, in blocks that do not divide the catalogue."""
    random = random_world()
    histories = np.concatenate([random.train_UT, random.target_U[:, None]], axis=1).tolist()
    splits = [[TRAIN] * (len(history) - 1) + [TEST] for history in histories]
    settings = EvaluationConfig(k=ks, batch_size=64, block=37)
    return evaluate(Given(random.score_UI), world(histories, N_ITEMS, splits), settings)
