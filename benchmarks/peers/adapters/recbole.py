"""RecBole: SASRec by its Config, data loaders and trainer, and `full_sort_topk`.

It trains one target a row, and never removes seen items. `load_data_and_model` cannot read RecBole's own
checkpoints under torch 2.6 and later, so the same steps are taken here.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
from recbole.utils.case_study import full_sort_topk

from benchmarks.peers.meter import StepMeter
from benchmarks.peers.setting import Histories, K, Setting

warnings.filterwarnings("ignore")
_NAME = "peers_bench"
"""Of the data set: a name that RecBole knows silently loads RecBole's own file."""


class _Metered:
    """RecBole's loader; the next batch is asked for when a step is over."""

    def __init__(self, loader: Any, meter: StepMeter) -> None:
        self.loader, self.meter = loader, meter

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield batch
            self.meter.step(len(batch))
            if self.meter.is_over:
                return


class Library:
    version = version("recbole")

    def __init__(self, setting: Setting, histories: Histories, work: Path) -> None:
        self.setting, self.histories, self.work = setting, histories, work
        logging.disable(logging.WARNING)

    def train(self, meter: StepMeter) -> None:
        _write(self.histories, self.work / _NAME)
        model, train, _ = self._open()
        trainer = get_trainer(self.config["MODEL_TYPE"], self.config["model"])(self.config, model)
        meter.parameters = sum(p.numel() for p in model.parameters())
        while not meter.is_over:
            trainer._train_epoch(_Metered(train, meter), 0, show_progress=False)
        torch.save(model.state_dict(), self.work / "recbole.pt")

    def load(self) -> None:
        self.model, _, self.test = self._open()
        self.model.load_state_dict(torch.load(self.work / "recbole.pt", weights_only=True))
        self.model.eval()

    def evaluate(self) -> dict[str, float]:
        trainer = get_trainer(self.config["MODEL_TYPE"], self.config["model"])(self.config, self.model)
        found = trainer.evaluate(self.test, load_best_model=False, show_progress=False)
        return {"hr@10": float(found["hit@10"]), "ndcg@10": float(found["ndcg@10"])}

    def api(self, users: Sequence[int]) -> Callable[[], Any]:
        user_B = self.dataset.token2id("user_id", [str(user) for user in users])
        return lambda: full_sort_topk(user_B, self.model, self.test, K)

    def lists(self, answer: Any) -> list[list[int]]:
        return [[int(id_) for id_ in ids] for ids in self.dataset.id2token("item_id", answer[1].numpy())]

    def raw(self, users: Sequence[int]) -> Callable[[], Any]:
        rows = [self.histories.events(user, 1).astype(str).tolist() for user in users]
        rows = [self.dataset.token2id("item_id", row).tolist() for row in rows]
        length = self.setting.max_len
        item_BL = torch.tensor([row[-length:] + [0] * (length - len(row)) for row in rows])
        length_B = torch.tensor([min(len(row), length) for row in rows])
        row_S = torch.repeat_interleave(torch.tensor([len(row) for row in rows]))
        item_S = torch.tensor([item for row in rows for item in row])

        def call() -> Any:
            with torch.inference_mode():
                score_BI = self.model(item_BL, length_B) @ self.model.item_embedding.weight.T
                score_BI[row_S, item_S] = -torch.inf
                return score_BI.topk(K)

        return call

    def _open(self) -> tuple[Any, Any, Any]:
        """A fresh model, and the loaders of training and test."""
        sys.argv = sys.argv[:1]  # RecBole reads the command line
        self.config = Config(model="SASRec", dataset=_NAME, config_dict=_config(self.setting, self.work))
        init_seed(self.config["seed"], self.config["reproducibility"])
        self.dataset = create_dataset(self.config)
        train, _, test = data_preparation(self.config, self.dataset)
        model = get_model("SASRec")(self.config, train.dataset).to(self.config["device"])
        if self.setting.is_tuned:
            # An import of RecBole's leaves it on.
            torch.autograd.set_detect_anomaly(False)
        return model, train, test


def _config(setting: Setting, work: Path) -> dict[str, Any]:
    if setting.loss != "ce":
        raise SystemExit(f"RecBole's SASRec has no loss {setting.loss!r}; it has ce (and BPR)")
    return {
        "data_path": str(work),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": setting.max_len,
        "train_neg_sample_args": None,
        "loss_type": "CE",
        "eval_args": {
            "split": {"LS": "valid_and_test"},
            "order": "TO",
            "group_by": "user",
            "mode": "full",
        },
        "metrics": ["Hit", "NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "train_batch_size": setting.batch_size,
        "eval_batch_size": 256,
        "n_layers": setting.n_layers,
        "n_heads": setting.n_heads,
        "hidden_size": setting.dim,
        "inner_size": setting.dim,
        "hidden_act": "relu",
        "hidden_dropout_prob": setting.dropout,
        "attn_dropout_prob": setting.dropout,
        "learning_rate": setting.lr,
        "use_gpu": False,
        "seed": setting.seed,
        "state": "ERROR",
        "show_progress": False,
        "checkpoint_dir": str(work),
    }


def _write(histories: Histories, folder: Path) -> None:
    """RecBole's text form of the events."""
    folder.mkdir(parents=True, exist_ok=True)
    header = "user_id:token\titem_id:token\ttimestamp:float"
    rows = np.stack(histories.flat(0), axis=1)
    np.savetxt(folder / f"{_NAME}.inter", rows, fmt="%d", delimiter="\t", header=header, comments="")
