"""No expert split: item tokens pass the same feed-forward layers as text (Item-LLM of the IDIOMoE paper)."""

from typing import Literal

from lexrec.lm import layers
from lexrec.lm.adapters.base import Adapter, AdapterConfig
from lexrec.lm.loading import LanguageModel, train


class SharedConfig(AdapterConfig):
    """What becomes of the one feed-forward part."""

    name: Literal["shared"] = "shared"
    train_ffn: bool = True
    """Train it for items and text alike; false leaves it as it was pretrained."""


class Shared(Adapter):
    """The language model as it is, fine-tuned or frozen."""

    config: SharedConfig

    def __init__(self, config: SharedConfig) -> None:
        self.config = config

    def apply(self, lm: LanguageModel) -> None:
        if not self.config.train_ffn:
            return
        for layer in lm.layers:
            for parameter in layer.get_submodule(layers.feed_forward(layer, lm.decoder)).parameters():
                train(parameter)
