"""The consensus expert, and the options that the paper's and the release's presets stand for."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.testing import assert_close

from lexrec.data.batch import Batch
from lexrec.errors import ConfigError
from lexrec.item_encoders._consensus import groups, weighted_average
from lexrec.item_encoders._mltfr_config import MltfrConfig
from lexrec.item_encoders.base import Catalogue
from lexrec.item_encoders.mltfr import Mltfr
from tests import components
from tests.components import DIM, N_ITEMS, packed, ragged

WIDTHS = (24, 16, 24)


def encoder(consensus: dict[str, Any] | None = None, **options: Any) -> Mltfr:
    """Three experts, the first and the last of one width."""
    torch.manual_seed(0)
    config = MltfrConfig(tables=("a", "b", "c"), k=5, cap=None, consensus=consensus, **options)
    tables = tuple(
        components.table(n, 40, w, seed=i) for i, (n, w) in enumerate(zip("abc", WIDTHS, strict=True))
    )
    return Mltfr(config, Catalogue(N_ITEMS, DIM, tables)).eval()


def ones(built: Mltfr) -> dict[str, Tensor]:
    return {name: torch.ones(()) for name in built.averaged()}


def added(built: Mltfr, batch: Batch) -> Tensor:
    with torch.no_grad():
        return built(batch).x_BLD - built.lookup(batch.item_BL)


def test_experts_of_one_width_are_a_group_where_there_are_two() -> None:
    assert groups([768, 4096, 768, 1024, 768, 1024]) == [(0, 2, 4), (3, 5)]
    assert groups([768, 1024]) == []


def test_the_average_is_weighted_and_plain_only_where_nothing_weighs() -> None:
    values = [torch.tensor([1.0, 1.0, 1.0]), torch.tensor([5.0, 5.0, 5.0])]
    weights = [torch.tensor([3e-14, 0.0, 0.0]), torch.tensor([1e-14, 0.0, 2e-300], dtype=torch.float64)]
    assert_close(weighted_average(values, weights), torch.tensor([2.0, 3.0, 5.0]))
    assert_close(weighted_average(values, [torch.tensor(1.0), torch.tensor(3.0)]), torch.full((3,), 4.0))


@pytest.mark.parametrize("interest", ["prefix", "sequence"])
@pytest.mark.parametrize("average", ["attention", "all"])
def test_equal_experts_agree_on_themselves(average: str, interest: str) -> None:
    """With one table twice, and one start, the concatenated consensus says what each expert says."""
    built = encoder({"alpha": 0.5, "average": average}, interest=interest)
    built.experts[2].table_VW = built.experts[0].table_VW
    built.agree(built, ones(built))
    batch, heard = packed(ragged()), []
    handles = [
        part.register_forward_hook(lambda module, given, out: heard.append(out))
        for part in (built.experts[0], built.consensus[0])
    ]
    with_all = added(built, batch)
    for handle in handles:
        handle.remove()
    (out_UQD, *_), agreed_UQD = heard
    assert_close(agreed_UQD, out_UQD)
    built.consensus = torch.nn.ModuleList()
    without = added(built, batch)
    difference = with_all - without
    assert difference.norm() > 0
    loud = encoder({"alpha": 1.0, "average": average}, interest=interest)
    loud.experts[2].table_VW = loud.experts[0].table_VW
    loud.agree(loud, ones(loud))
    assert_close(added(loud, batch) - without, 2 * difference)


def test_its_parameters_are_the_weighted_average_of_its_group_alone() -> None:
    built = encoder({"average": "all"}, init="independent")
    weights = {name: torch.tensor(3.0 if name.startswith("experts.0") else 1.0) for name in built.averaged()}
    assert {name.split(".")[1] for name in weights} == {"0", "2"}
    assert {name.split(".", 2)[2] for name in weights} == {n for n, _ in built.experts[0].named_parameters()}
    built.agree(built, weights)
    first, last = (dict(built.experts[m].named_parameters()) for m in (0, 2))
    for name, parameter in built.consensus[0].named_parameters():
        assert_close(parameter, 0.75 * first[name] + 0.25 * last[name])


def test_attention_alone_is_the_releases_average() -> None:
    built = encoder({"average": "attention"})
    assert all(name.split(".")[2] == "attention" for name in built.averaged())
    assert len(built.averaged()) == 2 * 8


def test_the_mean_of_rows_is_what_the_release_reads() -> None:
    """Projection is linear: the mean of keys is the key of the mean row."""
    built = encoder({"source": "mean"}, interest="sequence")
    built.agree(built, ones(built))
    heard = []
    experts, consensus = [built.experts[m] for m in (0, 2)], built.consensus[0]
    handle = consensus.attention.register_forward_hook(lambda module, given, out: heard.append(given[1]))
    built(ragged())
    handle.remove()
    interest_BD = built._interests(ragged(), built.lookup(ragged().item_BL))[0].interest_MD
    row_BKW = torch.stack([e.table_VW[e.choose(interest_BD).token_MK].float() for e in experts]).mean(0)
    assert_close(heard[0].key_UKD, consensus.attention.key(row_BKW), rtol=1e-4, atol=1e-5)
    assert_close(heard[0].value_UKD, consensus.attention.value(row_BKW), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("source", ["concat", "mean"])
def test_it_stays_while_filters_learn_through_it(source: str) -> None:
    built = encoder({"source": source}).train()
    built.agree(built, ones(built))
    for expert in built.experts:
        # Only the consensus speaks.
        torch.nn.init.zeros_(expert.attention.out.weight)
    built(packed(ragged())).x_BLD.square().sum().backward()
    assert all(p.grad is None for p in built.consensus.parameters())
    found = [expert.align.weight.grad for expert in built.experts]
    assert found[0].abs().sum() > 0
    assert found[2].abs().sum() > 0
    assert found[1].abs().sum() == 0


def test_a_tuned_table_is_read_anew_each_time() -> None:
    built = encoder({}, tune_tables=True)
    built.agree(built, ones(built))
    before = added(built, ragged())
    with torch.no_grad():
        built.experts[0].table_VW.mul_(2)
    again = encoder({}, tune_tables=True)
    again.load_state_dict(built.state_dict())
    assert_close(added(built, ragged()), added(again, ragged()))
    assert not torch.equal(added(built, ragged()), before)


def test_two_widths_share_alpha() -> None:
    torch.manual_seed(0)
    tables = tuple(components.table(n, 40, w, i) for i, (n, w) in enumerate([("a", 24), ("b", 16)] * 2))
    config = MltfrConfig(tables=("a", "b", "c", "d"), k=5, cap=None, consensus={"alpha": 0.6})
    built = Mltfr(config, Catalogue(N_ITEMS, DIM, tables)).eval()
    built.agree(built, ones(built))
    heard = []
    for part in built.consensus:
        part.register_forward_hook(lambda module, given, out: heard.append(out))
    total = added(built, ragged())
    is_item_BL1 = ragged().is_item_BL[..., None]
    built.consensus = torch.nn.ModuleList()
    said = 0.3 * (heard[0] + heard[1]).view_as(total) * is_item_BL1
    assert_close(total - added(built, ragged()), said)


def test_a_mean_of_unlike_numbers_of_tokens_is_refused() -> None:
    tables = (components.table("a", 40), components.table("b", 3))
    config = MltfrConfig(tables=("a", "b"), k=5, consensus={"source": "mean"})
    with pytest.raises(ConfigError, match=r"a table has fewer than 5 tokens; use consensus\.source=concat"):
        Mltfr(config, Catalogue(N_ITEMS, DIM, tables))
    assert Mltfr(config.model_copy(update={"k": 3}), Catalogue(N_ITEMS, DIM, tables))


def test_presets_are_options_by_another_name() -> None:
    paper = MltfrConfig(preset="paper")
    assert (paper.interest, paper.estimator, paper.pool, paper.k) == ("sequence", "paper", "user", 50)
    assert (paper.bias, paper.dropout, paper.cap, paper.logit_scale) == (False, 0.0, None, 1.0)
    assert (paper.learn_scale, paper.bends_items, paper.eval_noise) == (False, True, False)
    release = MltfrConfig(preset="release")
    assert (release.interest, release.estimator, release.pool, release.k) == (
        "sequence",
        "release",
        "batch",
        1,
    )
    assert (release.eval_noise, release.gate, release.tune_tables) == (True, "double_softmax", True)
    assert (release.inject, release.bias, release.dropout) == ("after_block0", True, 0.1)


def test_what_stands_beside_a_preset_wins() -> None:
    chosen = MltfrConfig(preset="release", k=10, pool="user", consensus={"alpha": 0.05})
    assert (chosen.k, chosen.pool, chosen.gate) == (10, "user", "double_softmax")
    assert chosen.consensus is not None
    assert (chosen.consensus.alpha, chosen.consensus.source) == (0.05, "mean")
    assert MltfrConfig(preset="paper").consensus is None
    paper = MltfrConfig(preset="paper", consensus={}).consensus
    assert paper is not None
    assert (paper.alpha, paper.average) == (0.2, "all")
    with pytest.raises(ValidationError, match="preset"):
        MltfrConfig(preset="papers")


@pytest.mark.parametrize("preset", ["paper", "release"])
def test_a_preset_is_written_out_and_read_back(preset: Any) -> None:
    config = MltfrConfig(preset=preset, k=7, consensus={})
    assert MltfrConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("preset", ["paper", "release"])
def test_presets_build_and_train_in_two_rounds(preset: Any) -> None:
    consensus: dict[str, Any] = {}
    built = encoder(consensus, preset=preset).train()
    built.agree(built, ones(built))
    embedded = built(ragged())
    spoken = embedded.x_BLD if embedded.after_block0_BLD is None else embedded.after_block0_BLD
    spoken.square().sum().backward()
    assert all(e.attention.value.weight.grad.abs().sum() > 0 for e in built.experts)
