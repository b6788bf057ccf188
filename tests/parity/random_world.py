"""Random training items, one target a user and scores without ties; needs numpy alone, of any version."""

from typing import NamedTuple

import numpy as np

N_USERS, N_ITEMS, N_TRAIN = 400, 150, 12
SEED = 20240607
KS = (1, 5, 10, 20)


class RandomWorld(NamedTuple):
    train_UT: np.ndarray
    """Distinct item indexes from 1 of each user's training events; popular items lie low."""
    target_U: np.ndarray
    """Item index that each user takes next, none of the above."""
    score_UI: np.ndarray
    """Float32 scores, column 0 is item 1; a target scores somewhat higher."""


def random_world() -> RandomWorld:
    random = np.random.default_rng(SEED)
    weight_UI = random.exponential(size=(N_USERS, N_ITEMS)) * np.linspace(0.2, 3, N_ITEMS)
    taken_UT = np.argsort(weight_UI, axis=1)[:, : N_TRAIN + 1] + 1
    train_UT, target_U = taken_UT[:, :-1], taken_UT[:, -1]
    score_UI = random.normal(size=(N_USERS, N_ITEMS)).astype(np.float32)
    score_UI[np.arange(N_USERS), target_U - 1] += np.float32(1.5)
    assert all(len(np.unique(row)) == N_ITEMS for row in score_UI)
    return RandomWorld(train_UT, target_U, score_UI)


def best_unseen(world: RandomWorld, k: int) -> np.ndarray:
    """Item indexes of each user's k best items outside training, best first."""
    score_UI = world.score_UI.copy()
    np.put_along_axis(score_UI, world.train_UT - 1, -np.inf, axis=1)
    return np.argsort(-score_UI, axis=1)[:, :k] + 1
