"""What can be ranked: anything that encodes histories and scores items block by block.

Baselines fit this shape as they are; `ModelScorer` fits a sequence model into it.

Dimension key: B rows, J items of one block, D width.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from lexrec.data.batch import Batch, with_slots
from lexrec.kernels.products import ScoredRows
from lexrec.models.base import SequenceModel

_NARROW = 256
"""Width up to which operations are too small to be parted among threads with gain."""


class Scorer(Protocol):
    """Scores histories against the catalogue, a block of items at a time."""

    n_items: int
    max_len: int
    """Newest events of a history that matter."""
    trims: bool
    """True if rows may be shorter than `max_len` when every history of the batch is."""

    def encode(self, batch: Batch) -> Any:
        """Whatever `score` needs of each row; computed once a batch. The batch may be on another device.

        Where it is a tensor, its first dimension is the rows, and `score` may be asked for some of them.
        """
        ...

    def score(self, query: Any, first: int, last: int) -> Tensor:
        """Float32 scores of items first..last-1 (indexes, from 1), [B, last - first].

        A new tensor, which the caller may overwrite; the same arguments give the same bits again.
        """
        ...


class ModelScorer:
    """A trained sequence model, frozen for inference."""

    def __init__(self, model: SequenceModel) -> None:
        self.model = model.freeze()
        self.table = model.scoring()
        self.n_items = self.table.n_items
        with torch.no_grad():
            # No copy where the table is plain, and a frozen one is whole in any case.
            row_ID = self.table.block(1, self.n_items + 1).float()
        self.rows = ScoredRows(row_ID)
        self.max_len, self.width = model.max_len, row_ID.shape[1]
        self.trims = model.layout == "packed"
        self.device = next(model.parameters()).device

    @torch.no_grad()
    def encode(self, batch: Batch) -> Tensor:
        """Hidden states ready for a dot product with the items, float32 [B, D]."""
        # Before the move: afterwards the count would wait for the device.
        batch = packed(self.model, batch).to(self.device)
        return self.query(self.model.encode_next(batch).hidden_BLD[:, -1])

    @torch.no_grad()
    def query(self, hidden_BD: Tensor) -> Tensor:
        """What `encode` makes of a model's states, for those who have them already."""
        return self.table.query(hidden_BD.float())

    @torch.no_grad()
    def score(self, query: Tensor, first: int, last: int) -> Tensor:
        logit_BJ = self.rows.scores(query, first - 1, last - 1)
        if self.table.bias_I is not None:
            logit_BJ += self.table.bias_I[first - 1 : last - 1]
        return logit_BJ


def packed(model: SequenceModel, batch: Batch) -> Batch:
    """The batch with as many slots as it has items, where the model skips padding and there is some."""
    if model.layout != "packed" or batch.slot_N is not None:
        return batch
    n_items = int(batch.length_B.sum())
    # Full rows, a single history above all, have no padding to skip.
    return batch if n_items == batch.item_BL.numel() else with_slots(batch, max(n_items, 1))


def may_share(scorer: Scorer) -> bool:
    """True if batches are better encoded side by side, on a core each, than one after another on all."""
    if not isinstance(scorer, ModelScorer) or scorer.device.type != "cpu":
        return False
    configs = [getattr(module, "config", None) for module in scorer.model.modules()]
    # Neither what is drawn for a batch nor who else is in it may depend on the number of cores.
    draws = any(getattr(config, "eval_noise", False) for config in configs)
    pools = any(getattr(config, "pool", None) == "batch" for config in configs)
    return scorer.width <= _NARROW and not draws and not pools
