"""Histories of external ids in, item ids and scores out.

Dimension key: B histories, K list length, J known items of one history, I item indexes 0..n + 1.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lexrec.data.batch import PAD
from lexrec.data.dataset import Dataset
from lexrec.data.vocabulary import Id, Vocabulary
from lexrec.errors import ConfigError, DataError
from lexrec.run_dir import RunDir
from lexrec.serving.ranker import Items, Ranked, Ranker

if TYPE_CHECKING:
    import pyarrow as pa

    from lexrec.serving.ask import Reason
    from lexrec.serving.histories import FileReport

_KEPT_LISTS = 8
_Ids = Iterable[Id] | None


class Recommendations(NamedTuple):
    """One list for each history, best item first; shorter than k where fewer items are left."""

    item_ids: list[list[Id]]
    scores: list[list[float]]
    unknown: list[list[Id]]
    """Ids of each history that the run does not know; the list was made without them."""
    by_popularity: list[bool]
    """True where no item of the history was known: the items are the most popular ones of training,
    and the scores are how often each was taken there."""


class Recommender:
    """Recommends from a finished run. Make one with `Recommender.load`.

    Args:
        ranker: ranks item indexes.
        run: where the item vocabulary, the item table and the counts come from.
        data: folder of the data set, for `recommend_users`; by default where it was in training.
    """

    def __init__(self, ranker: Ranker, run: RunDir, data: str | Path | None = None) -> None:
        self.ranker = ranker
        self.run = run
        self._data = data
        self.new_ids: frozenset[Id] = frozenset()
        """Items that came after training."""
        self._allowed = lru_cache(_KEPT_LISTS)(self._look_up)

    @staticmethod
    def load(path: str | Path, device: str = "cpu", data: str | Path | None = None) -> "Recommender":
        """Open a finished run.

        Args:
            path: the run directory.
            device: cpu, cuda, cuda:N, or auto.
            data: folder of the data set, where it was moved since training.

        Raises:
            RunError: no finished run is there, or it is damaged.
            ConfigError: no such device here.
        """
        from lexrec.serving.scorer_ranker import ScorerRanker
        from lexrec.training.allocator import keep_memory
        from lexrec.training.device import choose_device

        # A request makes the tensors of the one before it again.
        keep_memory()
        run = RunDir.open(path)
        return Recommender(ScorerRanker(run.scorer(str(choose_device(device)))), run, data)

    def with_new_items(self, items: "str | Path | pa.Table") -> "Recommender":
        """A recommender that can also show items which its run has never seen, by their texts.

        Args:
            items: `item_id`, `title` and whatever else the run's item table has; Parquet, or a table.

        Raises:
            ConfigError: the run's model reads no text.
            DataError: the table cannot be read, lacks a column, or names an item twice or a known one.
        """
        from lexrec.serving.new_items import with_new_items

        return with_new_items(self, items)

    @property
    def items(self) -> Vocabulary:
        """The items that can be recommended."""
        return self.run.items

    @cached_property
    def dataset(self) -> Dataset:
        """The data set of the run, opened when a user of it is asked for."""
        return self.run.dataset(self._data)

    def recommend(
        self,
        histories: Sequence[Sequence[Id]],
        k: int = 10,
        *,
        keep_seen: bool = False,
        allow: _Ids = None,
        deny: _Ids = None,
    ) -> Recommendations:
        """The best items after each history, which need not be one of the data set.

        Args:
            histories: external item ids, oldest first.
            k: length of the lists.
            keep_seen: also recommend what stands in the history.
            allow: recommend only these items.
            deny: recommend none of these; unknown ids do no harm.

        Raises:
            DataError: k is below 1, a history is no list, or no id of `allow` is known.
        """
        for history in histories:
            if isinstance(history, str | int):
                raise DataError(f"a history is a list of item ids, got {history!r}; write [[...]] for one")
        split = [self.items.split_known(history) for history in histories]
        ranked = self._rank([known for known, _ in split], k, keep_seen, self._resolve(allow, deny))
        return self._with_ids(ranked, [unknown for _, unknown in split], [not known for known, _ in split])

    def recommend_users(
        self,
        user_ids: Sequence[Id],
        k: int = 10,
        *,
        keep_seen: bool = False,
        allow: _Ids = None,
        deny: _Ids = None,
    ) -> Recommendations:
        """The best items for users of the data set, after everything they did there.

        Their validation and test events are part of the history: this answers what comes next, and is
        not a measurement. The other arguments are those of `recommend`.

        Raises:
            DataError: a user is not in the data set, or the data set cannot be read.
            RunError: the data set is not the one of the run.
        """
        histories = [self.history(user_id) for user_id in user_ids]
        ranked = self._rank(histories, k, keep_seen, self._resolve(allow, deny))
        return self._with_ids(ranked, [[] for _ in histories], [len(history) == 0 for history in histories])

    def recommend_file(
        self,
        path: str | Path,
        out: str | Path,
        k: int = 10,
        *,
        keep_seen: bool = False,
        allow: _Ids = None,
        deny: _Ids = None,
    ) -> "FileReport":
        """Recommend for every row of a Parquet file, some thousand rows at a time.

        Args:
            path: Parquet with `user_id` and `history`, a list of external item ids, oldest first.
            out: Parquet to write: `user_id, item_id, rank, score`, users in the order of the input and
                ranks from 1. It appears when it is whole; a file that is there is replaced.
            k, keep_seen, allow, deny: as for `recommend`.

        Raises:
            DataError: the file cannot be read, lacks a column, or `out` cannot be written.
        """
        # Only here: what reads files takes a tenth of a second to import.
        from lexrec.serving.histories import HistoryFile, Lists

        allowed = self._resolve(allow, deny)
        _check_k(k)
        source = HistoryFile(path, self.run.item_table["item_id"])

        def lists(histories: list[NDArray[np.int64]]) -> Lists:
            ranked = self._rank(histories, k, keep_seen, allowed)
            is_shown_BK = ranked.item_BK != PAD
            return Lists(is_shown_BK.sum(1), ranked.item_BK[is_shown_BK], ranked.score_BK[is_shown_BK])

        return source.write_lists(lists, Path(out))

    def ask(
        self,
        history: Sequence[Id],
        text: str,
        k: int = 10,
        *,
        keep_seen: bool = False,
        allow: _Ids = None,
        deny: _Ids = None,
    ) -> Recommendations:
        """The best items after a history and a question, such as "something for dry skin".

        Args:
            history: external item ids, oldest first; without a known one the question alone is read.
            text: the question.
            k, keep_seen, allow, deny: as for `recommend`.

        Raises:
            ConfigError: the run was not trained on questions, or the text has no word.
            DataError: as for `recommend`.
        """
        from lexrec.serving.ask import rank_answers

        _check_k(k)
        known, unknown = self.items.split_known(history)
        allowed = self._resolve(allow, deny)
        ranked = rank_answers(self.ranker, known, text, k, [] if keep_seen else known, allowed)
        return self._with_ids(ranked, [unknown], [False])

    def why(self, history: Sequence[Id], item_ids: Sequence[Id]) -> "list[Reason]":
        """Why each item would be recommended after a history, in the words of the model itself.

        Args:
            history: external item ids, oldest first; unknown ones are passed over.
            item_ids: items that the run was trained on.

        Raises:
            ConfigError: the run was not trained on reasons.
            DataError: an item is unknown.
        """
        from lexrec.serving.ask import reasons

        if not getattr(getattr(self.run.config, "objective", None), "reasons", 0):
            raise ConfigError(
                f"{self.run.path} was not trained on reasons; train one with recipe idiomoe_ask and "
                "objective.reasons above 0"
            )
        items = [self.items.index(id_) for id_ in item_ids]
        return reasons(self.ranker, self.items.split_known(history)[0], items)

    def history(self, user_id: Id) -> NDArray[np.int64]:
        """Item indexes of all events of a user of the data set, oldest first."""
        user = self.dataset.users.index(user_id)
        first, last = self.dataset.offset_U[user : user + 2]
        return self.dataset.item_N[first:last].astype(np.int64)

    def titles(self, item_ids: Iterable[Id]) -> list[str]:
        """Titles as the item table has them; empty where there is none."""
        if "title" not in self.run.item_table.column_names:
            return ["" for _ in item_ids]
        column = self.run.item_table["title"]
        return [column[self.items.index(id_) - self.items.first].as_py() or "" for id_ in item_ids]

    def _rank(
        self, histories: Sequence[Items], k: int, keep_seen: bool, allow: NDArray[np.int64] | None
    ) -> Ranked:
        _check_k(k)
        ranked = self.ranker.rank(histories, k, None if keep_seen else histories, allow)
        is_empty_B = np.array([len(history) == 0 for history in histories], dtype=bool)
        if is_empty_B.any():
            # What a model trained on histories says without one means nothing.
            ranked.item_BK[is_empty_B], ranked.score_BK[is_empty_B] = self._most_popular(
                ranked.item_BK.shape[1], allow
            )
        return ranked

    def _most_popular(
        self, k: int, allow: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        item_J = self._by_popularity
        if allow is not None:
            item_J = item_J[np.isin(item_J, allow)]
        item_J = item_J[:k]
        n = len(item_J)
        item_K, score_K = np.full(k, PAD, dtype=np.int64), np.full(k, -np.inf, dtype=np.float32)
        item_K[:n], score_K[:n] = item_J, self.run.train_count_I[item_J]
        return item_K, score_K

    @cached_property
    def _by_popularity(self) -> NDArray[np.int64]:
        """Items, the most taken first, equal ones in order of the item index."""
        return np.argsort(-self.run.train_count_I[1:-1], kind="stable") + 1

    def _resolve(self, allow: _Ids, deny: _Ids) -> NDArray[np.int64] | None:
        """Indexes of what may be shown; lists that come again are not looked up again."""
        if allow is None and deny is None:
            return None
        return self._allowed(None if allow is None else tuple(allow), tuple(deny or ()))

    def _look_up(self, allow: tuple[Id, ...] | None, deny: tuple[Id, ...]) -> NDArray[np.int64]:
        all_items = np.arange(1, len(self.items) + 1)
        if allow is not None:
            known, unknown = self.items.split_known(allow)
            if not known:
                raise DataError(
                    f"allow: none of its {len(unknown)} ids is an item of {self.run.path}"
                    + (f", such as {unknown[0]!r}" if unknown else "")
                )
            all_items = np.unique(known)
        return np.setdiff1d(all_items, np.array(self.items.split_known(deny)[0], dtype=np.int64))

    def _with_ids(
        self, ranked: Ranked, unknown: list[list[Id]], by_popularity: list[bool]
    ) -> Recommendations:
        n_B = (ranked.item_BK != PAD).sum(1).tolist()
        ids, first = self.items.ids, self.items.first
        return Recommendations(
            [[ids[i - first] for i in row[:n]] for row, n in zip(ranked.item_BK.tolist(), n_B, strict=True)],
            [row[:n] for row, n in zip(ranked.score_BK.tolist(), n_B, strict=True)],
            unknown,
            by_popularity,
        )


def _check_k(k: int) -> None:
    if k < 1:
        raise DataError(f"k is at least 1, got {k}")
