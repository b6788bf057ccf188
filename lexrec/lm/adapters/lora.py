"""LoRA-LLM: low-rank updates of the frozen language model, for every token (control of IDIOMoE).

Paper: LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685; as a control in IDIOMoE,
https://arxiv.org/abs/2510.05125

    y_t = W x_t + scale B A x_t      A: rank x in, from noise; B: out x rank, from 0

By Hugging Face's peft, of which only the layers are used: A and B are saved as safetensors with the rest of
what was trained. There is no dropout on the update.
"""

from typing import Literal

from pydantic import Field
from torch import nn

from lexrec.errors import LmError
from lexrec.lm import layers
from lexrec.lm.adapters.base import Adapter, AdapterConfig
from lexrec.lm.loading import LanguageModel, train


class LoraConfig(AdapterConfig):
    """What is updated, and by how much."""

    name: Literal["lora"] = "lora"
    on: tuple[Literal["attention", "ffn"], ...] = Field(("attention", "ffn"), min_length=1)
    """Parts of each layer whose matrices are updated."""
    rank: int | None = Field(None, ge=1)
    """null: that which takes as many parameters as an item expert in each layer would."""
    scale: float = Field(2.0, gt=0)
    """Of the update; in LoRA's words alpha / rank."""


class Lora(Adapter):
    """peft's layers in place of the linear maps."""

    config: LoraConfig

    def __init__(self, config: LoraConfig) -> None:
        self.config = config

    def apply(self, lm: LanguageModel) -> None:
        try:
            import peft
        except ImportError as error:
            raise LmError(
                "adapter lora needs peft, which is missing; pip install 'lexrec[lm]', or use another"
            ) from error
        found = [linear for layer in lm.layers for linear in self._linears(layer, lm)]
        names = {id(part): name for name, part in lm.causal.named_modules()}
        rank = self.config.rank or self._matched_rank(lm)
        trained = [parameter for parameter in lm.causal.parameters() if parameter.requires_grad]
        config = peft.LoraConfig(
            r=rank, lora_alpha=self.config.scale * rank, target_modules=[names[id(one)] for one in found]
        )
        peft.inject_adapter_in_model(config, lm.causal)
        # peft leaves nothing but its own to be trained.
        for parameter in trained:
            train(parameter)
        for name, parameter in lm.causal.named_parameters():
            if "lora_" in name:
                train(parameter, is_pretrained=False)

    def _linears(self, layer: nn.Module, lm: LanguageModel) -> list[nn.Linear]:
        part_of = {"attention": layers.attention, "ffn": layers.feed_forward}
        names = [part_of[part](layer, lm.decoder) for part in self.config.on]
        return [linear for name in names for _, linear in layers.linears(layer.get_submodule(name))]

    def _matched_rank(self, lm: LanguageModel) -> int:
        layer = lm.layers[0]
        expert = layer.get_submodule(layers.feed_forward(layer, lm.decoder))
        n_wanted = sum(linear.weight.numel() for _, linear in layers.linears(expert))
        n_a_rank = sum(linear.in_features + linear.out_features for linear in self._linears(layer, lm))
        return max(1, round(n_wanted / n_a_rank))
