"""Which families the ID decoder takes, what it refuses, and what its dropout reaches."""

import sys
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lexrec.config import RunConfig, load_recipe
from lexrec.data.batch import collate
from lexrec.errors import ConfigError
from lexrec.models.id_decoder import IdDecoder, IdDecoderConfig
from tests import components
from tests.components import ragged


def build(**options: Any) -> IdDecoder:
    torch.manual_seed(0)
    config = IdDecoderConfig(dim=16, max_len=8, **options)
    return IdDecoder(config, components.build_encoder("id_embedding", 16)).eval()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("qwen3", {"n_heads": 4, "n_kv_heads": 2}),
        ("gemma3_text", {"n_kv_heads": 1}),
        ("mistral", {}),
        ("gemma2", {"attention": "eager"}),
        ("gpt2", {"dropout": 0, "overrides": {"attn_pdrop": 0.1}}),
    ],
)
@torch.no_grad()
def test_a_family_reads_rows_as_any_backbone_does(family: str, options: dict[str, Any]) -> None:
    """Learned positions (gpt2) too are counted from the oldest item, so that padding changes nothing."""
    model, batch = build(family=family, **options), ragged()
    state_BD = model(batch).hidden_BLD[:, -1]
    assert_close(model(collate([[8, 9, 7]], 3)).hidden_BLD[:, -1], state_BD[3:])
    assert model(batch).hidden_BLD.isfinite().all()
    changed = model(collate([[3, 1, 4, 1, 5, 9, 2, 12]], 8)).hidden_BLD
    assert_close(changed[0, :-1], model(batch).hidden_BLD[0, :-1])
    assert len(model.blocks) == 2


def test_parameters_are_the_blocks_the_norm_and_one_row_an_item() -> None:
    d, f, n_rows = 16, 48, components.N_ITEMS + 2
    block = 4 * d * d + 3 * d * f + 2 * d
    assert sum(p.numel() for p in build().parameters()) == 2 * block + d + n_rows * d
    narrow = build(n_heads=4, n_kv_heads=1, ffn_dim=8, n_layers=1)
    block = 2 * d * d + 2 * d * d // 4 + 3 * d * 8 + 2 * d
    assert sum(p.numel() for p in narrow.parameters()) == block + d + n_rows * d
    names = build().state_dict()
    assert not [name for name in names if "embed_tokens" in name]
    assert len({value.data_ptr() for value in names.values()}) == len(names), "safetensors keeps each once"


@pytest.mark.parametrize("part", ["o_proj", "down_proj"])
def test_dropout_reaches_what_each_sub_layer_adds(part: str) -> None:
    model, seen = build(dropout=0.5), []
    for name, module in model.decoder.named_modules():
        if name.endswith(part):
            module.register_forward_hook(lambda _, __, out: seen.append(out))
    batch = ragged()
    model(batch)
    assert all((out[batch.is_item_BL] != 0).all() for out in seen)
    seen.clear()
    model.train()(batch)
    for out in seen:
        kept = out[batch.is_item_BL]
        assert 0.3 < (kept == 0).float().mean() < 0.7
    torch.manual_seed(1)
    first = model(batch).hidden_BLD
    torch.manual_seed(1)
    assert torch.equal(model(batch).hidden_BLD, first), "every draw is of torch's default generator"


def test_a_setting_of_the_family_is_overridden() -> None:
    model = build(family="qwen3", overrides={"rms_norm_eps": 0.5, "attention_bias": True})
    assert model.decoder.config.rms_norm_eps == 0.5
    assert model.blocks[0].self_attn.q_proj.bias is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"family": "lama"},
            "id_decoder: transformers knows no family 'lama'; such as llama, qwen3, gemma3_text",
        ),
        (
            {"overrides": {"rope": 1}},
            "id_decoder: family 'llama' has no setting 'rope'; known: .*rms_norm_eps",
        ),
        (
            {"family": "gpt2", "dropout": 0, "n_kv_heads": 1},
            "id_decoder: family 'gpt2' has no n_kv_heads; leave it out",
        ),
        ({"family": "gpt2", "dropout": 0, "ffn_dim": 8}, "family 'gpt2' has no ffn_dim; leave it out"),
        ({"family": "gpt2"}, "is not laid out as llama is, .*; set model.dropout=0 and the family's own"),
        (
            {"family": "gemma2"},
            "family 'gemma2' with attention=sdpa does not run: .*; try model.attention=eager, or a decoder",
        ),
        ({"family": "t5", "dropout": 0}, "family 't5' with attention=sdpa does not run: "),
        (
            {"family": "bert", "dropout": 0},
            "family 'bert' does not fit: it has parameters without use .pooler.dense.weight, pooler",
        ),
        ({"family": "falcon", "dropout": 0}, "family 'falcon' does not fit: it hands nothing on"),
    ],
    ids=lambda value: None if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.n_kv_heads=3", "model: n_kv_heads 3 does not divide n_heads 2"),
        ("model.n_heads=64", "a head is dim / n_heads = 1 wide, and rotary positions need an even width"),
        ("model.overrides={hidden_size: 8}", "model: overrides: hidden_size is the setting dim; set that"),
    ],
)
def test_sizes_that_do_not_fit_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("id_decoder", [override])


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"which is missing; pip install 'lexrec\[lm\]'"):
        build()


def test_building_draws_weights_and_nothing_else() -> None:
    """The check of a family costs no random number and leaves no gradient behind."""
    model = build()
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), build().parameters(), strict=True))
    config = IdDecoderConfig(dim=16, max_len=8)
    assert IdDecoder(config, components.build_encoder("id_embedding", 16)).training


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("n_layers", [2, 4, 6])
def test_there_is_a_recipe_for_each_size(dim: int, n_layers: int) -> None:
    config = load_recipe(f"id_decoder_d{dim}_l{n_layers}")
    assert isinstance(config, RunConfig)
    assert isinstance(config.model, IdDecoderConfig)
    assert (config.model.dim, config.model.n_layers, config.model.dim // config.model.n_heads) == (
        dim,
        n_layers,
        32,
    )
    assert config.train == load_recipe("id_decoder").train  # type: ignore[union-attr]
