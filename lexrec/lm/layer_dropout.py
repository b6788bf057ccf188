"""Dropout inside a language model's layers, which families leave out and small catalogues ask for.

    x = x + dropout(attention(norm(x)));  x = x + dropout(feed_forward(norm(x)))

Pretrained language models see each text once and need none; a model of item ids sees the same few events a
hundred times. Only in training, so what evaluation and text alone compute stays as it is.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lexrec.errors import ConfigError
from lexrec.lm import layers
from lexrec.lm.loading import LanguageModel


def part_names(lm: LanguageModel) -> Sequence[str]:
    """What attention and feed-forward part are called in every layer; to be asked before adapters."""
    first = lm.layers[0]
    return layers.attention(first, lm.decoder), layers.feed_forward(first, lm.decoder)


def install(lm: LanguageModel, names: Sequence[str], share: float) -> None:
    """Drop `share` of what each of these parts of every layer adds, adapters' layers included.

    Raises:
        ConfigError: layers are computed anew for the backward pass, which would drop something else.
    """
    if not share:
        return
    if lm.config.checkpointing:
        raise ConfigError(
            f"model.layer_dropout={share} drops anew when lm.checkpointing=true computes a layer again; "
            "use one of the two"
        )
    for layer in lm.layers:
        for name in names:
            layer.get_submodule(name).register_forward_hook(_Drop(share))


class _Drop:
    """Hook of a part: its output, which an attention gives with its weights beside it."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, part: nn.Module, _: Any, out: Any) -> Any:
        if not part.training:
            return out
        if isinstance(out, Tensor):
            return F.dropout(out, self.share)
        return (F.dropout(out[0], self.share), *out[1:])
