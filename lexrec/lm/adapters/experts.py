"""IDIOMoE's dual experts: item tokens pass a feed-forward layer of their own, text keeps the pretrained one.

Paper: IDIOMoE, https://arxiv.org/abs/2510.05125

    y_t = text(x_t) if token t is text, else item(x_t)      static, by token type; one expert a token

`item` has the form of the language model's own layer (SwiGLU, GeGLU ...) and 1 / shrink of its inner width.
It starts from N(0, initializer_range) of the language model's configuration, or, which is ours, as a copy of
the pretrained one.
"""

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import nn

from lexrec.lm import layers
from lexrec.lm.adapters.base import Adapter, AdapterConfig, chosen
from lexrec.lm.experts import DualExpert, install, narrow_copy, trained_copy
from lexrec.lm.loading import LanguageModel


class ExpertsConfig(AdapterConfig):
    """Where experts are, and how wide."""

    name: Literal["experts"] = "experts"
    where: Literal["all", "first", "last"] = "all"
    """Layers that get an item expert; in the others items pass the pretrained layer."""
    n_layers: int = Field(8, ge=1)
    """How many, of where=first and where=last."""
    shrink: Literal[1, 2, 4, 8] = 1
    """The item expert's inner width is the language model's divided by this."""
    start: Literal["fresh", "pretrained"] = "fresh"
    """Item experts start from noise, or as copies of the language model's own."""

    @model_validator(mode="after")
    def _copies_are_whole(self) -> Self:
        if self.start == "pretrained" and self.shrink > 1:
            raise ValueError(
                f"start=pretrained copies whole layers, shrink={self.shrink} wants narrower; set one"
            )
        return self


class Experts(Adapter):
    """An item expert beside the frozen text expert of each chosen layer."""

    config: ExpertsConfig

    def __init__(self, config: ExpertsConfig) -> None:
        self.config = config

    def apply(self, lm: LanguageModel) -> None:
        for layer in chosen(lm.layers, self.config.where, self.config.n_layers):
            name = layers.feed_forward(layer, lm.decoder)
            text = layer.get_submodule(name)
            item = self._item(text, lm)
            install(layer, lm.decoder, name, DualExpert(text, item))

    def _item(self, text: nn.Module, lm: LanguageModel) -> nn.Module:
        if self.config.start == "pretrained":
            return trained_copy(text)
        return narrow_copy(text, lm.decoder.config, self.config.shrink)
