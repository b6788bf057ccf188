"""FMLP-Rec against numpy's FFT and against a circular convolution written out, in float64."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.testing import assert_close

from lexrec.data.batch import collate
from lexrec.models.fmlprec import FMLPRec, FMLPRecConfig
from tests import components
from tests.components import packed, ragged

Array = NDArray[np.float64]


def build(max_len: int = 8) -> FMLPRec:
    torch.manual_seed(0)
    config = FMLPRecConfig(dim=6, max_len=max_len)
    model = FMLPRec(config, components.build_encoder("id_embedding", 6)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.items.embedding.weight[0] = 0
    return model


def array(tensor: Tensor) -> Array:
    return tensor.detach().numpy()


def layer_norm(x: Array, module: torch.nn.LayerNorm) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + 1e-5) * array(module.weight) + array(module.bias)


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def by_hand(model: FMLPRec, item_L: list[int]) -> Array:
    """One row of max_len items and padding, [L, D]."""
    x = array(model.items.embedding.weight)[item_L] + array(model.position.weight)
    x = layer_norm(x, model.input_norm)
    for block in model.blocks:
        pairs = array(block.filter_1FD2)[0]
        bins = np.fft.rfft(x, axis=0, norm="ortho") * (pairs[..., 0] + 1j * pairs[..., 1])
        x = layer_norm(x + np.fft.irfft(bins, n=len(x), axis=0, norm="ortho"), block.filter_norm)
        inner = gelu(x @ array(block.up.weight).T + array(block.up.bias))
        x = layer_norm(x + inner @ array(block.down.weight).T + array(block.down.bias), block.ffn_norm)
    return x


@pytest.mark.parametrize("max_len", [8, 9], ids=["even", "odd"])
def test_fmlprec_equals_its_equations_in_numpy(max_len: int) -> None:
    model, batch = build(max_len), collate([[3, 1, 4, 1, 5, 9, 2, 6], [5], [], [8, 9, 7]], max_len)
    found_BLD = model(batch).hidden_BLD.detach().numpy()
    for b, item_L in enumerate(batch.item_BL.tolist()):
        np.testing.assert_allclose(found_BLD[b], by_hand(model, item_L), rtol=1e-10, atol=1e-12)
    assert_close(model(packed(batch)).hidden_BLD, model(batch).hidden_BLD)


@pytest.mark.parametrize("max_len", [8, 9], ids=["even", "odd"])
def test_a_filter_is_a_circular_convolution_gradients_too(max_len: int) -> None:
    block = build(max_len).blocks[0]
    x_LD = torch.randn(max_len, 6, dtype=torch.float64, requires_grad=True)
    found_LD = block._filtered(x_LD[None])[0]
    real_FD, imaginary_FD = block.filter_1FD2[0].unbind(-1)
    expected = []
    for t in range(max_len):
        total = torch.zeros(6, dtype=torch.float64)
        for s in range(max_len):
            for f in range(len(real_FD)):
                # A bin below the middle stands for its mirror image too.
                share = (1 if f in (0, max_len / 2) else 2) / max_len
                angle = 2 * math.pi * f * (t - s) / max_len
                kernel_D = real_FD[f] * math.cos(angle) - imaginary_FD[f] * math.sin(angle)
                total = total + share * kernel_D * x_LD[s]
        expected.append(total)
    expected_LD = torch.stack(expected)
    assert_close(found_LD, expected_LD)
    pull_LD = torch.randn_like(x_LD)
    wanted = [x_LD, block.filter_1FD2]
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


def test_bf16_autocast_gives_nearly_the_same() -> None:
    model, batch = build().float(), ragged()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low_BLD = model(batch).hidden_BLD
    assert_close(low_BLD.float(), model(batch).hidden_BLD.detach(), rtol=0.1, atol=0.1)


def test_a_filter_is_stored_as_real_numbers() -> None:
    model = build()
    assert all(value.is_floating_point() for value in model.state_dict().values())
    assert model.blocks[0].filter_1FD2.shape == (1, 5, 6, 2)
