"""Each backbone's recipe trains it by the objective that is right for it, with the published settings."""

from typing import Any

import pytest

from lexrec import registry
from lexrec.config import RunConfig, load_recipe, recipe_names

MODELS = registry.names("models")
CAUSAL = {"objective.name": "next_item", "objective.loss": "ce"}
COMMON = {"model.dim": 64, "model.n_layers": 2, "model.max_len": 50, "train.lr": 1e-3}
CLOZE = {"objective.name": "cloze", "objective.loss": "ce", "objective.mask_rate": 0.2}
PREFIX = {
    "objective.name": "last_item",
    "objective.loss": "ce",
    "model.dropout": 0.5,
    "train.batch_size": 256,
}

PUBLISHED: dict[str, dict[str, Any]] = {
    "sasrec": COMMON | CAUSAL,
    "sasrec_ligr": COMMON | CAUSAL | {"model.norm": "pre", "model.gated": True, "model.activation": "swiglu"},
    "sasrec_ssm": COMMON | {"objective.loss": "sampled_softmax", "objective.n_negatives": 256},
    "sasrec_gbce": COMMON
    | {"objective.loss": "gbce", "objective.n_negatives": 256, "objective.gbce_t": 0.75},
    "bert4rec": COMMON | CLOZE | {"model.dropout": 0.2, "model.n_heads": 2},
    "linrec": COMMON | CLOZE | {"model.dropout": 0.2, "model.n_heads": 2},
    "fmlprec": COMMON | PREFIX,
    "bsarec": COMMON | PREFIX | {"model.alpha": 0.9, "model.c": 3},
    "cl4srec": {
        **COMMON,
        "model.name": "sasrec",
        "objective.name": "contrastive",
        "objective.weight": 0.1,
        "objective.temperature": 1.0,
        "objective.crop": 0.6,
        "objective.mask": 0.3,
        "objective.reorder": 0.6,
    },
    "gru4rec": CAUSAL | {"model.dim": 64, "model.max_len": 50, "train.lr": 1e-3},
    "hstu": {
        **COMMON,
        "objective.name": "next_item",
        "objective.loss": "sampled_softmax",
        "model.temperature": 0.05,
        "train.betas": (0.9, 0.98),
    },
    "id_decoder": COMMON | CAUSAL | {"model.family": "llama", "train.schedule": "cosine"},
    "idiomoe": CAUSAL | {"model.train_attention": False, "model.columns": (), "model.max_len": 50},
}


def test_every_backbone_has_a_recipe_with_and_without_token_tables() -> None:
    assert set(MODELS) <= set(PUBLISHED)
    assert {f"{name}{end}" for name in [*MODELS, "cl4srec"] for end in ("", "_mltfr")} <= set(recipe_names())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_published_settings(name: str) -> None:
    config = load_recipe(name)
    assert isinstance(config, RunConfig)
    found = {key: getattr(getattr(config, key.split(".")[0]), key.split(".")[1]) for key in PUBLISHED[name]}
    assert found == PUBLISHED[name]


@pytest.mark.parametrize("name", [*MODELS, "cl4srec"])
def test_token_tables_change_the_input_alone(name: str) -> None:
    plain, mltfr = load_recipe(name), load_recipe(f"{name}_mltfr")
    assert isinstance(plain, RunConfig)
    assert isinstance(mltfr, RunConfig)
    assert mltfr.item_encoder.name == "mltfr"  # type: ignore[attr-defined]
    assert (mltfr.model, mltfr.objective, mltfr.train) == (plain.model, plain.objective, plain.train)
