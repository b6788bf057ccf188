"""Items that came after training: rows from their texts, and a recommender that shows them too.

Dimension key: I item indexes of the run 0..n + 1, J new items, B rows, D width.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from lexrec.data.batch import Batch, collate
from lexrec.errors import ConfigError, DataError
from lexrec.evaluation.new_items import rows_from_texts
from lexrec.evaluation.scorer import ModelScorer
from lexrec.item_encoders.text_tokens import TextTokens
from lexrec.kernels.products import ScoredRows
from lexrec.models.idiomoe import Idiomoe
from lexrec.run_dir import RunDir
from lexrec.serving.recommender import Recommender
from lexrec.serving.scorer_ranker import ScorerRanker


def with_new_items(recommender: Recommender, items: str | Path | pa.Table) -> Recommender:
    """The same recommender, which can also show items that its run has never seen.

    Their rows are predicted from their texts: by the item encoder itself where it is `text_tokens`, by a map
    learned on the run's own items where the model is built on a language model. In a history they are passed
    over: what follows them was never observed.

    Args:
        recommender: of a run.
        items: `item_id`, `title`, and further columns as the run's item table has them; a table or Parquet.

    Raises:
        ConfigError: the run's model reads no text.
        DataError: the table cannot be read, has no such columns, or an id twice or of the run's own.
    """
    run, ranker = recommender.run, recommender.ranker
    if not isinstance(ranker, ScorerRanker) or not isinstance(ranker.scorer, ModelScorer):
        raise ConfigError("rows of new items are predicted for a trained model, not for a baseline")
    new = _checked(items, run)
    rows_JD = _rows(ranker.scorer, run, new)
    extended = _Extended(run.path, new)
    both = Recommender(ScorerRanker(_Scorer(ranker.scorer, rows_JD)), extended, recommender._data)
    both.new_ids = frozenset(new["item_id"].to_pylist())
    return both


def _rows(scorer: ModelScorer, run: RunDir, new: pa.Table) -> Tensor:
    """One row a new item, [J, D]."""
    model = scorer.model
    if isinstance(model.items, TextTokens):
        return model.items.rows_for_new(new.to_pylist(), run.tables())
    if not isinstance(model, Idiomoe):
        raise ConfigError(
            f"{run.path}: {type(model).__name__} reads no text, so it has no row for an item without events; "
            "use a run of idiomoe, or of a recipe with item_encoder.name=text_tokens"
        )
    columns = [name for name in new.column_names if name != "item_id"]
    both = pa.concat_tables([run.item_table.select(columns), new.select(columns)])
    return rows_from_texts(model, both, run.train_count_I).row_ID[scorer.n_items + 1 : -1]


def _checked(items: str | Path | pa.Table, run: RunDir) -> pa.Table:
    """The new items, in the columns that the run's item table has, texts as text."""
    if not isinstance(items, pa.Table):
        try:
            items = pq.ParquetFile(items).read()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {items} as Parquet: {' '.join(str(error).split())}") from error
    table = run.item_table
    columns = [name for name in table.column_names if name in items.column_names]
    if not {"item_id", "title"} <= set(columns):
        raise DataError(
            f"new items have columns {', '.join(items.column_names)}, the run's have "
            f"{', '.join(table.column_names)}; both need item_id and title"
        )
    try:
        new = items.select(columns).cast(pa.schema([table.schema.field(name) for name in columns]))
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"new items are of another type than the run's: {error}") from error
    ids = new["item_id"].to_pylist()
    if len(set(ids)) < len(ids) or None in ids:
        again = None if None in ids else Counter(ids).most_common(1)[0][0]
        raise DataError(f"new items: item_id {again!r} is there twice or missing; give each item one row")
    known = [id_ for id_ in ids if run.items.find(id_) is not None]
    if known:
        raise DataError(f"new items: {known[0]!r} is an item of {run.path} already; leave out what it knows")
    return new


@dataclass(frozen=True)
class _Extended(RunDir):
    """A run with further items."""

    new: pa.Table

    @cached_property
    def item_table(self) -> pa.Table:
        return pa.concat_tables([RunDir(self.path).item_table, self.new], promote_options="default")

    @cached_property
    def train_count_I(self) -> NDArray[np.int64]:
        counts_I = RunDir(self.path).train_count_I
        return np.insert(counts_I, len(counts_I) - 1, np.zeros(len(self.new), dtype=np.int64))


class _Scorer(ModelScorer):
    """A model's scorer with further rows."""

    def __init__(self, plain: ModelScorer, row_JD: Tensor) -> None:
        self.__dict__.update(plain.__dict__)
        self.n_known = plain.n_items
        self.n_items = plain.n_items + len(row_JD)
        row_JD = row_JD.to(self.rows.row_ED)
        if self.table.normalise:
            row_JD = torch.nn.functional.normalize(row_JD, dim=-1)
        self.rows = ScoredRows(torch.cat([self.rows.row_ED, row_JD]))
        bias_I = self.table.bias_I
        if bias_I is not None:
            bias_I = torch.cat([bias_I, bias_I.median().expand(len(row_JD))])
            self.table = replace(self.table, bias_I=bias_I)

    def encode(self, batch: Batch) -> Tensor:
        rows = [[item for item in row if 0 < item <= self.n_known] for row in batch.item_BL.tolist()]
        return super().encode(collate(rows, max(1, batch.item_BL.shape[1])))
