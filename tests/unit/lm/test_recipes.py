"""IDIOMoE's baselines and ablations: each recipe differs from the main one in what it is named for."""

from dataclasses import replace
from typing import Any

import pytest

from lexrec.compare.flops import count_flops
from lexrec.config import RunConfig, differences, load_recipe
from lexrec.training.train import build_step
from tests import components, language_models
from tests.worlds import world

OF_IDIOMOE: dict[str, dict[str, Any]] = {
    "id_transformer": {"name": "scratch"},
    "lora_llm": {"name": "lora", "rank": None, "on": ("attention", "ffn")},
    "wide_ffn": {"name": "wide_ffn", "shrink": 1},
    "append_blocks": {"name": "blocks", "at": "end", "n_blocks": None},
    "prepend_blocks": {"name": "blocks", "at": "start", "n_blocks": None},
    "moa": {"name": "moa", "start": "pretrained"},
    "mot": {"name": "mot", "shrink": 1},
    "idiomoe_learned": {"name": "switch", "over": "all", "n_experts": 1},
    "idiomoe_hybrid": {"name": "switch", "over": "items", "n_experts": 4, "shrink": 4},
    "idiomoe_first8": {"name": "experts", "where": "first", "n_layers": 8},
    "idiomoe_last8": {"name": "experts", "where": "last", "n_layers": 8},
    "idiomoe_shrink2": {"name": "experts", "where": "all", "shrink": 2},
    "idiomoe_shrink4": {"name": "experts", "where": "all", "shrink": 4},
    "idiomoe_shrink8": {"name": "experts", "where": "all", "shrink": 8},
}


def recipe(name: str, *changes: str) -> RunConfig:
    config = load_recipe(name, changes)
    assert isinstance(config, RunConfig)
    return config


@pytest.mark.parametrize("name", OF_IDIOMOE)
def test_an_ablation_changes_the_adapter_alone(name: str) -> None:
    config, main = recipe(name), recipe("idiomoe")
    adapter = config.model.adapter  # type: ignore[attr-defined]
    assert {key: getattr(adapter, key) for key in OF_IDIOMOE[name]} == OF_IDIOMOE[name]
    assert all(change.startswith("model.adapter.") for change in differences(main, config))


def test_ids_first_reads_ids_alone_in_its_first_round() -> None:
    config, text = recipe("idiomoe_ids_first"), recipe("idiomoe_text")
    assert config.first == ("model.columns=[]", "train.max_epochs=10")
    assert config.model_copy(update={"first": ()}) == text


def test_text_attr_and_title_llm_are_item_llm_with_another_item_vector() -> None:
    for name, keys in (
        ("text_attr_llm", {"model.columns", "model.text_as", "model.text_len"}),
        (
            "title_llm",
            {
                "model.columns",
                "model.text_as",
                "model.read_at",
                "model.dropout",
                "objective.loss",
                "objective.n_negatives",
                "objective.shared_negatives",
                "train.lr",
                "train.batch_size",
            },
        ),
    ):
        changed = {line.split(":")[0] for line in differences(recipe("item_llm"), recipe(name))}
        assert changed == keys


def counted(name: str, *changes: str) -> int:
    """FLOPs of a training step over a tiny language model."""
    config = components.with_tiny_lm(recipe(name, "train.batch_size=8", "model.max_len=6", *changes))
    rows = [[(u + t) % 12 + 1 for t in range(9)] for u in range(8)]
    bare = world(rows, 12)
    items = components.item_table().set_column(0, "item_id", bare.item_table["item_id"])
    data = replace(bare, tables={**bare.tables, "items": items})
    return count_flops(build_step(config, data, ()), data, config.train)["step"]


def test_what_a_step_costs_is_what_a_token_passes() -> None:
    names = ["idiomoe", "idiomoe_shrink8", "wide_ffn", "prepend_blocks", "lora_llm", "mot", "idiomoe_hybrid"]
    found = {name: counted(name) for name in names}
    assert all(found.values())
    # On ids alone each token passes its own expert, so the split costs nothing; the controls add work.
    assert found["idiomoe_shrink8"] < found["idiomoe"]
    assert found["idiomoe"] < min(found[name] for name in ("wide_ffn", "prepend_blocks", "lora_llm"))


@pytest.mark.parametrize("name", ["idiomoe_text", "text_attr_llm", "title_llm", "idiomoe_ids_first"])
def test_a_step_that_reads_texts_can_be_counted(
    name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEXREC_CACHE", str(tmp_path))
    assert counted(name) > 0


def test_text_costs_what_it_adds_to_the_prompt() -> None:
    assert language_models.N_LAYERS == 2
    assert counted("idiomoe", "model.columns=[title]") > 2 * counted("idiomoe")
