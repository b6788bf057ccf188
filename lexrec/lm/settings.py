"""Which pretrained language model a recommender is built on."""

from typing import Literal

from pydantic import Field

from lexrec.config import Config


class LmConfig(Config):
    """The pretrained language model, and how it is held."""

    model: str = Field("smollm2-135m", min_length=1)
    """smollm2-135m, gemma3-270m (both from the package index); OWNER/NAME@REVISION of the hub; a folder; a
    .gguf file."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the frozen weights and of the arithmetic around them. bf16 takes half the memory; what is trained
    stays fp32."""
    checkpointing: bool = False
    """Keep one input a layer for the backward pass and compute the rest again: less memory, a third more
    time."""
