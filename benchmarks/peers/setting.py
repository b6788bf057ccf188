"""What every library is measured on. Needs NumPy alone, so that it runs in every environment.

Dimension key: N events, U users.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

K = 20
"""Length of the lists asked for."""
N_TOGETHER = 256
"""Histories of one batch of requests."""


@dataclass(frozen=True)
class Setting:
    """Model and training: equal for all."""

    loss: str = "ce"
    """ce: softmax over the catalogue; bce: binary cross-entropy with one negative."""
    dim: int = 64
    n_layers: int = 2
    n_heads: int = 2
    max_len: int = 50
    dropout: float = 0.2
    batch_size: int = 128
    lr: float = 1e-3
    seed: int = 42
    is_tuned: bool = False
    """Libraries are not taken as they come, but with what speeds them up without a change to their code."""

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def parse(text: str) -> "Setting":
        return Setting(**json.loads(text))


class Histories:
    """The events of a prepared data set, split leave-one-out: the last one tests, the last but one validates.

    Users and items are numbers: users from 0, items from 1 to `n_items`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.item_N: NDArray[np.int32] = np.load(folder / "item.npy", allow_pickle=False)
        self.offset_U: NDArray[np.int64] = np.load(folder / "offset.npy", allow_pickle=False)
        self.n_users, self.n_items = len(self.offset_U) - 1, int(self.item_N.max())
        shortest = int(np.diff(self.offset_U).min())
        if shortest < 4:
            raise SystemExit(f"{folder}: a user has {shortest} events; at least 4 are needed")

    def events(self, user: int, held_out: int) -> NDArray[np.int32]:
        """All but the newest `held_out` items of a user, oldest first."""
        return self.item_N[self.offset_U[user] : self.offset_U[user + 1] - held_out]

    def all_events(self, held_out: int) -> list[NDArray[np.int32]]:
        return [self.events(user, held_out) for user in range(self.n_users)]

    def tests(self) -> NDArray[np.int32]:
        """The newest item of each user."""
        return self.item_N[self.offset_U[1:] - 1]

    def user_of(self, length: int) -> int:
        """The first user with so many events before the tested one, or the one with most where none has."""
        length_U = np.diff(self.offset_U) - 1
        return int(np.argmax(np.minimum(length_U, length)))

    def flat(self, held_out: int) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
        """User, item and position of every event but the newest `held_out` of each user."""
        length_U = np.diff(self.offset_U)
        user_N = np.repeat(np.arange(self.n_users), length_U)
        position_N = np.arange(len(self.item_N)) - np.repeat(self.offset_U[:-1], length_U)
        is_kept_N = position_N < np.repeat(length_U, length_U) - held_out
        return user_N[is_kept_N], self.item_N[is_kept_N], position_N[is_kept_N]
