"""Kernels in the place of a decoder's layers: what is found, what stays, and whole steps through them."""

import copy
import importlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from lexrec.kernels import gated, rms_norm, rotary, stream_attention
from lexrec.kernels.rms_norm import RmsForm
from lexrec.lm import fused, layers, loading, stream
from tests.unit.kernels.conftest import Interpreted
from tests.unit.kernels.conftest import interpreted as interpreted
from tests.unit.lm.test_adapters import ADAPTERS, FAMILIES, built, one_loss, pretrained

SERVED = (gated, rms_norm, rotary, stream_attention, fused, loading, stream)
VARIANTS: dict[str, dict[str, Any]] = {
    "mot": {},
    "lora": {},
    "hybrid": {},
    "append": {},
    "ids alone": {"columns": ()},
    "attention": {"train_attention": True},
    "begin token": {"begin": True},
    "max_tokens": {"max_tokens": 6},
    "computed again": {"lm": {"checkpointing": True}},
}


def trains(_: Tensor) -> bool:
    """As on a GPU, of autocast on a CPU."""
    return torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")


@pytest.fixture
def in_kernels(interpreted: Interpreted, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreted("_rms_norm_triton")
    for module in SERVED:
        monkeypatch.setattr(module, "trains_in_16_bits", trains)


def gradients(variant: str, family: str, is_narrow: bool) -> tuple[dict[str, Tensor], Any]:
    """Of one batch's loss, by parameter, and the model."""
    options = {
        "adapter": variant if variant in ADAPTERS else "experts",
        "text_len": 2,
        **VARIANTS.get(variant, {}),
    }
    model = built(family=family, **options).train()
    with torch.autocast("cpu", torch.float16, enabled=is_narrow, cache_enabled=False):
        loss = one_loss(model)["loss"]
    torch.autograd.backward(loss)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, model


@pytest.mark.usefixtures("in_kernels")
@pytest.mark.parametrize(
    ("variant", "family"),
    [*((name, "gemma3_text") for name in VARIANTS), ("wide_ffn", "llama"), ("moa", "qwen3")],
)
def test_a_step_through_kernels_has_the_gradients_of_plain_arithmetic(variant: str, family: str) -> None:
    plain, _ = gradients(variant, family, is_narrow=False)
    quick, model = gradients(variant, family, is_narrow=True)
    assert quick.keys() == plain.keys()
    assert any("forward" in vars(part) for part in model.lm.modules()), "nothing was served"
    for name, gradient in plain.items():
        error = (quick[name] - gradient).norm() / gradient.norm().clamp(min=1e-3)
        assert error < 5e-2, name


@pytest.mark.parametrize(("family", "n_norms"), [("llama", 2), ("qwen3", 4), ("gemma3_text", 6)])
def test_every_part_of_a_layer_is_found(family: str, n_norms: int) -> None:
    lm = copy.deepcopy(pretrained(family))
    form = RmsForm(1e-6, 1.0 if family == "gemma3_text" else 0.0)
    activation = "gelu_tanh" if family == "gemma3_text" else "silu"
    fused.install(lm.decoder)
    for layer in lm.layers:
        assert [f for f in map(fused.norm_form, layer.modules()) if f] == [form] * n_norms
        ffn = layer.get_submodule(layers.feed_forward(layer, lm.decoder))
        assert fused.gate_form(ffn) == (("gate_proj", "up_proj"), "down_proj", activation)
        attention = layer.get_submodule(layers.attention(layer, lm.decoder))
        assert "forward" in vars(attention)
    # Those, the feed-forward part and the attention of each layer, and the last norm.
    n_served = sum("forward" in vars(part) for part in lm.modules())
    assert n_served == len(lm.layers) * (n_norms + 2) + 1


class Halves(nn.Module):
    """Gate and up as one map, which some families have."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.out = nn.Linear(6, 10, bias=False), nn.Linear(5, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, -1)
        return self.out(F.gelu(gate) * up)


class Scaled(Halves):
    def forward(self, x: Tensor) -> Tensor:
        return 1.01 * super().forward(x)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)))


def interleaved(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    def turned(x: Tensor) -> Tensor:
        other = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        return x * cos[:, None] + other * sin[:, None]

    return turned(q), turned(k)


def test_what_only_looks_alike_stays() -> None:
    assert fused.gate_form(Halves()) == (("both",), "out", "gelu")
    assert fused.gate_form(Scaled()) is None
    assert fused.gate_form(Plain()) is None
    assert fused.norm_form(nn.RMSNorm(6, eps=1e-5)) == RmsForm(1e-5, 0.0)
    assert fused.norm_form(nn.LayerNorm(6, bias=False)) is None
    assert fused.norm_form(nn.PReLU(6)) is None
    assert not fused._turns_halves(interleaved)
    assert not fused._turns_halves(lambda q: q)


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_is_bit_for_bit_what_it_was(family: str) -> None:
    lm = copy.deepcopy(pretrained(family))
    fused.install(lm.decoder)
    token_BS = torch.tensor([[6, 7, 8, 9, 10], [11, 6, 12, 7, 8]])
    for is_narrow in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_narrow):
            ours, theirs = (one.causal(token_BS).logits for one in (lm, pretrained(family)))
        assert torch.equal(ours, theirs)


def test_a_copy_of_what_is_served_is_served_by_itself() -> None:
    lm = copy.deepcopy(pretrained("llama"))
    fused.install(lm.decoder)
    norm = lm.layers[0].input_layernorm
    other = copy.deepcopy(norm)
    nn.init.zeros_(other.weight)
    x = torch.randn(3, lm.width)
    assert not other(x).any()
    assert norm(x).all()


KERNELS = {
    "_rms_norm_triton": {"rms_norm": 1, "gradients": 1},
    "_gated_triton": {"gated": 1, "gradients": 1},
    "_rotary_triton": {"turned": 1},
    "_stream_attention_triton": {"attention": 1, "gradients": 2},
}
"""How many kernels functions launch."""


class Launches(TorchDispatchMode):
    """Counts what a GPU would run a kernel for."""

    FREE = ("view", "expand", "transpose", "aten.t.", "slice.", "unsqueeze", "permute", "detach", "split")
    FREE += ("alias", "select.", "as_strided", "unfold.default", "squeeze", "empty")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def counts(self, name: str, function: Callable[..., Any], n_kernels: int) -> Callable[..., Any]:
        """The function, whose kernels are counted under `name`, and nothing that it calls."""

        def counted(*args: Any, **named: Any) -> Any:
            self.found[name] += n_kernels
            with _disable_current_modes():
                return function(*args, **named)

        return counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not any(free in str(func) for free in self.FREE):
            self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def launches(n_layers: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Of a step of the dual experts over ids alone with so many of the layers."""
    model = built("experts", columns=()).train()
    decoder = model.lm.decoder
    decoder.config.num_hidden_layers = n_layers
    decoder.layers = decoder.layers[:n_layers]
    for parameter in model.lm.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.half()
    counts = Launches()
    with torch.autocast("cpu", torch.float16):
        one_loss(model)  # What there is to serve is found in the first step.
    with monkeypatch.context() as patch, counts:
        for name, functions in KERNELS.items():
            module = importlib.import_module(f"lexrec.kernels.{name}")
            for function, n_kernels in functions.items():
                counted = counts.counts(name, getattr(module, function), n_kernels)
                patch.setattr(module, function, counted)
        with torch.autocast("cpu", torch.float16, cache_enabled=False):
            loss = one_loss(model)["loss"]
        torch.autograd.backward(loss)
    return counts.found


@pytest.mark.usefixtures("in_kernels")
def test_a_layer_takes_few_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    a_layer = launches(2, monkeypatch) - launches(1, monkeypatch)
    assert a_layer["_rms_norm_triton"] == 4
    assert a_layer["_gated_triton"] == a_layer["_rotary_triton"] == 2
    assert a_layer["_stream_attention_triton"] == 3
    # The rest are casts of float32 weights and gradients, and sums with the residual. It was 137 by
    # transformers' own layers.
    assert a_layer["aten.mm.default"] == 14
    assert a_layer.total() <= 38, a_layer
