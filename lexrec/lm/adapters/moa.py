"""MoA: experts in attention. Queries, keys and values of items come from maps of their own.

Paper: the ablation of IDIOMoE, https://arxiv.org/abs/2510.05125

    q_t, k_t, v_t, o_t = maps of t's type      all tokens attend to each other as before

Text passes the pretrained maps; the feed-forward layers stay shared and frozen. Norms of queries and keys,
where a family has them, are shared.

Not in the paper's text that is public, hence ours: items' maps start as copies of the pretrained ones
(attention from noise would first have to find out where to look), and the map of the output is split too.
"""

from typing import Literal

from pydantic import Field

from lexrec.lm.adapters.base import Adapter, AdapterConfig, chosen
from lexrec.lm.experts import split_attention
from lexrec.lm.loading import LanguageModel


class MoaConfig(AdapterConfig):
    """Where attention is split."""

    name: Literal["moa"] = "moa"
    where: Literal["all", "first", "last"] = "all"
    """Layers whose attention is split."""
    n_layers: int = Field(8, ge=1)
    """How many, of where=first and where=last."""
    start: Literal["pretrained", "fresh"] = "pretrained"
    """Items' maps start as copies of the language model's, or from noise."""


class Moa(Adapter):
    """Attention projections of two types."""

    config: MoaConfig

    def __init__(self, config: MoaConfig) -> None:
        self.config = config

    def apply(self, lm: LanguageModel) -> None:
        for layer in chosen(lm.layers, self.config.where, self.config.n_layers):
            split_attention(layer, lm.decoder, self.config.start)
