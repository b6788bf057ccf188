"""The controls that add token tables to item vectors directly."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lexrec.errors import ConfigError
from lexrec.item_encoders.base import Catalogue
from lexrec.item_encoders.llm_table import LlmTable, LlmTableConfig
from tests import components
from tests.components import N_ITEMS, packed, ragged


def encoder(**options: object) -> LlmTable:
    torch.manual_seed(0)
    built = components.build_encoder("llm_table", k=5, **options)
    assert isinstance(built, LlmTable)
    return built.eval()


def test_an_item_gets_the_mean_of_its_nearest_projected_rows() -> None:
    built, item = encoder(cap=None), 7
    vector = built.embedding.weight[item]
    means = []
    for i, align in enumerate(built.align):
        aligned_VD = align(built.get_buffer(f"table_{i}_VW").float())
        nearest = F.cosine_similarity(aligned_VD, vector[None]).argsort(descending=True)[:5]
        means.append(aligned_VD[nearest].mean(0))
    row = built(ragged([[3, item], []])).x_BLD[0, -1]
    assert_close(row, vector + (means[0] + means[1]) / 2)


def test_what_is_added_is_no_longer_than_its_cap() -> None:
    built, item_B1 = encoder(cap=0.3), torch.tensor([[3], [7]])
    with torch.no_grad():
        for align in built.align:
            align.bias.fill_(1.0)
    batch = ragged([[3], [7]])
    added_BD = (built(batch).x_BLD[:, -1:] - built.lookup(item_B1))[:, 0]
    assert_close(added_BD.norm(dim=1), 0.3 * built.lookup(item_B1)[:, 0].norm(dim=1))


def test_slots_and_constants_change_nothing() -> None:
    built, batch = encoder(), ragged()
    plain = built(batch).x_BLD
    assert (plain[~batch.is_item_BL] == 0).all()
    assert_close(built(packed(batch)).x_BLD, plain)
    built.freeze()
    assert built._constant_ID is not None
    assert_close(built(batch).x_BLD, plain)
    built.train()
    assert built._constant_ID is None


def test_real_and_random_tables_are_of_one_size() -> None:
    real, noise, again, other = (
        encoder(),
        encoder(random_seed=1),
        encoder(random_seed=1),
        encoder(random_seed=2),
    )
    for i in range(2):
        real_VW, noise_VW, again_VW, other_VW = (
            one.get_buffer(f"table_{i}_VW").float() for one in (real, noise, again, other)
        )
        assert real_VW.shape == noise_VW.shape
        for weight_VW in (real_VW, noise_VW):
            assert weight_VW.square().mean().sqrt().item() == pytest.approx(0.02, rel=0.01)
        assert torch.equal(noise_VW, again_VW)
        assert not torch.equal(noise_VW, other_VW)
        assert not torch.equal(noise_VW, real_VW)


def test_its_maps_learn_and_its_tables_do_not() -> None:
    built = encoder().train()
    assert not any("table" in name for name, _ in built.named_parameters())
    assert not any("table" in name for name in built.state_dict())
    built(packed(ragged())).x_BLD.square().sum().backward()
    assert all(align.weight.grad.abs().sum() > 0 for align in built.align)


def test_tables_that_are_missing_are_refused() -> None:
    with pytest.raises(ConfigError, match="llm_table: 2 tables named, 0 given"):
        LlmTable(LlmTableConfig(), Catalogue(N_ITEMS, 8))
