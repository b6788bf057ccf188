"""The ID decoder against transformers' own language models over tokens, and against its equations."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lexrec.data.batch import collate
from lexrec.models._layers import causal_mask
from lexrec.models.id_decoder import IdDecoder, IdDecoderConfig
from tests import components
from tests.components import N_ITEMS, packed

ROWS = [[3, 1, 4, 1, 5, 9, 2, 6], [5], [], [8, 9, 7]]
WIDTH = 16
FAMILIES = ["llama", "qwen3", "gemma3_text"]


def build(family: str, encoder: str = "id_embedding", **options: Any) -> IdDecoder:
    torch.manual_seed(0)
    config = IdDecoderConfig(family=family, dim=WIDTH, max_len=8, n_heads=4, n_kv_heads=2, **options)
    inject = {"inject": "after_block0"} if encoder == "mltfr" else {}
    model = IdDecoder(config, components.build_encoder(encoder, WIDTH, **inject)).double().eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        if encoder == "id_embedding":
            model.items.embedding.weight[1:] *= 10
    return model


def language_model(model: IdDecoder) -> torch.nn.Module:
    """The family's causal language model over item indexes as tokens, with the same weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = model.decoder.config.to_dict() | {"vocab_size": N_ITEMS + 2, "tie_word_embeddings": True}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    weights = {f"model.{name}": value for name, value in model.decoder.state_dict().items()}
    weights["model.embed_tokens.weight"] = model.items.embedding.weight.detach()
    left_out = theirs.load_state_dict(weights, strict=False)
    assert left_out.unexpected_keys == []
    assert set(left_out.missing_keys) <= {"lm_head.weight"}
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    return theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_familys_language_model_over_ids(family: str) -> None:
    """Scores and gradients, row by row and without padding on their side."""
    model, batch = build(family), packed(collate(ROWS, 8))
    theirs = language_model(model)
    mine_BLI = model.scoring().score(model(batch).hidden_BLD)
    expected = [theirs(input_ids=torch.tensor([row])).logits[0, :, 1:-1] for row in ROWS if row]
    # Their norms are computed in float32, in a batch of another shape.
    assert_close(mine_BLI[batch.is_item_BL], torch.cat(expected), rtol=1e-5, atol=1e-5)
    pull_NI = torch.randn(int(batch.is_item_BL.sum()), N_ITEMS, dtype=torch.float64)
    (mine_BLI[batch.is_item_BL] * pull_NI).sum().backward()
    (torch.cat(expected) * pull_NI).sum().backward()
    ours = dict(model.decoder.named_parameters())
    for name, parameter in theirs.model.named_parameters():
        mine = model.items.embedding.weight if name == "embed_tokens.weight" else ours.pop(name)
        assert_close(mine.grad, parameter.grad, rtol=1e-4, atol=1e-4)
    assert not ours


def norm(x: Tensor, module: torch.nn.Module, family: str) -> Tensor:
    gain = 1 + module.weight if family == "gemma3_text" else module.weight
    return x / (x.square().mean() + 1e-6).sqrt() * gain


def turned(x: Tensor, position: int, theta: float = 10_000.0) -> Tensor:
    """Rotary position: channels i and i + half are a plane, turned by position / theta^(2 i / width)."""
    half = len(x) // 2
    angle = torch.tensor([position / theta ** (2 * i / len(x)) for i in range(half)], dtype=torch.float64)
    a, b = x[:half], x[half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()])


def by_hand(model: IdDecoder, items: list[int]) -> list[Tensor]:
    """Every position and head on its own; query head h shares key head h // 2."""
    family, width = model.config.family, WIDTH // 4
    x = [model.input_scale * model.items.embedding.weight[item] for item in items]
    for block in model.decoder.layers:
        mix, mlp = block.self_attn, block.mlp
        n = [norm(v, block.input_layernorm, family) for v in x]
        q, k, v = ([part.weight @ one for one in n] for part in (mix.q_proj, mix.k_proj, mix.v_proj))
        mixed = []
        for t in range(len(x)):
            heads = []
            for h in range(4):
                own, shared = slice(h * width, (h + 1) * width), slice(h // 2 * width, (h // 2 + 1) * width)
                query = q[t][own]
                keys = [k[s][shared] for s in range(t + 1)]
                if family != "llama":
                    query = norm(query, mix.q_norm, family)
                    keys = [norm(key, mix.k_norm, family) for key in keys]
                query = turned(query, t)
                keys = [turned(key, s) for s, key in enumerate(keys)]
                share = torch.stack([query @ key / math.sqrt(width) for key in keys]).softmax(0)
                heads.append(sum(share[s] * v[s][shared] for s in range(t + 1)))
            mixed.append(mix.o_proj.weight @ torch.cat(heads))
        if family == "gemma3_text":
            mixed = [norm(m, block.post_attention_layernorm, family) for m in mixed]
        x = [one + m for one, m in zip(x, mixed, strict=True)]
        before = (
            block.pre_feedforward_layernorm if family == "gemma3_text" else block.post_attention_layernorm
        )
        n = [norm(one, before, family) for one in x]
        inner = [bent(mlp.gate_proj.weight @ one, family) * (mlp.up_proj.weight @ one) for one in n]
        added = [mlp.down_proj.weight @ one for one in inner]
        if family == "gemma3_text":
            added = [norm(one, block.post_feedforward_layernorm, family) for one in added]
        x = [one + a for one, a in zip(x, added, strict=True)]
    return [norm(one, model.decoder.norm, family) for one in x]


def bent(x: Tensor, family: str) -> Tensor:
    """silu, or Gemma's tanh form of GELU."""
    if family != "gemma3_text":
        return x / (1 + (-x).exp())
    return 0.5 * x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_it_equals_its_equations(family: str) -> None:
    model, batch = build(family, overrides={"rms_norm_eps": 1e-6}), collate(ROWS, 8)
    expected = torch.stack([state for row in ROWS for state in by_hand(model, row)])
    # Norms and angles are float32 in transformers, whatever the weights are.
    assert_close(model(batch).hidden_BLD[batch.is_item_BL], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_an_encoder_injects_joins_after_the_first_block(family: str) -> None:
    model, batch = build(family, "mltfr"), collate(ROWS, 8)
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(batch)
    model.decode(model.input_scale * model.items.lookup(batch.item_BL), causal_mask(batch.is_item_BL))
    first, second, first_without, second_without = seen
    added_BLD = model.items(batch).after_block0_BLD
    assert added_BLD.abs().max() > 1e-4
    assert_close(first, first_without)
    assert_close(second - second_without, model.input_scale * added_BLD)


def test_gemma_scales_its_input_and_the_others_do_not() -> None:
    assert build("gemma3_text").input_scale == pytest.approx(math.sqrt(WIDTH), rel=1e-7)
    assert build("llama").input_scale == build("qwen3").input_scale == 1
