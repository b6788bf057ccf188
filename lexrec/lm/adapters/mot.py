"""MoT: items have norms, attention projections and feed-forward layers of their own; attention is joint.

Paper: Mixture-of-Transformers, Liang et al. 2024, https://arxiv.org/abs/2411.04996; as an ablation in
IDIOMoE, https://arxiv.org/abs/2510.05125

    a_t = x_t + o(attention(q, k, v of norm(x)))      norm, q, k, v, o: of each token's type
    y_t = a_t + ffn(norm(a_t))                        norm, ffn: of t's type

Every weight of a layer exists twice; types meet in the attention alone, where each token sees all earlier
ones. Norms of queries and keys, where a family has them, belong to the joint attention and are shared.

Not in the paper's text that is public, hence ours: norms and projections of items start as copies, their
feed-forward layer from noise as IDIOMoE's item expert does, so that the two differ in what is split alone.
"""

from typing import Any, Literal

from pydantic import Field
from torch import nn

from lexrec.lm import layers
from lexrec.lm.adapters.base import Adapter, AdapterConfig, chosen
from lexrec.lm.experts import DualExpert, install, narrow_copy, split_attention, trained_copy
from lexrec.lm.loading import LanguageModel
from lexrec.lm.stream import Stream


class MotConfig(AdapterConfig):
    """Where layers are split, and how wide items' feed-forward part is."""

    name: Literal["mot"] = "mot"
    where: Literal["all", "first", "last"] = "all"
    """Layers that are split."""
    n_layers: int = Field(8, ge=1)
    """How many, of where=first and where=last."""
    start: Literal["pretrained", "fresh"] = "pretrained"
    """Items' attention projections start as copies of the language model's, or from noise."""
    shrink: Literal[1, 2, 4, 8] = 1
    """The inner width of items' feed-forward part is the language model's divided by this."""


class Mot(Adapter):
    """Whole layers of two types."""

    config: MotConfig

    def __init__(self, config: MotConfig) -> None:
        self.config = config

    def apply(self, lm: LanguageModel) -> None:
        for layer in chosen(lm.layers, self.config.where, self.config.n_layers):
            norms = layers.norms(layer)
            ffn = layers.feed_forward(layer, lm.decoder)
            text = layer.get_submodule(ffn)
            item = narrow_copy(text, lm.decoder.config, self.config.shrink)
            split_attention(layer, lm.decoder, self.config.start)
            install(layer, lm.decoder, ffn, DualExpert(text, item))
            for name in norms:
                norm = layer.get_submodule(name)
                dual = _Norms(norm, trained_copy(norm))
                layer.set_submodule(name, dual)
                layer.register_forward_pre_hook(dual.tell, with_kwargs=True)


class _Norms(DualExpert):
    """Norms run before the attention too, so the layer tells them of the stream.

    Its hooks do not run again where it is computed anew for the backward pass: what they were told of the
    types is kept until they are told again.
    """

    def tell(self, _: nn.Module, __: Any, given: dict[str, Any]) -> None:
        stream = given.get("stream")
        self._stream = None if stream is None else stream._replace(masks={}, added_RSW=None, aux=None)

    def take_stream(self) -> Stream | None:
        return self._stream
