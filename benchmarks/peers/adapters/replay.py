"""RePlay: SasRec, ParquetModule and Lightning, put together as its sequential examples do.

Left as they come: padded batches, softmax over the catalogue at every place, a Trainer and a Parquet file for
each request.
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import ParquetModule, TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.nn.lightning import LightningModule
from replay.nn.lightning.callback import ComputeMetricsCallback, PandasTopItemsCallback
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.lightning.postprocessor import SeenItemsFilter
from replay.nn.loss import BCESampled
from replay.nn.sequential import SasRec
from replay.nn.transform import UniformNegativeSamplingTransform
from replay.nn.transform.template import make_default_sasrec_transforms

from benchmarks.peers.meter import StepMeter
from benchmarks.peers.setting import Histories, K, Setting

warnings.filterwarnings("ignore")
for _name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
    logging.getLogger(_name).setLevel(logging.ERROR)


class _Count(lightning.Callback):
    def __init__(self, meter: StepMeter) -> None:
        self.meter = meter

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, i: int) -> None:
        # It also predicts each first item, from nothing; what counts is a next item.
        has_target_BL = batch["target_padding_mask"][..., 0] & batch["padding_mask"]
        self.meter.step(int(has_target_BL.sum()))
        trainer.should_stop = self.meter.is_over


class Library:
    version = version("replay-rec")

    def __init__(self, setting: Setting, histories: Histories, work: Path) -> None:
        self.setting, self.histories, self.work = setting, histories, work
        s, n_items = setting, histories.n_items
        # Its items are 0..n-1 and padding is n.
        source = TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")
        feature = TensorFeatureInfo(
            "item_id",
            is_seq=True,
            feature_type=FeatureType.CATEGORICAL,
            embedding_dim=s.dim,
            padding_value=n_items,
            cardinality=n_items,
            feature_hint=FeatureHint.ITEM_ID,
            feature_sources=[source],
        )
        schema = TensorSchema([feature])
        self.transforms = make_default_sasrec_transforms(schema)
        self.model = SasRec.from_params(
            schema,
            embedding_dim=s.dim,
            num_heads=s.n_heads,
            num_blocks=s.n_layers,
            max_sequence_length=s.max_len,
            dropout=s.dropout,
        )
        if s.loss == "bce":
            self.model.loss = BCESampled()
            self.model.loss.logits_callback = self.model.get_logits  # as its constructor does
            # Its own sampler: one negative that the whole batch shares.
            self.transforms["train"].append(UniformNegativeSamplingTransform(n_items, 1))
        self.seen_filter = SeenItemsFilter(item_count=n_items)

    def train(self, meter: StepMeter) -> None:
        users = range(self.histories.n_users)
        meter.parameters = sum(p.numel() for p in self.model.parameters())
        module = LightningModule(
            self.model, optimizer_factory=OptimizerFactory(learning_rate=self.setting.lr)
        )
        trainer = _trainer(max_epochs=1000, min_epochs=0, limit_val_batches=0, callbacks=[_Count(meter)])
        trainer.fit(module, datamodule=self._data("train", self._file("train", users, held_out=2)))
        torch.save(self.model.state_dict(), self.work / "replay.pt")

    def load(self) -> None:
        self.model.load_state_dict(torch.load(self.work / "replay.pt", weights_only=True))
        self.model.eval()

    def evaluate(self) -> dict[str, float]:
        metrics = ComputeMetricsCallback(
            metrics=["recall", "ndcg"],
            ks=[10],
            postprocessors=[self.seen_filter],
            item_count=self.histories.n_items,
            verbose=False,
        )
        data = self._data("test", self._file("test", range(self.histories.n_users), held_out=1))
        trainer = _trainer(callbacks=[metrics], inference_mode=True)
        found = trainer.test(LightningModule(self.model), datamodule=data, verbose=False)
        return {str(name).lower(): float(value) for name, value in found[0].items()}

    def api(self, users: Sequence[int]) -> Callable[[], Any]:
        file = self._file(f"ask{len(users)}", users, held_out=1)

        def call() -> Any:
            best = PandasTopItemsCallback(
                top_k=K, query_column="user_id", item_column="item_id", postprocessors=[self.seen_filter]
            )
            trainer = _trainer(callbacks=[best], inference_mode=True)
            data = self._data("predict", file)
            trainer.predict(LightningModule(self.model), datamodule=data, return_predictions=False)
            return best.get_result()

        return call

    def lists(self, answer: Any) -> list[list[int]]:
        return [[item + 1 for item in items] for _, items in answer.groupby("user_id", sort=False)["item_id"]]

    def raw(self, users: Sequence[int]) -> Callable[[], Any]:
        rows = [(self.histories.events(user, 1) - 1).tolist() for user in users]
        length, pad = self.setting.max_len, self.histories.n_items
        item_BL = torch.tensor([[pad] * (length - len(row)) + row[-length:] for row in rows])
        row_S = torch.repeat_interleave(torch.tensor([len(row) for row in rows]))
        item_S = torch.tensor([item for row in rows for item in row])
        is_item_BL = item_BL != pad

        def call() -> Any:
            with torch.inference_mode():
                score_BI = self.model(feature_tensors={"item_id": item_BL}, padding_mask=is_item_BL)["logits"]
                score_BI[row_S, item_S] = -torch.inf
                return score_BI.topk(K)

        return call

    def _file(self, name: str, users: Sequence[int], held_out: int) -> Path:
        """The Parquet file that it reads; with targets where the last event alone is held out."""
        items = [(self.histories.events(user, held_out) - 1).tolist() for user in users]
        columns: dict[str, Any] = {"user_id": list(users), "item_id": items}
        if held_out == 1:
            tests = self.histories.tests()[np.asarray(users)] - 1
            columns |= {"ground_truth": [[item] for item in tests.tolist()], "seen_ids": items}
        path = self.work / f"{name}.parquet"
        pd.DataFrame(columns).to_parquet(path)
        return path

    def _data(self, part: str, file: Path) -> ParquetModule:
        length, pad = self.setting.max_len, self.histories.n_items
        longest = int(np.diff(self.histories.offset_U).max())
        asked = {
            "user_id": {},
            "item_id": {"shape": length, "padding": pad},
            "ground_truth": {"shape": 1, "padding": -1},
            "seen_ids": {"shape": longest, "padding": -1},
        }
        train = {"user_id": {}, "item_id": {"shape": length + 1, "padding": pad}}
        return ParquetModule(
            batch_size=self.setting.batch_size if part == "train" else 256,
            metadata={"train": train, "validate": asked, "test": asked, "predict": asked},
            transforms=self.transforms,
            **{f"{part}_path": str(file)},
        )


def _trainer(**arguments: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
