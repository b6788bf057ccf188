"""Append- and Prepend-blocks: new layers after or before the frozen ones (controls of IDIOMoE).

Paper: IDIOMoE, https://arxiv.org/abs/2510.05125

    append    h = new_n(... new_1(old_L(... old_1(x))))
    prepend   h = old_L(... old_1(new_n(... new_1(x))))      then the language model's last norm

Whole decoder layers of the family's own form, trained from noise, for items and text alike; the pretrained
ones stay frozen. As many parameters as item experts, but at another place and with more work for each token.

Not in the paper's text that is public, hence ours: how many, and that new layers are like their neighbour
(a family may have layers that look over a window).
"""

from typing import Any, Literal

from pydantic import Field
from torch import nn

from lexrec.errors import LmError
from lexrec.lm import layers
from lexrec.lm.adapters.base import Adapter, AdapterConfig
from lexrec.lm.experts import fresh_linear
from lexrec.lm.loading import LanguageModel


class BlocksConfig(AdapterConfig):
    """Where new layers are, and how many."""

    name: Literal["blocks"] = "blocks"
    at: Literal["end", "start"] = "end"
    """end: after the language model's last layer (Append); start: before its first (Prepend)."""
    n_blocks: int | None = Field(None, ge=1)
    """null: that which takes as many parameters as an item expert in each layer would."""


class Blocks(Adapter):
    """A deeper decoder."""

    config: BlocksConfig

    def __init__(self, config: BlocksConfig) -> None:
        self.config = config

    def apply(self, lm: LanguageModel) -> None:
        old, config = list(lm.layers), lm.decoder.config
        kinds = list(getattr(config, "layer_types", None) or ())
        like = len(old) - 1 if self.config.at == "end" else 0
        new = [_fresh_layer(lm, like) for _ in range(self.config.n_blocks or _matched(lm))]
        new_kinds = [kinds[like]] * len(new) if kinds else []
        if self.config.at == "end":
            _replace(lm, [*old, *new], [*kinds, *new_kinds])
        else:
            _replace(lm, [*new, *old], [*new_kinds, *kinds])


def _matched(lm: LanguageModel) -> int:
    """Layers with as many parameters as all feed-forward parts together."""
    layer = lm.layers[0]
    expert = layer.get_submodule(layers.feed_forward(layer, lm.decoder))
    n_wanted = len(lm.layers) * sum(p.numel() for p in expert.parameters())
    return max(1, round(n_wanted / sum(p.numel() for p in layer.parameters())))


def _fresh_layer(lm: LanguageModel, like: int) -> nn.Module:
    """An untrained layer of the kind of layer number `like`."""
    old, config = lm.layers[like], lm.decoder.config
    try:
        new = type(old)(config, like)
    except TypeError as error:
        raise LmError(
            f"language model {lm.base.name}: a layer of its family is not built from its configuration and a "
            f"number ({error}); use another, such as llama, qwen3 or gemma3"
        ) from error
    for owner in list(new.modules()):
        for name, linear in list(layers.linears(owner)):
            setattr(owner, name, fresh_linear(linear, config))
    return new.float()


def _replace(lm: LanguageModel, blocks: list[Any], kinds: list[str]) -> None:
    """Make these the decoder's layers, each knowing its number."""
    held, config = lm.layers, lm.decoder.config
    config.num_hidden_layers = len(blocks)
    if kinds:
        config.layer_types = kinds
    del held[:]
    held.extend(blocks)
    for number, block in enumerate(blocks):
        for part in block.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = number
    lm.layers_changed()
