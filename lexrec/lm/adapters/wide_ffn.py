"""Wide-FFN: the feed-forward layers get an item expert's neurons too, for every token (control of IDIOMoE).

Paper: IDIOMoE, https://arxiv.org/abs/2510.05125

    y_t = ffn(x_t) + added(x_t)      for items and text alike

A feed-forward layer is a sum over its neurons, so this is one layer, wider by the item expert's neurons. It
has as many parameters as the dual experts and lacks one thing, the split by type: what is learned for items
is added to text. The pretrained neurons stay frozen; the added ones give 0 at the start, so that training
starts at the pretrained language model.

Not in the paper's text that is public, hence ours: what is frozen, and the start.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from lexrec.lm import layers
from lexrec.lm.adapters.base import Adapter, AdapterConfig, chosen
from lexrec.lm.experts import narrow_copy
from lexrec.lm.loading import LanguageModel


class WideFfnConfig(AdapterConfig):
    """Where neurons are added, and how many."""

    name: Literal["wide_ffn"] = "wide_ffn"
    where: Literal["all", "first", "last"] = "all"
    """Layers that are widened."""
    n_layers: int = Field(8, ge=1)
    """How many, of where=first and where=last."""
    shrink: Literal[1, 2, 4, 8] = 1
    """Added are as many neurons as the layer has, divided by this."""


class WideFfn(Adapter):
    """More neurons for all tokens."""

    config: WideFfnConfig

    def __init__(self, config: WideFfnConfig) -> None:
        self.config = config

    def apply(self, lm: LanguageModel) -> None:
        for layer in chosen(lm.layers, self.config.where, self.config.n_layers):
            name = layers.feed_forward(layer, lm.decoder)
            pretrained = layer.get_submodule(name)
            added = narrow_copy(pretrained, lm.decoder.config, self.config.shrink)
            for _, linear in layers.linears(added):
                if linear.out_features == lm.width:
                    nn.init.zeros_(linear.weight)
            layer.set_submodule(name, _Widened(pretrained, added))


class _Widened(nn.Module):
    """The sum of two feed-forward parts."""

    def __init__(self, pretrained: nn.Module, added: nn.Module) -> None:
        super().__init__()
        self.pretrained = pretrained
        self.added = added

    def forward(self, x_RSW: Tensor) -> Tensor:
        y_RSW: Tensor = self.pretrained(x_RSW) + self.added(x_RSW)
        return y_RSW
