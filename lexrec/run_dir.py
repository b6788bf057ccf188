"""A run directory: everything a run was made from and everything it found, complete or clearly not.

config.yaml          the whole config
dataset.json         fingerprint, counts and folder of the data set
items.parquet        the item vocabulary and item table, so that a run recommends without its data set
train_count.npy      training events of each item, for histories without a known item
tokens.json          name, source and sha256 of each token table
lm.json              the same of the pretrained language model, where the model is built on one
metrics.jsonl        one line a validation
checkpoints/STEP/    model.safetensors, trainer.safetensors, state.json (last)
rounds/1/            of a run in two rounds, the first: a run of its own, and its Fisher importance
start.json           of a run that began from others' weights: whose, sha256, what picked them, what they cost
inspect/             what `lexrec inspect RUN` wrote
evaluations/SPLIT/   metrics, protocol, per-event ranks; SPLIT-seen-keep and the like under other rules;
                     SPLIT-queries-COLUMN.json, SPLIT-new-items.json: what `evaluate` found of these
DONE                 which checkpoint is the best; written last
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from lexrec import registry
from lexrec.config import AnyRunConfig, RunConfig, run_config
from lexrec.data.dataset import Dataset
from lexrec.data.vocabulary import Vocabulary
from lexrec.errors import DamagedError, RunError

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from lexrec.evaluation.scorer import Scorer
    from lexrec.models.base import SequenceModel
    from lexrec.tokens.table import TokenTable

DONE = "DONE"


@dataclass(frozen=True)
class RunDir:
    """One run on disk. `create` starts one, `open` reads a finished one, `reopen` an unfinished one."""

    path: Path

    @staticmethod
    def create(
        path: str | Path, config: AnyRunConfig, dataset: Dataset, tables: "Sequence[TokenTable]" = ()
    ) -> "RunDir":
        """Start a run in a new or empty directory, which appears with all that says what it is.

        Raises:
            RunError: the directory already holds something, or cannot be written.
        """
        run = RunDir(Path(path))
        run.require_free()
        place = run.path.resolve()
        partial = place.with_name(f".{place.name}.part")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write_json(partial / "dataset.json", _dataset_card(dataset))
            write_json(partial / "tokens.json", [_table_card(table) for table in tables])
            if card := _lm_card(config):
                write_json(partial / "lm.json", card)
            _write_items(dataset, partial / "items.parquet")
            np.save(partial / "train_count.npy", dataset.train_count_I, allow_pickle=False)
            text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
            (partial / "config.yaml").write_text(text, encoding="utf-8")
            partial.replace(place)
        except OSError as error:
            raise RunError(f"cannot write {run.path}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return run

    def require_free(self) -> None:
        """Refuse a place where something is."""
        if self.path.resolve() == Path.cwd():
            # It would be replaced under the feet of this process.
            raise RunError(f"{self.path} is the working directory; choose another --out")
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        done = "a finished run" if self.is_done else "an unfinished run (continue it with --resume)"
        what = done if (self.path / "config.yaml").exists() else "other files"
        raise RunError(f"{self.path} already holds {what}; choose another --out")

    @staticmethod
    def open(path: str | Path) -> "RunDir":
        """A finished run.

        Raises:
            RunError: no run there, or one that did not finish.
        """
        run = RunDir.reopen(path)
        if not run.is_done:
            raise RunError(
                f"{run.path} is not finished (no {DONE}); continue it with: lexrec train ... --resume"
            )
        return run

    @staticmethod
    def reopen(path: str | Path) -> "RunDir":
        """A run, finished or not."""
        run = RunDir(Path(path))
        if not (run.path / "config.yaml").is_file():
            raise RunError(f"{run.path} is not a run directory (no config.yaml)")
        return run

    @property
    def is_done(self) -> bool:
        return (self.path / DONE).is_file()

    @cached_property
    def config(self) -> AnyRunConfig:
        path = self.path / "config.yaml"
        try:
            tree = yaml.safe_load(path.read_text(encoding="utf-8"))
            return run_config(tree, source=str(path))
        except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
            raise DamagedError(path, error) from error

    @cached_property
    def dataset_card(self) -> dict[str, Any]:
        card: dict[str, Any] = read_json(self.path / "dataset.json")
        return card

    @cached_property
    def item_table(self) -> "pa.Table":
        """item_id and what else is known of each item, row i is item index i + 1."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path / "items.parquet"
        try:
            # pq.read_table would do, but brings in pandas: half a second.
            return pq.ParquetFile(path).read()
        except (OSError, pa.ArrowException) as error:
            raise DamagedError(path, error) from error

    @cached_property
    def train_count_I(self) -> NDArray[np.int64]:
        """Training events of each item index, 0..n_items + 1."""
        path = self.path / "train_count.npy"
        try:
            count_I: NDArray[np.int64] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DamagedError(path, error) from error
        return count_I

    @cached_property
    def items(self) -> Vocabulary:
        """The items a run can recommend."""
        return Vocabulary(self.item_table["item_id"].to_pylist(), first=1, what="item")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What DONE says: best step, best epoch, validation metrics, seconds, parameters."""
        found: dict[str, Any] = read_json(self.path / DONE)
        return found

    def dataset(self, folder: str | Path | None = None) -> Dataset:
        """The data set of this run, from where it was or from `folder`.

        Raises:
            DataError: no data set is in `folder`, or it is damaged.
            RunError: the data there is not what the run was trained on, or it is no longer there.
        """
        card = self.dataset_card["folder"]
        if folder is None and (card is None or not Path(card).exists()):
            where = "in memory" if card is None else f"in {card}, which is no longer there"
            raise RunError(f"{self.path} was trained on a data set {where}; name its folder with --data")
        dataset = Dataset.load(folder if folder is not None else card)
        self.require_dataset(dataset)
        return dataset

    def require_dataset(self, dataset: Dataset) -> None:
        """Refuse another data set than this run's."""
        mine = self.dataset_card["fingerprint"]
        if dataset.fingerprint != mine:
            raise RunError(
                f"{self.path} was trained on data {mine[:12]}, "
                f"{dataset.folder or 'the data set given'} is {dataset.fingerprint[:12]}"
            )

    def log(self, record: dict[str, Any]) -> None:
        """One line more in metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def checkpoint(self, step: int) -> Path:
        """Folder of a checkpoint."""
        return self.path / "checkpoints" / f"{step:08d}"

    def round(self, number: int) -> Path:
        """Folder of an earlier round; the last one's files are this directory's own."""
        return self.path / "rounds" / str(number)

    def finish(self, summary: dict[str, Any]) -> None:
        """Mark the run complete. Nothing of it changes afterwards but its evaluations."""
        write_json(self.path / DONE, summary)

    def model(self, device: str = "cpu") -> "SequenceModel":
        """The best model, in evaluation mode.

        Raises:
            RunError: this run is a baseline, or a token table is not the one it was trained with.
        """
        from lexrec.item_encoders.base import Catalogue
        from lexrec.models import build_model, model_width

        if not isinstance(self.config, RunConfig):
            raise RunError(f"{self.path} is a counting baseline; it has no model")
        self.require_lm()
        n_items, dim = self.dataset_card["n_items"], model_width(self.config)
        catalogue = Catalogue(n_items, dim, self.tables(), self.item_table, self.train_count_I)
        model = build_model(self.config, catalogue)
        try:
            model.load_state_dict(self.weights())
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            raise RunError(f"{self.path}: the weights do not fit the model: {why}") from error
        return model.to(device).eval()

    def scorer(self, device: str = "cpu") -> "Scorer":
        """What evaluation and the recommender rank with: the best model, or the counted baseline."""
        if isinstance(self.config, RunConfig):
            from lexrec.evaluation.scorer import ModelScorer

            return ModelScorer(self.model(device))
        component = registry.load("baselines", self.config.baseline.name)  # type: ignore[attr-defined]
        scorer: Scorer = component(self.config.baseline).load_state(self.weights())
        return scorer

    def weights(self) -> "dict[str, Tensor]":
        """The tensors of the best checkpoint, on the CPU.

        Raises:
            RunError: the run is not finished, or the file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.checkpoint(self.summary["best_step"]) / "model.safetensors"
        try:
            tensors: dict[str, Tensor] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise DamagedError(path, error) from error
        return tensors

    def tables(self) -> "tuple[TokenTable, ...]":
        """The token tables of this run's model, in the order of its config; none for a baseline.

        Raises:
            RunError: one is not what the run was trained with.
            TokensError: one cannot be had any more.
        """
        if not isinstance(self.config, RunConfig):
            return ()
        tables = load_tables(self.config)
        for table, card in zip(tables, read_json(self.path / "tokens.json"), strict=True):
            if table.sha256 != card["sha256"]:
                raise RunError(
                    f"{self.path} was trained with token table {card['name']} {card['sha256'][:12]}, "
                    f"found {table.sha256[:12]}"
                )
        return tables

    def require_lm(self) -> None:
        """Refuse another language model than the one this run was built on.

        Raises:
            RunError: its weights have another hash.
            LmError: it cannot be had any more.
        """
        found = _lm_card(self.config)
        if found is None:
            return
        card = read_json(self.path / "lm.json")
        if found["sha256"] != card["sha256"]:
            where = f"{card['source']}@{card['revision']}" if card["revision"] else card["source"]
            raise RunError(
                f"{self.path} was trained on language model {card['name']} {card['sha256'][:12]}, found "
                f"{found['sha256'][:12]}; it holds only what was trained, so it needs that of {where}"
            )


def load_tables(config: RunConfig) -> "tuple[TokenTable, ...]":
    """Every token table a run's item encoder reads, in the order of its `table_names`."""
    from lexrec.tokens.catalogue import load_table

    return tuple(load_table(name) for name in config.item_encoder.table_names)  # type: ignore[attr-defined]


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all."""
    partial = path.with_name(path.name + ".part")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> Any:
    """Raises RunError where the file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(path, error) from error


def _dataset_card(dataset: Dataset) -> dict[str, Any]:
    return {
        "fingerprint": dataset.fingerprint,
        "folder": None if dataset.folder is None else str(dataset.folder.resolve()),
        "n_users": dataset.n_users,
        "n_items": dataset.n_items,
        "n_events": len(dataset.item_N),
    }


def _table_card(table: "TokenTable") -> dict[str, Any]:
    return {
        "name": table.name,
        "source": table.source,
        "revision": table.revision,
        "sha256": table.sha256,
        "shape": list(table.weight_VW.shape),
        "licence": table.licence,
    }


def _lm_card(config: AnyRunConfig) -> dict[str, str] | None:
    """The pretrained language model of a run's model; None where there is none."""
    lm = getattr(getattr(config, "model", None), "lm", None)
    if lm is None:
        return None
    from lexrec.lm.sources import find

    return find(lm.model).card()


def _write_items(dataset: Dataset, path: Path) -> None:
    if dataset.folder is not None:
        shutil.copyfile(dataset.folder / "items.parquet", path)
        return
    import pyarrow.parquet as pq

    pq.write_table(dataset.item_table, path)
