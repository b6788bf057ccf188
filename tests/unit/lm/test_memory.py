"""What neurons write: beside a float64 loop, and where the answer was planted."""

from collections import Counter

import numpy as np
import pytest
import torch

from lexrec import registry
from lexrec.errors import ConfigError
from lexrec.lm import loading, memory
from lexrec.lm.memory import UNKNOWN, Rows, read_neurons, value_vectors
from lexrec.lm.settings import LmConfig
from tests.language_models import FAMILIES, N_LAYERS, WIDTH, folder

K = 4


def cosines(value_NW: np.ndarray, row_JW: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(value_NW, axis=1)[:, None] * np.linalg.norm(row_JW, axis=1)
    return value_NW @ row_JW.T / lengths


def loop(value_NW, item_IW, text_VW, category_I, k):
    """The definitions, a neuron at a time, in float64."""
    for item_I, text_V in zip(cosines(value_NW, item_IW), cosines(value_NW, text_VW), strict=True):
        affinity = np.median(np.sort(item_I)[-k:]) - np.median(np.sort(text_V)[-k:])
        near = [category_I[i] for i in np.argsort(-item_I)[:k] if category_I[i] != UNKNOWN]
        counted = Counter(near).most_common(1)
        yield affinity, counted[0][1] / k if counted else 0.0


@pytest.mark.parametrize("k", [1, 4, 5])
def test_affinity_and_purity_are_those_of_a_float64_loop(k, monkeypatch) -> None:
    draw = torch.Generator().manual_seed(0)
    value_NW, item_IW, text_VW = (torch.randn(n, 6, generator=draw) for n in (9, 31, 57))
    category_I = torch.randint(UNKNOWN, 3, (31,), generator=draw)
    expected = list(
        loop(
            value_NW.double().numpy(),
            item_IW.double().numpy(),
            text_VW.double().numpy(),
            category_I.tolist(),
            k,
        )
    )
    for at_once in (2**24, 90, 1):  # all at once, ten rows at a time, no more than k
        monkeypatch.setattr(memory, "_COSINES_AT_ONCE", at_once)
        found = read_neurons(value_NW, Rows.of(item_IW), Rows.of(text_VW), category_I, k)
        np.testing.assert_allclose(found.affinity_N, [a for a, _ in expected], atol=1e-6)
        np.testing.assert_allclose(found.purity_N, [p for _, p in expected], atol=1e-6)


def planted() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Neurons that write shoes, hats, any item, text; items and tokens that say so."""
    axis = torch.eye(6)
    noise = 0.01 * torch.randn(3 * K, 6, generator=torch.Generator().manual_seed(0))
    kinds = torch.cat([axis[:1].expand(K, 6), axis[1:2].expand(K, 6), axis[3:4].expand(K, 6)])
    value_NW = torch.stack([3 * axis[0], 0.1 * axis[1], axis[0] + axis[1], axis[3]])
    # The last K rows are text.
    return value_NW, (kinds + noise)[: 2 * K], (kinds + noise)[2 * K :]


def test_a_planted_memory_is_found() -> None:
    value_NW, item_IW, text_VW = planted()
    category_I = torch.tensor([0] * K + [1] * K)
    found = read_neurons(value_NW, Rows.of(item_IW), Rows.of(text_VW), category_I, K)
    assert found.affinity_N[:3].min() > 0.6
    assert found.affinity_N[3] < -0.9
    assert found.purity_N[:2].tolist() == [1, 1]
    assert found.category_N[:2].tolist() == [0, 1]
    unknown = read_neurons(value_NW, Rows.of(item_IW), Rows.of(text_VW), torch.full((2 * K,), UNKNOWN), K)
    assert unknown.purity_N.tolist() == [0] * 4
    assert unknown.category_N.tolist() == [UNKNOWN] * 4
    assert unknown.affinity_N.equal(found.affinity_N)
    without = read_neurons(value_NW, Rows.of(item_IW), Rows.of(text_VW), None, K)
    assert without.purity_N.isnan().all()
    assert without.affinity_N.equal(found.affinity_N)


def test_more_rows_than_there_are_is_refused() -> None:
    value_NW, item_IW, text_VW = planted()
    with pytest.raises(ConfigError, match=r"k=20 nearest of 8 items and 4 tokens; give 1 to 4"):
        read_neurons(value_NW, Rows.of(item_IW), Rows.of(text_VW), None)


def adapted(family: str, name: str, **settings: object) -> loading.LanguageModel:
    lm = loading.load(LmConfig(model=str(folder(family))))
    component = registry.load("lm.adapters", name)
    component(registry.config_class(component)(**settings)).apply(lm)
    return lm


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("adapter", "settings", "experts"),
    [
        ("shared", {}, {"all": 48}),
        ("experts", {"shrink": 4}, {"text": 48, "item": 12}),
        ("moa", {}, {"all": 48}),
        ("mot", {"shrink": 2}, {"text": 48, "item": 24}),
        ("switch", {"n_experts": 2}, {"text": 48, "new.0": 48, "new.1": 48}),
        ("wide_ffn", {"shrink": 8}, {"pretrained": 48, "added": 6}),
        ("lora", {"rank": 2}, {"all": 48}),
        ("scratch", {}, {"all": 48}),
    ],
)
def test_every_adapters_experts_are_found_in_every_layer(family, adapter, settings, experts) -> None:
    found = list(value_vectors(adapted(family, adapter, **settings)))
    assert {(v.layer, v.expert): tuple(v.value_NW.shape) for v in found} == {
        (layer, name): (n, WIDTH) for layer in range(N_LAYERS) for name, n in experts.items()
    }
    assert len(found) == N_LAYERS * len(experts)


def test_appended_layers_are_layers() -> None:
    found = value_vectors(adapted("llama", "blocks", n_blocks=3))
    assert [v.layer for v in found] == list(range(N_LAYERS + 3))


def test_value_vectors_are_what_a_neuron_writes() -> None:
    lm = adapted("llama", "experts")
    down = lm.layers[1].mlp.item.down_proj
    found = next(v for v in value_vectors(lm) if (v.layer, v.expert) == (1, "item"))
    neuron_N = torch.zeros(48)
    neuron_N[7] = 1
    torch.testing.assert_close(found.value_NW[7], down(neuron_N))


def test_a_low_rank_update_is_part_of_the_value_vectors() -> None:
    lm = adapted("llama", "lora", rank=2, scale=3.0)
    down = lm.layers[0].mlp.down_proj
    before = next(value_vectors(lm)).value_NW
    torch.testing.assert_close(before, down.base_layer.weight.T)
    with torch.no_grad():
        down.lora_B["default"].weight.normal_()
    update_WN = 3.0 * down.lora_B["default"].weight @ down.lora_A["default"].weight
    after = next(value_vectors(lm)).value_NW
    torch.testing.assert_close(after - before, update_WN.T, rtol=1e-4, atol=1e-5)
    assert (after - before).abs().max() > 0.01
