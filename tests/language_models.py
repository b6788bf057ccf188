"""Tiny language models with random weights and a tiny tokenizer, made on the spot as folders on disk."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch

from lexrec.lm.quiet import quiet

WIDTH, N_LAYERS, N_TOKENS = 32, 2, 96
_WORDS = "red blue green nail polish brush soap for the and with of like last one children"
FAMILIES = ("llama", "qwen3", "gemma3_text")


@cache
def folder(family: str = "llama", seed: int = 0) -> Path:
    """A language model as the hub has it: config.json, model.safetensors, tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": N_TOKENS,
        "max_position_embeddings": 256,
        "tie_word_embeddings": family != "qwen3",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "gemma3_text":
        # Its first layer looks over a window, the second one back to the beginning.
        kinds = ["sliding_attention", "full_attention"]
        settings |= {"sliding_window": 4, "query_pre_attn_scalar": 8, "layer_types": kinds}
    path = Path(tempfile.mkdtemp(prefix=f"lexrec-{family}-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    config = AutoConfig.for_model(family, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lm = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in lm.parameters():
                # Norms that are not all the same, so that leaving one out is noticed.
                parameter.add_(0.1 * torch.randn_like(parameter))
    with quiet():
        lm.save_pretrained(path)
        _tokenizer().save_pretrained(path)
    return path


def _tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<bos>", "<eos>", "<unk>", ";", ",", *_WORDS.split()]
    # The words of tests/components.py: t1, t2 ...
    names += [f"t{i}" for i in range(N_TOKENS - len(names))]
    reader = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    reader.pre_tokenizer = pre_tokenizers.Whitespace()
    # Gemma's way: a text begins with <bos> where special tokens are wanted.
    reader.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=reader, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
