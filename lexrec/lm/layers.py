"""Finds a decoder's layers and what is in them by their form, whatever its family calls them.

Dimension key: W width.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from lexrec.errors import LmError


def blocks(decoder: Any) -> nn.ModuleList:
    """The list of a decoder's layers.

    Raises:
        LmError: there is none.
    """
    n_layers = decoder.config.num_hidden_layers
    for part in decoder.modules():
        if isinstance(part, nn.ModuleList) and len(part) == n_layers:
            return part
    raise LmError(f"language model of family {_family(decoder)} has no list of {n_layers} layers")


def feed_forward(layer: nn.Module, decoder: Any) -> str:
    """Name of a layer's feed-forward part: linear maps between the width and the intermediate size.

    Raises:
        LmError: there is not exactly one, as in mixtures of experts.
    """
    width, inner = decoder.config.hidden_size, decoder.config.intermediate_size
    # Gate and up are one matrix in some families.
    known = {(width, inner), (width, 2 * inner), (inner, width)}
    found = []
    for name, part in layer.named_children():
        shapes = [(one.in_features, one.out_features) for one in part.children() if _is_linear(one)]
        if shapes and set(shapes) <= known and (inner, width) in shapes:
            found.append(name)
    return _the_one(found, "feed-forward part", layer, decoder)


def attention(layer: nn.Module, decoder: Any) -> str:
    """Name of a layer's attention: the other part that holds linear maps.

    Raises:
        LmError: there is not exactly one.
    """
    other = feed_forward(layer, decoder)
    found = [
        name
        for name, part in layer.named_children()
        if name != other and any(_is_linear(one) for one in part.modules())
    ]
    return _the_one(found, "attention", layer, decoder)


def norms(layer: nn.Module) -> list[str]:
    """Names of a layer's norms: what has weights and no linear map."""
    return [
        name
        for name, part in layer.named_children()
        if any(True for _ in part.parameters()) and not any(_is_linear(one) for one in part.modules())
    ]


def linears(part: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear maps directly inside a part."""
    for name, one in part.named_children():
        if isinstance(one, nn.Linear):
            yield name, one


def _is_linear(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear)


def _the_one(names: list[str], what: str, layer: nn.Module, decoder: Any) -> str:
    if len(names) == 1:
        return names[0]
    found = ", ".join(names) or "none"
    parts = ", ".join(name for name, _ in layer.named_children())
    raise LmError(
        f"language model of family {_family(decoder)}: a layer has one {what} of linear maps, found {found} "
        f"among {parts}; use a dense decoder such as llama, qwen3 or gemma3"
    )


def _family(decoder: Any) -> str:
    return repr(getattr(decoder.config, "model_type", type(decoder).__name__))
