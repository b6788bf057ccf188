"""Every component under a name, built small: what contract tests run over."""

from collections.abc import Sequence

import pyarrow as pa
import torch

from lexrec import registry
from lexrec.config import RunConfig
from lexrec.data.batch import Batch, collate, with_slots
from lexrec.item_encoders.base import Catalogue, ItemEncoder
from lexrec.models.base import SequenceModel
from lexrec.objectives.base import Objective
from lexrec.tokens.table import TokenTable
from tests import language_models

N_ITEMS, DIM, MAX_LEN = 12, 32, 8
MODELS = registry.names("models")
ENCODERS = registry.names("item_encoders")
OBJECTIVES = registry.names("objectives")


def table(name: str, n_tokens: int = 40, width: int = 24, seed: int = 0) -> TokenTable:
    """A token table of noise."""
    weight_VW = torch.randn(n_tokens, width, generator=torch.Generator().manual_seed(seed))
    tokens = tuple(f"t{i}" for i in range(n_tokens))
    return TokenTable(name, weight_VW.bfloat16(), tokens, f"made:{name}", "0", f"{seed:064d}", "none")


def tables() -> tuple[TokenTable, ...]:
    """Two tables of different sizes and widths."""
    return table("a"), table("b", 70, 16, seed=1)


def item_table() -> pa.Table:
    """Items whose texts are made of the tables' tokens, each another one."""
    titles = [f"t{i} t{i + 12}, t{7 * i % 37}" for i in range(1, N_ITEMS + 1)]
    categories = [f"t{i + 24} t{'59324'[i % 5]}" for i in range(1, N_ITEMS + 1)]
    return pa.table({"item_id": list(range(N_ITEMS)), "title": titles, "category": categories})


def build_encoder(name: str, dim: int = DIM, **options: object) -> ItemEncoder:
    cls = registry.load("item_encoders", name)
    if name == "mltfr":
        options = {"tables": ("a", "b"), "k": 5, **options}
    if name == "llm_table":
        # At the steps that tests take, what is much the same for all items soon drowns them.
        options = {"cap": 0.1, **options}
    config = registry.config_class(cls)(**options)
    given = tables() if config.tables else ()
    encoder: ItemEncoder = cls(config, Catalogue(N_ITEMS, dim, given, item_table()))
    return encoder


def with_tiny_lm(config: RunConfig) -> RunConfig:
    """The same run over a tiny language model, where it has one."""
    if not hasattr(config.model, "lm"):
        return config
    lm = config.model.lm.model_copy(update={"model": str(language_models.folder())})
    return config.model_copy(update={"model": config.model.model_copy(update={"lm": lm})})


def build(model: str, encoder: str = "id_embedding", seed: int = 0, **options: object) -> SequenceModel:
    """A small model in evaluation mode; `options` are the item encoder's."""
    torch.manual_seed(seed)
    cls = registry.load("models", model)
    # A model over a language model gets a tiny one, as wide as the others are.
    lm = {"lm": {"model": str(language_models.folder())}} if model == "idiomoe" else {}
    config = registry.config_class(cls)(dim=DIM, max_len=MAX_LEN, **lm)
    built: SequenceModel = cls(config, build_encoder(encoder, **options))
    return built.eval()


def build_objective(name: str, **options: object) -> Objective:
    if name == "cloze":
        # With one or two targets a row, few steps teach the end of a row only if it is often asked for.
        options = {"mask_last": 0.5, **options}
    cls = registry.load("objectives", name)
    objective: Objective = cls(registry.config_class(cls)(**options), N_ITEMS)
    return objective


def cycles(n: int = 48, length: int = MAX_LEN + 1) -> Batch:
    """Histories that walk 1 -> 2 -> ... -> N -> 1: the right next item is known."""
    rows = [[(u + t) % N_ITEMS + 1 for t in range(length)] for u in range(n)]
    return collate(rows, length)


def ragged(rows: Sequence[Sequence[int]] = ((3, 1, 4, 1, 5, 9, 2, 6), (5,), (), (8, 9, 7))) -> Batch:
    """Rows of unlike length, one of them empty."""
    return collate(rows, MAX_LEN)


def packed(batch: Batch, spare: int = 3) -> Batch:
    """The same batch with slots, a few of them unused."""
    return with_slots(batch, int(batch.length_B.sum()) + spare)
