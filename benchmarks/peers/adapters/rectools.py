"""RecTools: SASRecModel, fit and recommend on its Dataset.

Left as they come: padded batches, softmax over the catalogue at every place, a Trainer for each `recommend`.
"""

import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import NDCG, HitRate, calc_metrics
from rectools.models import SASRecModel

from benchmarks.peers.meter import StepMeter
from benchmarks.peers.setting import Histories, K, Setting

warnings.filterwarnings("ignore")
_LOSSES = {"ce": "softmax", "bce": "BCE"}
_EPOCH = pd.Timestamp("2024-01-01")
_metering: list[StepMeter] = []
"""Not in the callback: RecTools copies the trainer with all its callbacks."""


class _Count(Callback):
    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, i: int) -> None:
        _metering[0].step(int((batch["y"] != 0).sum()))
        trainer.should_stop = _metering[0].is_over


def make_trainer() -> Trainer:
    """By name in what RecTools saves, so it has to be a function of a module."""
    return Trainer(
        max_epochs=1000,
        min_epochs=0,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[_Count()] if _metering else [],
    )


class Library:
    version = version("rectools")

    def __init__(self, setting: Setting, histories: Histories, work: Path) -> None:
        self.setting, self.histories = setting, histories
        self.file = work / "rectools.model"
        self._whole: Dataset | None = None

    def train(self, meter: StepMeter) -> None:
        s = self.setting
        _metering[:] = [meter]  # before the model, which makes its trainer at once
        model = SASRecModel(
            n_blocks=s.n_layers,
            n_heads=s.n_heads,
            n_factors=s.dim,
            dropout_rate=s.dropout,
            session_max_len=s.max_len,
            loss=_LOSSES[s.loss],
            n_negatives=1,
            lr=s.lr,
            batch_size=s.batch_size,
            recommend_torch_device="cpu",
            get_trainer_func=make_trainer,
        )
        model.fit(_dataset(*self.histories.flat(2)))
        meter.parameters = sum(p.numel() for p in model.torch_model.parameters())
        _metering.clear()
        model.save(str(self.file))

    def load(self) -> None:
        self.model = SASRecModel.load(str(self.file))

    def evaluate(self) -> dict[str, float]:
        users = np.arange(self.histories.n_users)
        dataset = _dataset(*self.histories.flat(1))
        lists = self.model.recommend(users=users, dataset=dataset, k=10, filter_viewed=True)
        tests = _events(users, self.histories.tests(), np.zeros_like(users))
        metrics = {"hr@10": HitRate(10), "ndcg@10": NDCG(10)}
        return {name: float(value) for name, value in calc_metrics(metrics, lists, tests).items()}

    def api(self, users: Sequence[int]) -> Callable[[], Any]:
        events = [self.histories.events(user, 1) for user in users]
        length_U = [len(items) for items in events]
        position_N = np.concatenate([np.arange(n) for n in length_U])
        # Only of those who are asked for: it looks at the whole data set in every call.
        dataset = _dataset(np.repeat(users, length_U), np.concatenate(events), position_N)
        return lambda: self.model.recommend(users=users, dataset=dataset, k=K, filter_viewed=True)

    def lists(self, answer: Any) -> list[list[int]]:
        by_user = answer.sort_values([Columns.User, Columns.Rank]).groupby(Columns.User)[Columns.Item]
        return [items.tolist() for _, items in by_user]

    def raw(self, users: Sequence[int]) -> Callable[[], Any]:
        ids = self.model.data_preparator.item_id_map.external_ids
        index_I = {id_: index for index, id_ in enumerate(ids)}
        rows = [[index_I[i] for i in self.histories.events(u, 1).tolist() if i in index_I] for u in users]
        length = self.setting.max_len
        item_BL = torch.tensor([[0] * (length - len(row)) + row[-length:] for row in rows])
        row_S = torch.repeat_interleave(torch.tensor([len(row) for row in rows]))
        item_S = torch.tensor([item for row in rows for item in row])
        module = self.model.torch_model.eval()

        def call() -> Any:
            with torch.inference_mode():
                table_ID = module.item_model.get_all_embeddings()
                hidden_BD = module.encode_sessions({"x": item_BL}, table_ID)[:, -1]
                score_BI = hidden_BD @ table_ID.T
                score_BI[row_S, item_S] = -torch.inf
                return score_BI.topk(K)

        return call


def _dataset(user_N: Any, item_N: Any, position_N: Any) -> Dataset:
    return Dataset.construct(_events(user_N, item_N, position_N))


def _events(user_N: Any, item_N: Any, position_N: Any) -> pd.DataFrame:
    when_N = _EPOCH + pd.to_timedelta(position_N, unit="s")
    columns = {Columns.User: user_N, Columns.Item: item_N, Columns.Weight: 1.0, Columns.Datetime: when_N}
    return pd.DataFrame(columns)
