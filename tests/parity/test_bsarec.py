"""BSARec against numpy's FFT and attention written out, in float64."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.testing import assert_close

from lexrec.data.batch import collate
from lexrec.models.bsarec import BSARec, BSARecConfig
from tests import components
from tests.components import packed, ragged

Array = NDArray[np.float64]


def build(max_len: int = 8, n_heads: int = 2, alpha: float = 0.7, c: int = 3) -> BSARec:
    torch.manual_seed(0)
    config = BSARecConfig(dim=6, max_len=max_len, n_heads=n_heads, alpha=alpha, c=c)
    model = BSARec(config, components.build_encoder("id_embedding", 6)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.items.embedding.weight[0] = 0
    return model


def array(tensor: Tensor) -> Array:
    return tensor.detach().numpy()


def linear(x: Array, module: torch.nn.Linear) -> Array:
    return x @ array(module.weight).T + array(module.bias)


def layer_norm(x: Array, module: torch.nn.LayerNorm) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + 1e-5) * array(module.weight) + array(module.bias)


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attention(x: Array, block: torch.nn.Module, is_item: list[bool]) -> Array:
    """Position by position and head by head; a padded position has only itself."""
    qkv, width = linear(x, block.attention.qkv), x.shape[1] // block.attention.n_heads
    d, out = x.shape[1], np.zeros_like(x)
    for t in range(len(x)):
        seen = [s for s in range(t + 1) if is_item[s] or s == t]
        for h in range(block.attention.n_heads):
            at = slice(h * width, (h + 1) * width)
            q, k, v = qkv[t, :d][at], qkv[seen, d : 2 * d][:, at], qkv[seen, 2 * d :][:, at]
            share = np.exp(k @ q / math.sqrt(width))
            out[t, at] = share / share.sum() @ v
    return linear(out, block.attention.out)


def by_hand(model: BSARec, item_L: list[int]) -> Array:
    """One row of max_len items and padding, [L, D]."""
    config, is_item = model.config, [item > 0 for item in item_L]
    x = array(model.items.embedding.weight)[item_L] + array(model.position.weight)
    x = layer_norm(x, model.input_norm)
    for block in model.blocks:
        bins = np.fft.rfft(x, axis=0, norm="ortho")
        bins[config.c // 2 + 1 :] = 0
        low = np.fft.irfft(bins, n=len(x), axis=0, norm="ortho")
        dsp = layer_norm(x + low + array(block.beta_D) ** 2 * (x - low), block.dsp_norm)
        gsp = layer_norm(x + attention(x, block, is_item), block.gsp_norm)
        x = config.alpha * dsp + (1 - config.alpha) * gsp
        x = layer_norm(x + linear(gelu(linear(x, block.up)), block.down), block.ffn_norm)
    return x


@pytest.mark.parametrize(
    ("max_len", "n_heads", "alpha", "c"), [(8, 2, 0.9, 3), (9, 1, 0.7, 5), (8, 3, 0.5, 0), (8, 1, 0.4, 30)]
)
def test_bsarec_equals_its_equations_in_numpy(max_len: int, n_heads: int, alpha: float, c: int) -> None:
    model = build(max_len, n_heads, alpha, c)
    batch = collate([[3, 1, 4, 1, 5, 9, 2, 6], [5], [], [8, 9, 7]], max_len)
    found_BLD = model(batch).hidden_BLD
    for b, item_L in enumerate(batch.item_BL.tolist()):
        np.testing.assert_allclose(array(found_BLD[b]), by_hand(model, item_L), rtol=1e-10, atol=1e-12)
    assert_close(model(packed(batch)).hidden_BLD, found_BLD)


def test_low_frequencies_are_waves_gradients_too() -> None:
    """The low part is the projection on the constant and the first wave; beta scales what is left."""
    block, L = build(c=3).blocks[0], 8
    x_LD = torch.randn(L, 6, dtype=torch.float64, requires_grad=True)
    angle_L = 2 * math.pi * torch.arange(L, dtype=torch.float64) / L
    waves = [torch.ones(L, dtype=torch.float64) / math.sqrt(L)]
    waves += [wave / math.sqrt(L / 2) for wave in (angle_L.cos(), angle_L.sin())]
    low_LD = sum((wave_L[:, None] * (wave_L @ x_LD) for wave_L in waves), torch.zeros_like(x_LD))
    expected_LD = low_LD + block.beta_D**2 * (x_LD - low_LD)
    found_LD = block._rescaled(x_LD[None])[0]
    assert_close(found_LD, expected_LD)
    pull_LD, wanted = torch.randn_like(x_LD), [x_LD, block.beta_D]
    mine = torch.autograd.grad((found_LD * pull_LD).sum(), wanted)
    for one, other in zip(mine, torch.autograd.grad((expected_LD * pull_LD).sum(), wanted), strict=True):
        assert_close(one, other)


def test_gradients_of_the_whole_model_are_its_slopes() -> None:
    model, batch = build(), ragged()
    parameters = list(model.parameters())
    weight_D = torch.randn(6, dtype=torch.float64)

    def loss() -> Tensor:
        return (model(batch).hidden_BLD[:, -1] @ weight_D).square().sum()

    slopes = torch.autograd.grad(loss(), parameters)
    for parameter, slope in zip(parameters, slopes, strict=True):
        direction = torch.randn_like(parameter)
        if parameter is model.items.embedding.weight:
            direction[0] = 0  # the vector of padding is no parameter
        with torch.no_grad():
            parameter.add_(1e-6 * direction)
            above = loss()
            parameter.sub_(2e-6 * direction)
            below = loss()
            parameter.add_(1e-6 * direction)
        assert_close((slope * direction).sum(), (above - below) / 2e-6, rtol=1e-5, atol=1e-7)


def test_with_alpha_0_no_position_sees_a_later_one() -> None:
    """What makes the model not causal is the transform alone."""
    changed = [[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 12, 12]]
    causal_BLD = build(alpha=0.0)(collate(changed, 8)).hidden_BLD
    mixed_BLD = build(alpha=0.9)(collate(changed, 8)).hidden_BLD
    assert_close(causal_BLD[0, :6], causal_BLD[1, :6])
    assert not torch.allclose(mixed_BLD[0, :6], mixed_BLD[1, :6])


def test_bf16_autocast_gives_nearly_the_same() -> None:
    model, batch = build().float(), ragged()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low_BLD = model(batch).hidden_BLD
    assert_close(low_BLD.float(), model(batch).hidden_BLD.detach(), rtol=0.1, atol=0.1)
