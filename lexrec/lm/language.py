"""How well a language model predicts a text, by windows that overlap.

    nll = -1/N sum_t log p(t | the tokens before it in its window)      perplexity = exp(nll)

A window holds at most `context` tokens to predict, of which the last `stride` are counted: each token is
counted once, and all but those of the first windows have at least context - stride before them. Every window
begins with the token that begins a text, as language models were trained, so that the first word counts too.

Dimension key: N tokens of the text, S tokens of a window, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lexrec.errors import ConfigError
from lexrec.lm.loading import LanguageModel

_CONTEXT = 1024


class Windows(NamedTuple):
    """How a text is cut."""

    context: int
    """Tokens of the text in a window, at most."""
    stride: int
    """Tokens that each window adds."""

    @staticmethod
    def fitting(lm: LanguageModel, context: int | None, stride: int | None) -> "Windows":
        """The windows asked for, or 1,024 tokens as far as the language model allows, half of them new.

        Raises:
            ConfigError: the language model reads no such context, or the stride is none of it.
        """
        most = int(getattr(lm.decoder.config, "max_position_embeddings", _CONTEXT))
        context = min(_CONTEXT, most) if context is None else context
        if not 1 <= context <= most:
            raise ConfigError(f"context {context}: language model {lm.base.name} reads 1 to {most} tokens")
        stride = max(1, context // 2) if stride is None else stride
        if not 1 <= stride <= context:
            raise ConfigError(f"stride {stride}: 1 to the context, {context}")
        return Windows(context, stride)

    def over(self, n_tokens: int) -> Iterator[tuple[int, int, int]]:
        """(first token, first counted one, behind the last) of each window."""
        for counted in range(0, n_tokens, self.stride):
            last = min(counted + self.stride, n_tokens)
            yield max(0, last - self.context), counted, last


class TextLoss(NamedTuple):
    """What a language model makes of a text."""

    nll: float
    """Nats a token, on average."""
    perplexity: float
    bits_per_byte: float
    """Of the text as UTF-8: comparable across tokenizers."""


class Compared(NamedTuple):
    """Several language models on one text."""

    losses: list[TextLoss]
    n_tokens: int
    is_same: bool
    """True where all their logits are the same, bit for bit."""


@torch.no_grad()
def read_text(lms: Sequence[LanguageModel], text: str, windows: Windows) -> Compared:
    """Loss of a text under language models of one vocabulary, on the device they are on.

    Args:
        lms: language models; the first one's tokenizer cuts the text.
        text: any text.
        windows: of how many tokens.

    Raises:
        ConfigError: the text has no token.
    """
    lm = lms[0]
    # One long text is what is wanted here: tokenizers warn of it.
    found = lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not found:
        raise ConfigError("the text has no token; give one with words")
    device = next(lm.parameters()).device
    token_N, start_1 = torch.tensor(found, device=device), torch.tensor([lm.first_token()], device=device)
    total, is_same = [0.0] * len(lms), True
    for first, counted, last in windows.over(len(token_N)):
        input_S = torch.cat([start_1, token_N[first : last - 1]])
        logits = [_logits(each, input_S, last - counted) for each in lms]
        is_same = is_same and all(torch.equal(logits[0], other) for other in logits[1:])
        for i, logit_SV in enumerate(logits):
            total[i] += float(F.cross_entropy(logit_SV.float(), token_N[counted:last], reduction="sum"))
    n_bytes = len(text.encode())
    losses = [_loss(nats, len(token_N), n_bytes) for nats in total]
    return Compared(losses, len(token_N), is_same)


def _logits(lm: LanguageModel, input_S: Tensor, n_last: int) -> Tensor:
    with lm.arithmetic(input_S.device):
        out: Any = lm.causal(input_S[None], use_cache=False, logits_to_keep=n_last)
    logit_SV: Tensor = out.logits[0]
    return logit_SV


def _loss(nats: float, n_tokens: int, n_bytes: int) -> TextLoss:
    nll = nats / n_tokens
    # Beyond that a perplexity is no number any more.
    perplexity = math.exp(nll) if nll < 700 else math.inf
    return TextLoss(nll, perplexity, nats / math.log(2) / n_bytes)
