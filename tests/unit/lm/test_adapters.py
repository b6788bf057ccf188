"""What every adapter obeys, on every family: what is trained, what text sees, files, caches, learning."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from lexrec import registry
from lexrec.data.batch import collate
from lexrec.errors import ConfigError
from lexrec.item_encoders.base import Catalogue
from lexrec.lm import layers, loading
from lexrec.lm.adapters.experts import ExpertsConfig
from lexrec.lm.settings import LmConfig
from lexrec.lm.stream import Reach, packed
from lexrec.models.idiomoe import Idiomoe, IdiomoeConfig
from lexrec.training.step import Step
from tests import components, language_models
from tests.components import DIM, MAX_LEN, N_ITEMS, build_encoder, ragged
from tests.contract.test_backbones import Waits

FAMILIES = language_models.FAMILIES

ADAPTERS: dict[str, dict[str, Any]] = {
    "experts": {"name": "experts"},
    "copies": {"name": "experts", "start": "pretrained"},
    "shared": {"name": "shared"},
    "scratch": {"name": "scratch"},
    "lora": {"name": "lora"},
    "wide_ffn": {"name": "wide_ffn", "shrink": 2},
    "append": {"name": "blocks", "n_blocks": 1},
    "prepend": {"name": "blocks", "at": "start", "n_blocks": 2},
    "moa": {"name": "moa"},
    "mot": {"name": "mot", "shrink": 2},
    "learned": {"name": "switch", "n_experts": 2, "shrink": 2},
    "hybrid": {"name": "switch", "over": "items", "n_experts": 2, "shrink": 2},
}
KEEPS_TEXT = ("experts", "copies", "moa", "mot", "hybrid")
"""Adapters under which text alone is read as it was pretrained."""

every = pytest.mark.parametrize(
    ("adapter", "family"), [(adapter, family) for adapter in ADAPTERS for family in FAMILIES]
)
each = pytest.mark.parametrize("adapter", ADAPTERS)


def built(adapter: str, family: str = "llama", seed: int = 0, **options: Any) -> Idiomoe:
    """A model that reads titles after item tokens, in evaluation mode."""
    torch.manual_seed(seed)
    lm = {"model": str(language_models.folder(family)), **options.pop("lm", {})}
    given = {"dim": DIM, "max_len": MAX_LEN, "columns": ("title",), "dropout": 0.0, **options}
    config = IdiomoeConfig(lm=lm, adapter=ADAPTERS[adapter], **given)
    model = Idiomoe(config, build_encoder("id_embedding"))
    model.describe(Catalogue(N_ITEMS, DIM, item_table=components.item_table()))
    return model.eval()


@cache
def pretrained(family: str) -> loading.LanguageModel:
    return loading.load(LmConfig(model=str(language_models.folder(family))))


def trained_names(model: Idiomoe) -> set[str]:
    return {name for name, p in model.lm.named_parameters() if p.requires_grad}


def one_loss(model: Idiomoe) -> Mapping[str, Tensor]:
    goal = components.build_objective("next_item")
    batch = collate([[3, 1, 4, 1, 5], [], [8, 9, 7, 12, 2, 11, 5, 6, 1], [2, 11]], MAX_LEN + 1)
    return Step(model, goal)(batch, goal.prepare(batch, torch.Generator().manual_seed(0)))


@every
def test_what_is_trained_gets_a_gradient_and_the_rest_stays(adapter: str, family: str) -> None:
    model = built(adapter, family, item_scale=1.0).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("router.weight"):
                parameter.normal_()  # so that these few tokens differ in where they go
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if adapter == "scratch":
        # Drawn anew, but for the text table.
        assert not any("embed_tokens" in name for name in trained)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # What is multiplied by a zero at the start moves in the second step.
        optimizer.zero_grad()
        loss = one_loss(model)["loss"]
        assert loss.isfinite()
        loss.backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trained
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@every
def test_a_step_equals_reading_the_whole(adapter: str, family: str) -> None:
    model = built(adapter, family)
    with torch.no_grad():
        state = model.begin(collate([[1, 2, 3], [5]], MAX_LEN))
        state = model.step(state, torch.tensor([4, 6]))
        whole = model.begin(collate([[1, 2, 3, 4], [5, 6]], MAX_LEN))
        forward_B1D = model(collate([[1, 2, 3, 4], [5, 6]], MAX_LEN)).hidden_BLD[:, -1]
    assert_close(state.hidden_BD, whole.hidden_BD)
    assert_close(forward_B1D, whole.hidden_BD)


@each
def test_padding_and_neighbours_change_nothing(adapter: str) -> None:
    model, batch = built(adapter), ragged()
    with torch.no_grad():
        padded_BLD = model(batch).hidden_BLD
        packed_BLD = model(components.packed(batch)).hidden_BLD
        alone_1LD = model(collate([[8, 9, 7]], 3)).hidden_BLD
    assert_close(packed_BLD[batch.is_item_BL], padded_BLD[batch.is_item_BL])
    assert_close(alone_1LD[:, -1], padded_BLD[3:, -1])


@every
def test_text_alone_is_read_as_pretrained_where_that_is_promised(adapter: str, family: str) -> None:
    model = built(adapter, family).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        one_loss(model)["loss"].backward()
        optimizer.step()
    model.eval()
    token_BS = torch.tensor([[6, 7, 8, 9, 10], [11, 6, 12, 7, 8]])
    with torch.no_grad():
        ours, theirs = model.lm.causal(token_BS).logits, pretrained(family).causal(token_BS).logits
    assert torch.equal(ours, theirs) == (adapter in KEEPS_TEXT)


@each
def test_a_file_holds_what_was_trained_alone_and_gives_the_model_back(adapter: str, tmp_path: Path) -> None:
    model = built(adapter, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    state = model.state_dict()
    assert set(state) == {"item_scale", *(name for name, p in model.named_parameters() if p.requires_grad)}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    again, batch = built(adapter, seed=2), ragged()
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(again(batch).hidden_BLD, model(batch).hidden_BLD)


@each
def test_it_learns(adapter: str) -> None:
    model = built(adapter).train()
    goal = components.build_objective("next_item")
    step, batch = Step(model, goal), components.cycles(12)
    optimizer = torch.optim.Adam([p for p in step.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(25):
        loss = step(batch, goal.prepare(batch, torch.Generator().manual_seed(0)))["ce"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


@each
def test_a_training_step_never_waits_for_the_device(adapter: str) -> None:
    model = built(adapter).train()
    with Waits() as waits:
        one_loss(model)["loss"].backward()
    assert waits.found == set()


@each
def test_checkpointing_changes_no_gradient(adapter: str) -> None:
    found = []
    for checkpointing in (False, True):
        model = built(adapter, lm={"checkpointing": checkpointing}).train()
        one_loss(model)["loss"].backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        assert_close(found[1][name], grad)


@each
def test_bf16_weights_train_in_float32(adapter: str) -> None:
    model = built(adapter, lm={"dtype": "bf16"}).train()
    one_loss(model)["loss"].backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32, name
            assert parameter.grad is None or parameter.grad.isfinite().all(), name


@each
def test_train_attention_still_holds(adapter: str) -> None:
    model = built(adapter, train_attention=True)
    attention = layers.attention(pretrained("llama").layers[0], pretrained("llama").decoder)
    is_trained = {
        name: p.requires_grad for name, p in model.lm.named_parameters() if f".{attention}." in name
    }
    if adapter == "lora":
        # peft marks all but its own as frozen.
        assert is_trained
    assert all(is_trained.values())


# What is particular to one of them.


def item_only(model: Idiomoe) -> Tensor:
    with torch.no_grad():
        return model(ragged()).hidden_BLD


@pytest.mark.parametrize(("adapter", "part"), [("moa", "text"), ("mot", "text"), ("hybrid", "text")])
@pytest.mark.parametrize("family", FAMILIES)
def test_text_parts_never_touch_items_alone(adapter: str, part: str, family: str) -> None:
    """Static routing: without text tokens, nothing that text passes can change a state."""
    model = built(adapter, family, columns=())
    before = item_only(model)
    shift(model, f".{part}.")
    assert torch.equal(item_only(model), before)
    shift(model, ".item." if adapter != "hybrid" else ".new.")
    assert not torch.allclose(item_only(model), before)


def shift(model: Idiomoe, part: str) -> None:
    named = [(name, p) for name, p in model.lm.named_parameters() if part in name]
    assert named
    with torch.no_grad():
        for _, parameter in named:
            parameter.add_(1.0)


@pytest.mark.parametrize("adapter", ["wide_ffn", "lora"])
def test_it_starts_at_the_pretrained_model(adapter: str) -> None:
    plain = built("shared")
    assert_close(item_only(built(adapter)), item_only(plain))


def test_moa_starts_at_the_pretrained_model_and_may_start_fresh() -> None:
    assert_close(item_only(built("moa")), item_only(built("shared")))
    lm = loading.load(LmConfig(model=str(language_models.folder())))
    component = registry.load("lm.adapters", "moa")
    component(registry.config_class(component)(start="fresh")).apply(lm)
    split = lm.layers[0].self_attn.q_proj
    assert not torch.allclose(split.item.weight, split.text.weight)
    assert split.item.weight.std() < 0.05


def test_mot_splits_all_of_a_layer() -> None:
    for family, n_norms in (("llama", 2), ("qwen3", 2), ("gemma3_text", 4)):
        names = trained_names(built("mot", family))
        first = {name.split("layers.0.")[1] for name in names if "layers.0." in name}
        assert len({name for name in first if "norm" in name}) == n_norms
        assert len({name for name in first if "_proj" in name}) == 4 + 3


def n_trained(adapter: Mapping[str, Any], family: str = "llama") -> int:
    """Parameters that an adapter trains."""
    lm = loading.load(LmConfig(model=str(language_models.folder(family))))
    component = registry.load("lm.adapters", adapter["name"])
    component(registry.config_class(component)(**adapter)).apply(lm)
    return sum(p.numel() for p in lm.parameters() if p.requires_grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_controls_are_as_large_as_the_experts(family: str) -> None:
    experts = n_trained({"name": "experts"}, family)
    assert n_trained({"name": "wide_ffn"}, family) == experts
    assert n_trained({"name": "lora"}, family) == pytest.approx(experts, rel=0.05)
    # A whole layer is the smallest step there is: half of one is the largest error.
    lm = pretrained(family)
    layer = sum(p.numel() for p in lm.layers[0].parameters())
    for at in ("start", "end"):
        assert abs(n_trained({"name": "blocks", "at": at}, family) - experts) <= layer / 2


def test_lora_updates_the_parts_it_is_told_to() -> None:
    lm = loading.load(LmConfig(model=str(language_models.folder())))
    component = registry.load("lm.adapters", "lora")
    component(registry.config_class(component)(on=("attention",), rank=3)).apply(lm)
    names = {name for name, p in lm.named_parameters() if p.requires_grad}
    assert {name.split("layers.0.")[1].split(".")[1] for name in names if "layers.0." in name} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    }
    assert {min(p.shape) for name, p in lm.named_parameters() if name in names} == {3}


@pytest.mark.parametrize("family", FAMILIES)
def test_scratch_keeps_the_text_table_and_nothing_else(family: str) -> None:
    lm, old = built("scratch", family).lm, pretrained(family)
    for (name, new), was in zip(lm.decoder.named_parameters(), old.decoder.parameters(), strict=True):
        assert torch.equal(new, was) == ("embed_tokens" in name), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("adapter", "place"), [("append", [2]), ("prepend", [0, 1])])
def test_new_blocks_are_where_they_are_asked_for(adapter: str, place: list[int], family: str) -> None:
    lm = built(adapter, family).lm
    assert len(lm.layers) == language_models.N_LAYERS + len(place)
    assert [block.self_attn.layer_idx for block in lm.layers] == list(range(len(lm.layers)))
    trained = [any(p.requires_grad for p in block.parameters()) for block in lm.layers]
    assert trained == [i in place for i in range(len(lm.layers))]


def test_what_an_encoder_adds_after_the_first_layer_comes_after_the_first_new_one() -> None:
    lm = built("prepend").lm
    x_1NW, n = torch.randn(1, 4, DIM), torch.arange(4)
    stream = packed(torch.zeros(4, dtype=torch.int64), n, torch.ones(4, dtype=torch.bool), 4, Reach())
    seen: list[Tensor] = []
    handles = [block.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for block in lm.layers]
    with torch.no_grad():
        lm.decode(x_1NW, stream)
        lm.decode(x_1NW, stream._replace(added_RSW=torch.ones(1, 4, DIM)))
    for handle in handles:
        handle.remove()
    plain, added = seen[: len(lm.layers)], seen[len(lm.layers) :]
    assert_close(added[0], plain[0])
    assert_close(added[1], plain[1] + 1)


def test_a_switch_sends_each_token_to_one_expert_by_its_router() -> None:
    model = built("learned", columns=())
    routed = model.lm.layers[0].mlp
    x_1SW = torch.randn(1, 6, DIM)
    share_SE = (x_1SW[0] @ routed.router.weight.T).softmax(-1)
    expected = torch.stack(
        [
            share[int(share.argmax())] * [routed.text, *routed.new][int(share.argmax())](x)
            for share, x in zip(share_SE, x_1SW[0], strict=True)
        ]
    )
    assert len(set(share_SE.argmax(-1).tolist())) > 1
    with torch.no_grad():
        assert_close(routed(x_1SW)[0], expected)


def test_in_training_an_expert_has_room_for_so_many_tokens() -> None:
    model = built("learned", columns=()).train()
    routed = model.lm.layers[0].mlp
    x_1SW = torch.randn(1, 1, DIM).expand(1, 9, DIM)  # all go to one expert
    with torch.no_grad():
        y_SW = routed(x_1SW)[0]
    n_kept = int((y_SW.abs().sum(-1) > 0).sum())
    assert n_kept == 4  # 1.25 * 9 / 3, rounded up
    assert (y_SW[n_kept:] == 0).all()


@pytest.mark.parametrize("adapter", ["learned", "hybrid"])
def test_the_balancing_loss_is_returned_and_least_where_experts_are_even(adapter: str) -> None:
    model = built(adapter).train()
    losses = one_loss(model)
    n_layers, weight = language_models.N_LAYERS, 0.01
    # 1 a layer where all is even, at most the number of experts.
    n_experts = {"learned": 3, "hybrid": 2}[adapter]
    assert 0.9 * weight * n_layers < float(losses["balance"].detach()) <= weight * n_layers * n_experts
    assert_close(losses["loss"], losses["ce"] + losses["balance"])
    with torch.no_grad():
        for block in model.lm.layers:
            block.mlp.router.weight.zero_()
    # Without a preference the mean share is even, whoever is picked.
    assert float(one_loss(model)["balance"].detach()) == pytest.approx(weight * n_layers)
    assert "balance" not in one_loss(model.eval())


def test_a_hybrid_without_a_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves no choice; use 2 or more"):
        IdiomoeConfig(adapter={"name": "switch", "over": "items"})


def test_an_unknown_adapter_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no component 'lora2'; known: blocks, experts, lora, "):
        IdiomoeConfig(adapter={"name": "lora2"})


PRETRAINED = {
    "experts": (),
    "copies": ("mlp",),
    "shared": ("mlp",),
    "scratch": (),
    "lora": (),
    "moa": ("self_attn",),
    "mot": ("self_attn", "layernorm"),
}
"""Where the trained parameters that start from what the language model knows lie."""


@pytest.mark.parametrize("adapter", PRETRAINED)
def test_it_is_known_which_parameters_start_pretrained(adapter: str) -> None:
    model = built(adapter)
    known = {id(p) for p in model.pretrained()}
    names = [name for name, p in model.lm.named_parameters() if p.requires_grad and id(p) in known]
    others = [name for name, p in model.lm.named_parameters() if p.requires_grad and id(p) not in known]
    for part in PRETRAINED[adapter]:
        assert any(part in name for name in names)
    assert all(any(part in name for part in PRETRAINED[adapter]) for name in names)
    assert not any(part in name for part in PRETRAINED[adapter] for name in others)


def test_attention_set_free_starts_pretrained() -> None:
    model = built("experts", train_attention=True)
    known = {id(p) for p in model.pretrained()}
    found = {name.split(".")[-3] for name, p in model.lm.named_parameters() if id(p) in known}
    assert "self_attn" in found
    assert "item" not in found


def test_item_experts_that_start_as_copies_read_items_as_text_at_first() -> None:
    copies, plain = built("copies", columns=()), built("shared", columns=())
    with torch.no_grad():
        assert torch.equal(copies(ragged()).hidden_BLD, plain(ragged()).hidden_BLD)
    with pytest.raises(
        ValueError, match="start=pretrained copies whole layers, shrink=2 wants narrower; set one"
    ):
        ExpertsConfig(start="pretrained", shrink=2)
