"""Parts of a layer that know which of its tokens are items: two experts, one for each type of token.

Which expert a token passes is decided by its type (IDIOMoE, https://arxiv.org/abs/2510.05125), never by its
vector, so neither expert can change what the other's tokens become in this part.

Dimension key: R rows, S slots, W width.
"""

import copy
from typing import Any

from torch import Tensor, nn

from lexrec.errors import LmError
from lexrec.lm import layers
from lexrec.lm.loading import train
from lexrec.lm.stream import Stream


class Informed(nn.Module):
    """Base of what stands in for a part of a layer and is to know the stream: layers call parts with vectors
    alone, so the layer's attention, which is given the stream, passes it on before it runs.

    Attention runs again where a layer is computed anew for the backward pass, and this with it.
    """

    _stream: Stream | None = None

    def tell(self, _: nn.Module, __: Any, given: dict[str, Any]) -> None:
        """Hook before the attention."""
        self._stream = given.get("stream")

    def take_stream(self) -> Stream | None:
        """The stream of this pass, once; None where the language model reads text alone."""
        stream, self._stream = self._stream, None
        return stream


class DualExpert(Informed):
    """Text tokens pass one position-wise part, item tokens another."""

    def __init__(self, text: nn.Module, item: nn.Module) -> None:
        super().__init__()
        self.text = text
        self.item = item

    def forward(self, x_RSW: Tensor) -> Tensor:
        stream = self.take_stream()
        if stream is None or stream.route is None:
            y_RSW: Tensor = self.text(x_RSW)
            return y_RSW
        return stream.route.apply(x_RSW, self.item, self.text)


def install(layer: nn.Module, decoder: Any, name: str, part: Informed) -> None:
    """Put `part` in the place of the layer's submodule `name`, and see that it is told of the stream.

    `name` is anything that runs after the attention begins: the feed-forward part, or what is inside the
    attention (`self_attn.q_proj`).
    """
    attention = layers.attention(layer, decoder)
    layer.set_submodule(name, part)
    layer.get_submodule(attention).register_forward_pre_hook(part.tell, with_kwargs=True)


def split_attention(layer: nn.Module, decoder: Any, start: str) -> None:
    """Give each map of a layer's attention a second one for items, a copy or (start=fresh) untrained."""
    name = layers.attention(layer, decoder)
    for child, linear in list(layers.linears(layer.get_submodule(name))):
        item = trained_copy(linear) if start == "pretrained" else fresh_linear(linear, decoder.config)
        install(layer, decoder, f"{name}.{child}", DualExpert(linear, item))


def trained_copy(part: nn.Module) -> nn.Module:
    """The same weights, to be trained: in float32."""
    new = copy.deepcopy(part)
    for parameter in new.parameters():
        train(parameter)
    return new


def fresh_linear(
    like: nn.Linear, config: Any, n_in: int | None = None, n_out: int | None = None
) -> nn.Linear:
    """A linear map with the weights a language model of this configuration starts from."""
    new = nn.Linear(n_in or like.in_features, n_out or like.out_features, bias=like.bias is not None)
    nn.init.normal_(new.weight, std=getattr(config, "initializer_range", 0.02))
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new


def narrow_copy(part: nn.Module, config: Any, shrink: int = 1) -> nn.Module:
    """A feed-forward part of the same form, activation and all, `shrink` times narrower inside, untrained.

    Raises:
        LmError: shrink does not divide the intermediate size.
    """
    inner, width = config.intermediate_size, config.hidden_size
    if inner % shrink:
        raise LmError(f"shrink {shrink} does not divide the language model's intermediate size {inner}")
    instead: dict[int, Any] = {}
    for _, old in layers.linears(part):
        # (W, I) and (W, 2I) shrink in what comes out, (I, W) in what goes in.
        n_in = old.in_features // (1 if old.in_features == width else shrink)
        n_out = old.out_features // (1 if old.out_features == width else shrink)
        instead[id(old)] = fresh_linear(old, config, n_in, n_out)
    # Only what is around the maps is copied: the activation, and how they are put together.
    return copy.deepcopy(part, instead)
