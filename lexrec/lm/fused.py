"""Kernels of a training step in the place of what a decoder's layers do call by call, found by form.

A part is served if on random numbers it does what its kernel is for (lexrec/kernels/rms_norm.py, gated.py,
rotary.py), whatever its family calls it and however it is written; all others stay as they are. What is
served still runs the family's own code wherever no step is trained in 16 bits on a GPU.

Dimension key: D width, K head width.
"""

import copy
from collections.abc import Callable
from itertools import permutations
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lexrec.kernels._training import trains_in_16_bits
from lexrec.kernels.gated import ACTIVATIONS, Activation, activated, gated, gated_halves, narrow_linear
from lexrec.kernels.rms_norm import RmsForm, rms_norm
from lexrec.kernels.rotary import rotary
from lexrec.lm import layers

_ROTARY = "apply_rotary_pos_emb"
"""What attentions of transformers call for queries and keys."""
Forward = Callable[..., Any]


@torch.no_grad()
def install(decoder: Any) -> None:
    """Serve what can be served in all layers there are now; adapters come before."""
    inside = {id(part) for part in layers.blocks(decoder).modules()}
    # The checks run on the CPU, in float64.
    with torch.autocast("cpu", enabled=False):
        for part in decoder.modules():
            forward = _forward_of(part, is_inside=id(part) in inside)
            if forward is not None:
                # Bound to the part, as its class's own is: a deep copy of the part has its own.
                part.forward = MethodType(forward, part)


def _forward_of(part: nn.Module, is_inside: bool) -> Forward | None:
    if is_trained_map(part):
        return _linear
    norm = norm_form(part)
    if norm is not None:
        # Within layers linear maps, 16 bits themselves, or sums with the residual read it.
        return _norm(norm, narrow=is_inside)
    gate = gate_form(part)
    return _feed_forward(gate) if gate is not None else _attention(part)


def is_trained_map(part: nn.Module) -> bool:
    """True for a linear map without bias whose float32 weight is trained."""
    parameters = dict(part.named_parameters(recurse=False))
    return (
        type(part) is nn.Linear
        and list(parameters) == ["weight"]
        and parameters["weight"].requires_grad
        and parameters["weight"].dtype == torch.float32
    )


def _linear(self: nn.Linear, x: Tensor) -> Tensor:
    if trains_in_16_bits(x) and is_trained_map(self):
        return narrow_linear(x, self.weight)
    return type(self).forward(self, x)


@torch.no_grad()
def norm_form(part: nn.Module) -> RmsForm | None:
    """The norm that a part is; None where it is none."""
    weights = list(part.parameters())
    if len(weights) != 1 or weights[0].ndim != 1 or any(True for _ in part.children()):
        return None
    draws, one = torch.Generator().manual_seed(0), copy.deepcopy(part).cpu().double()
    weight_D = next(one.parameters())
    weight_D.normal_(generator=draws)
    # Some rows so small that eps matters.
    size_41 = torch.tensor([[1e-3], [1e-2], [1.0], [30.0]], dtype=torch.float64)
    x_4D = size_41 * torch.randn(4, len(weight_D), generator=draws, dtype=torch.float64)
    found = _result(one, x_4D)
    for eps in {value for value in vars(part).values() if isinstance(value, float)}:
        for form in (RmsForm(eps, 0.0), RmsForm(eps, 1.0)):
            if _is_close(found, rms_norm(x_4D, weight_D, form, torch.float64)):
                return form
    return None


def _norm(form: RmsForm, narrow: bool) -> Forward:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        if not trains_in_16_bits(x):
            y: Tensor = type(self).forward(self, x)
            return y
        dtype = torch.get_autocast_dtype("cuda") if narrow else x.dtype
        return rms_norm(x, next(self.parameters()), form, dtype)

    return forward


class GateForm(NamedTuple):
    """Which maps of a gated feed-forward part do what."""

    first: tuple[str, ...]
    """Gate and up, or the one that is both, gates before ups."""
    down: str
    activation: Activation


@torch.no_grad()
def gate_form(part: nn.Module) -> GateForm | None:
    """How a part is a gated feed-forward layer; None where it is none."""
    # Layers of peft, which are not torch's, say their sizes too.
    maps: dict[str, Any] = {name: one for name, one in part.named_children() if hasattr(one, "in_features")}
    if len(maps) not in (2, 3):
        return None
    shapes = {name: (one.in_features, one.out_features) for name, one in maps.items()}
    for down, (inner, width) in shapes.items():
        others = [name for name in maps if name != down]
        if any(shapes[name] != (width, inner * (3 - len(others))) for name in others):
            continue
        small = _small(part, maps, inner, width)
        x = torch.linspace(-2, 2, 20, dtype=torch.float64).view(5, 4)
        found = _result(small, x)
        for first in permutations(others):
            for activation in ACTIVATIONS:
                form = GateForm(first, down, activation)
                if _is_close(found, _written_out(small, x, form)):
                    return form
    return None


def _small(part: nn.Module, maps: dict[str, Any], inner: int, width: int) -> nn.Module:
    """The part's code around a few neurons in place of its maps, float64."""
    draws, new = torch.Generator().manual_seed(0), {width: 4}
    new.setdefault(inner, 3)
    instead: dict[int, Any] = {}
    for one in maps.values():
        n_out = new[width] if one.out_features == width else new[inner] * (one.out_features // inner)
        linear = nn.Linear(new[one.in_features], n_out, bias=False, dtype=torch.float64)
        instead[id(one)] = linear
        linear.weight.normal_(generator=draws)
    return copy.deepcopy(part, instead)


def _written_out(part: nn.Module, x: Tensor, form: GateForm) -> Tensor:
    made = [getattr(part, name)(x) for name in form.first]
    gate, up = made if len(made) == 2 else made[0].chunk(2, -1)
    y: Tensor = getattr(part, form.down)(activated(gate, form.activation) * up)
    return y


def _feed_forward(form: GateForm) -> Forward:
    def forward(self: nn.Module, x: Tensor) -> Any:
        if not trains_in_16_bits(x):
            return type(self).forward(self, x)
        first = [getattr(self, name) for name in form.first]
        if len(first) == 2 and all(is_trained_map(one) for one in first):
            inner = gated_halves(narrow_linear(x, *(one.weight for one in first)), form.activation)
        elif len(first) == 2:
            inner = gated(first[0](x), first[1](x), form.activation)
        else:
            inner = gated_halves(first[0](x), form.activation)
        return getattr(self, form.down)(inner)

    return forward


def _attention(part: nn.Module) -> Forward | None:
    """The family's own forward, in a copy in which the name of the rotation stands for the kernel's."""
    own = type(part).forward
    if not isinstance(own, FunctionType) or _ROTARY not in own.__code__.co_names:
        return None
    turn = own.__globals__.get(_ROTARY)
    if turn is None or not _turns_halves(turn):
        return None
    names = {**own.__globals__, _ROTARY: _served(turn)}
    forward = FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
    forward.__kwdefaults__ = own.__kwdefaults__
    return forward


def _served(turn: Forward) -> Forward:
    def turned(q_RHSK: Tensor, k_RGSK: Tensor, cos_RSK: Tensor, sin_RSK: Tensor, *more: Any) -> Any:
        # Heads of which only a part is turned are the family's own affair.
        if more or not trains_in_16_bits(q_RHSK) or cos_RSK.shape[-1] != q_RHSK.shape[-1]:
            return turn(q_RHSK, k_RGSK, cos_RSK, sin_RSK, *more)
        return rotary(q_RHSK, k_RGSK, cos_RSK, sin_RSK)

    return turned


def _turns_halves(turn: Forward) -> bool:
    """True if a family's rotation is that of `rotary`."""
    draws = torch.Generator().manual_seed(0)
    shapes = (2, 4, 3, 8), (2, 2, 3, 8), (2, 3, 8), (2, 3, 8)
    given = [torch.randn(shape, generator=draws, dtype=torch.float64) for shape in shapes]
    try:
        found = turn(*given)
        return all(_is_close(one, true) for one, true in zip(found, rotary(*given), strict=True))
    except Exception:  # It takes other things: it is no such rotation.
        return False


def _result(part: nn.Module, x: Tensor) -> Any:
    """Of the part's own code; None where it does not take vectors alone."""
    try:
        return type(part).forward(part, x)
    except Exception:  # Whatever it wants, it is not what is looked for.
        return None


def _is_close(found: Any, true: Tensor) -> bool:
    """Some families compute in float32 whatever they are given."""
    is_alike = isinstance(found, Tensor) and found.shape == true.shape
    return is_alike and torch.allclose(found.double(), true, rtol=1e-5, atol=1e-6)
