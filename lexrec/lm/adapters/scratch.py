"""ID Transformer: the language model's architecture, drawn anew and trained whole (baseline of IDIOMoE).

Paper: IDIOMoE, https://arxiv.org/abs/2510.05125: the same decoder over item ids, from scratch.

Layers and the last norm start as the family's own code starts them; nothing is left of what was pretrained
but the text table, which ids alone never read. What such a model reaches less than one that starts pretrained
is what pretraining is worth. A decoder of a size that suits the data instead is the model `id_decoder`.
"""

from typing import Literal

import torch

from lexrec.lm.adapters.base import Adapter, AdapterConfig
from lexrec.lm.loading import LanguageModel, train


class ScratchConfig(AdapterConfig):
    """Nothing to choose."""

    name: Literal["scratch"] = "scratch"


class Scratch(Adapter):
    """Every layer from random weights."""

    config: ScratchConfig

    def __init__(self, config: ScratchConfig) -> None:
        self.config = config

    @torch.no_grad()
    def apply(self, lm: LanguageModel) -> None:
        fresh = type(lm.decoder)(lm.decoder.config)
        table = {id(p) for p in lm.causal.get_input_embeddings().parameters()}
        for old, new in zip(lm.decoder.parameters(), fresh.parameters(), strict=True):
            if id(old) not in table:
                train(old, is_pretrained=False)
                old.copy_(new)
