"""A feed-forward layer with two experts: the pretrained one for text, another of the same form for items.

Which expert a token passes is decided by its type (IDIOMoE, https://arxiv.org/abs/2510.05125), never by its
vector, so neither expert can change what the other's tokens become in this layer.

Dimension key: R rows, S slots, W width.
"""

import copy
from typing import Any

from torch import Tensor, nn

from lexrec.errors import LmError
from lexrec.lm import layers
from lexrec.lm.routing import Route


class DualExpert(nn.Module):
    """Takes the place of a layer's feed-forward part."""

    def __init__(self, text: nn.Module, item: nn.Module) -> None:
        super().__init__()
        self.text = text
        self.item = item
        self._route: Route | None = None

    def take_route(self, _: nn.Module, __: Any, given: dict[str, Any]) -> None:
        """Hook before the layer's attention, which sees the stream: layers call this part with vectors alone.

        Attention runs again where a layer is computed anew for the backward pass, and this with it.
        """
        stream = given.get("stream")
        self._route = None if stream is None else stream.route

    def forward(self, x_RSW: Tensor) -> Tensor:
        route, self._route = self._route, None
        if route is None:
            y_RSW: Tensor = self.text(x_RSW)
            return y_RSW
        return route.apply(x_RSW, self.item, self.text)


def add_item_expert(layer: nn.Module, decoder: Any, shrink: int) -> None:
    """Give a layer a second expert, `shrink` times narrower inside, with fresh weights.

    Raises:
        LmError: the layer has no feed-forward part of a known form, or shrink does not divide its size.
    """
    name, attention = layers.feed_forward(layer, decoder), layers.attention(layer, decoder)
    text = layer.get_submodule(name)
    dual = DualExpert(text, narrow_copy(text, decoder.config, shrink))
    layer.set_submodule(name, dual)
    layer.get_submodule(attention).register_forward_pre_hook(dual.take_route, with_kwargs=True)


def narrow_copy(part: nn.Module, config: Any, shrink: int = 1) -> nn.Module:
    """A feed-forward part of the same form, activation and all, `shrink` times narrower inside, untrained.

    Raises:
        LmError: shrink does not divide the intermediate size.
    """
    inner, width = config.intermediate_size, config.hidden_size
    if inner % shrink:
        raise LmError(f"shrink {shrink} does not divide the language model's intermediate size {inner}")
    copied = copy.deepcopy(part)
    for name, old in list(layers.linears(part)):
        # (W, I) and (W, 2I) shrink in what comes out, (I, W) in what goes in.
        n_in = old.in_features // (1 if old.in_features == width else shrink)
        n_out = old.out_features // (1 if old.out_features == width else shrink)
        new = nn.Linear(n_in, n_out, bias=old.bias is not None)
        nn.init.normal_(new.weight, std=getattr(config, "initializer_range", 0.02))
        if new.bias is not None:
            nn.init.zeros_(new.bias)
        setattr(copied, name, new)
    return copied.requires_grad_(True)
