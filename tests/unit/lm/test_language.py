"""Loss of a text: beside a loop over single tokens, and what a trained language model forgot."""

import math

import pytest
import torch

from lexrec.errors import ConfigError
from lexrec.lm import loading
from lexrec.lm.language import Windows, read_text
from lexrec.lm.settings import LmConfig
from tests.language_models import FAMILIES, folder

TEXT = " ".join(f"t{7 * i % 31} red" for i in range(11))  # 22 tokens
BOS = 1


def load(family: str = "llama", **options: object) -> loading.LanguageModel:
    return loading.load(LmConfig(model=str(folder(family)), **options))


def loop(lm: loading.LanguageModel, context: int, stride: int) -> float:
    """Mean loss, a token at a time, from what stands before it in its window and what begins a text."""
    tokens = lm.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    total = 0.0
    for t, token in enumerate(tokens):
        end = min((t // stride + 1) * stride, len(tokens))
        before = [BOS, *tokens[max(0, end - context) : t]]
        with torch.no_grad():
            logit_V = lm.causal(torch.tensor([before])).logits[0, -1].double()
        total -= float(logit_V.log_softmax(-1)[token])
    return total / len(tokens)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("context", "stride"), [(64, 64), (8, 3), (5, 5), (1, 1)])
def test_the_loss_is_that_of_a_loop_over_tokens(family: str, context: int, stride: int) -> None:
    lm = load(family)
    found = read_text([lm], TEXT, Windows(context, stride))
    assert found.n_tokens == 22
    (loss,) = found.losses
    assert loss.nll == pytest.approx(loop(lm, context, stride), rel=1e-5)
    assert loss.perplexity == pytest.approx(math.exp(loss.nll))
    assert loss.bits_per_byte == pytest.approx(loss.nll * 22 / math.log(2) / len(TEXT.encode()))


def test_every_token_is_counted_once_with_enough_before_it() -> None:
    windows = list(Windows(8, 3).over(22))
    counted = [t for _, first, last in windows for t in range(first, last)]
    assert counted == list(range(22))
    assert all(last - first <= 8 for first, _, last in windows)
    assert all(start - first >= 5 for first, start, _ in windows[2:])
    assert list(Windows(8, 8).over(0)) == []


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_was_changed_is_seen_and_what_was_not_is_the_same_to_the_bit(dtype: str) -> None:
    base, same, other = load(dtype=dtype), load(dtype=dtype), load(dtype=dtype)
    other.train_attention()
    with torch.no_grad():
        other.layers[0].self_attn.q_proj.weight.add_(0.3)
    found = read_text([same, base], TEXT, Windows(8, 4))
    assert found.is_same
    assert found.losses[0] == found.losses[1]
    found = read_text([other, base], TEXT, Windows(8, 4))
    assert not found.is_same
    assert found.losses[0].nll != found.losses[1].nll


def test_windows_are_as_long_as_the_language_model_reads() -> None:
    lm = load()
    assert Windows.fitting(lm, None, None) == Windows(256, 128)
    assert Windows.fitting(lm, 10, None) == Windows(10, 5)
    assert Windows.fitting(lm, 1, None) == Windows(1, 1)
    with pytest.raises(ConfigError, match=r"context 300: language model .* reads 1 to 256 tokens"):
        Windows.fitting(lm, 300, None)
    with pytest.raises(ConfigError, match="stride 11: 1 to the context, 10"):
        Windows.fitting(lm, 10, 11)


def test_a_text_without_a_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="the text has no token"):
        read_text([load()], " \n ", Windows(8, 4))
