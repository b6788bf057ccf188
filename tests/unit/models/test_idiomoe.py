"""IDIOMoE: what is frozen stays, who passes which expert, texts in the prompt, and what a run holds."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lexrec.config import load_recipe
from lexrec.data.batch import Batch, collate
from lexrec.data.dataset import Dataset
from lexrec.errors import ConfigError, RunError
from lexrec.item_encoders.base import Catalogue
from lexrec.lm.experts import DualExpert
from lexrec.lm.sources import find
from lexrec.models import build_model, model_width
from lexrec.models.idiomoe import Idiomoe
from lexrec.objectives.next_item import NextItem, NextItemConfig
from lexrec.training.checkpoint import Progressed
from lexrec.training.step import Step
from lexrec.training.trackers import Tracker
from lexrec.training.train import train
from tests.components import MAX_LEN, N_ITEMS, build_encoder, item_table, packed, ragged
from tests.contract.test_backbones import Waits
from tests.language_models import FAMILIES, N_TOKENS, WIDTH, folder
from tests.worlds import world

families = pytest.mark.parametrize("family", FAMILIES)
TEXT = ("model.columns=[title, category]", "model.text_len=3")


def built(family: str = "llama", *overrides: str, table: pa.Table | None = None) -> Idiomoe:
    model = ["model.dropout=0", f"model.max_len={MAX_LEN}", f"lm.model={folder(family)}", "model.begin=false"]
    config = load_recipe("idiomoe", [*model, *overrides])
    torch.manual_seed(0)
    made = build_model(config, Catalogue(N_ITEMS, model_width(config), (), table or item_table()))
    assert isinstance(made, Idiomoe)
    return made.eval()


def hidden(model: Idiomoe, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(batch).hidden_BLD[batch.is_item_BL]


def duals(model: Idiomoe) -> list[DualExpert]:
    return [part for part in model.modules() if isinstance(part, DualExpert)]


def trained_a_little(model: Idiomoe, n_steps: int = 8) -> list[float]:
    """Losses of a few steps of the recipe's objective."""
    objective = NextItem(NextItemConfig(), N_ITEMS)
    step, generator = Step(model.train(), objective), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([p for p in step.parameters() if p.requires_grad], lr=3e-3)
    rows = [[(u + t) % N_ITEMS + 1 for t in range(3 + u % 6)] for u in range(16)]
    batch, losses = collate(rows, MAX_LEN + 1), []
    for _ in range(n_steps):
        loss = step(batch, objective.prepare(batch, generator))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def perturb(part: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(torch.randn_like(parameter))


@families
@pytest.mark.parametrize("overrides", [(), TEXT], ids=["ids", "text"])
def test_training_leaves_text_bit_identical_to_the_pretrained_model(
    family: str, overrides: tuple[str]
) -> None:
    from transformers import AutoModelForCausalLM

    model = built(family, *overrides)
    losses = trained_a_little(model)
    assert losses[-1] < losses[0]
    plain = AutoModelForCausalLM.from_pretrained(folder(family), attn_implementation="sdpa").eval()
    token_BL = torch.randint(0, N_TOKENS, (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.lm.causal(token_BL).logits, plain(token_BL).logits)


def test_with_attention_trained_text_changes_and_its_experts_and_table_stay() -> None:
    model = built("llama", "model.train_attention=true", *TEXT)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained_a_little(model)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(".text." in name or "embed_tokens" in name or "lm_head" in name for name in moved)
    for end in ("q_proj.weight", "input_layernorm.weight", "mlp.item.up_proj.weight"):
        assert any(name.endswith(end) for name in moved)


@families
def test_frozen_gets_no_gradient_and_all_that_is_trained_gets_one(family: str) -> None:
    model = built(family, *TEXT).train()
    objective = NextItem(NextItemConfig(), N_ITEMS)
    batch = collate([[1, 2, 3, 4], [5, 6, 7]], MAX_LEN + 1)
    Step(model, objective)(batch, objective.prepare(batch, torch.Generator()))["loss"].backward()
    for name, parameter in model.named_parameters():
        is_item = ".item." in name or name.startswith("items.")
        assert parameter.requires_grad == is_item, name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == is_item, name


@families
def test_the_text_expert_never_changes_a_history_of_ids(family: str) -> None:
    model, batch = built(family), ragged()
    before = hidden(model, batch)
    for dual in duals(model):
        perturb(dual.text)
    assert torch.equal(hidden(model, batch), before)
    for dual in duals(model):
        perturb(dual.item)
    assert not torch.allclose(hidden(model, batch), before)


@families
def test_routing_is_static_within_a_history_of_both(family: str) -> None:
    """Of a layer's feed-forward outputs those of one type never depend on the other type's expert."""
    model, batch = built(family, *TEXT), collate([[3, 1, 4]], 3)
    first, outputs = duals(model)[0], []
    first.register_forward_hook(lambda _, __, out: outputs.append(out[0]))
    is_item_N = torch.arange(3 * (1 + model.prompt.n_texts)) % (1 + model.prompt.n_texts) == 0
    hidden(model, batch)
    perturb(first.text)
    hidden(model, batch)
    perturb(first.item)
    hidden(model, batch)
    plain_NW, other_text_NW, other_both_NW = outputs
    assert torch.equal(plain_NW[is_item_N], other_text_NW[is_item_N])
    assert not torch.isclose(plain_NW[~is_item_N], other_text_NW[~is_item_N]).all(1).any()
    assert torch.equal(other_text_NW[~is_item_N], other_both_NW[~is_item_N])
    assert not torch.isclose(other_text_NW[is_item_N], other_both_NW[is_item_N]).all(1).any()


def test_experts_stand_where_the_recipe_wants_them_and_shrink() -> None:
    inner = [dual.item.get_submodule("up_proj").weight.shape[0] for dual in duals(built())]
    assert inner == [48, 48]
    last = built("llama", "model.adapter.where=last", "model.adapter.n_layers=1", "model.adapter.shrink=4")
    assert [isinstance(layer.mlp, DualExpert) for layer in last.blocks] == [False, True]
    assert duals(last)[0].item.up_proj.weight.shape == (12, WIDTH)
    first = built("llama", "model.adapter.where=first", "model.adapter.n_layers=1")
    assert [isinstance(layer.mlp, DualExpert) for layer in first.blocks] == [True, False]


@families
def test_a_prompt_is_read_as_the_language_model_would_read_it(family: str) -> None:
    """With items embedded as their texts' own kind of token: the very sequence, written out."""
    model = built(family, *TEXT, "model.adapter={name: shared, train_ffn: false}", "model.read_at=end")
    item_rows = [3, 1, 4]
    table = item_table()
    token_of = model.lm.tokenizer.get_vocab()
    vectors = []
    with torch.no_grad():
        for item in item_rows:
            title, category = (
                str(table[name][item - 1]).replace(",", " , ") for name in ("title", "category")
            )
            words = [*title.split()[:3], ";", *category.split()[:3]]
            tokens = torch.tensor([token_of.get(word, token_of["<unk>"]) for word in words])
            vectors += [
                model.item_scale * model.items.lookup(torch.tensor([item])),
                model.lm.embed_text(tokens),
            ]
        expected = model.lm.decoder(inputs_embeds=torch.cat(vectors)[None], use_cache=False)[0][0, -1]
        batch = collate([[9, 9], item_rows], MAX_LEN)
        assert_close(model(packed(batch)).hidden_BLD[1, -1], expected, atol=1e-5, rtol=1e-4)


@families
def test_text_in_the_prompt_is_read_and_items_without_any_are_alone(family: str) -> None:
    table = item_table()
    titles = table["title"].to_pylist()
    titles[4] = None
    bare = table.set_column(1, "title", pa.array(titles, pa.string()))
    some = bare.set_column(2, "category", pa.array([None] * N_ITEMS, pa.string()))
    with_text, ids = built(family, *TEXT, "model.read_at=end", table=some), built(family)
    alone = collate([[5]], MAX_LEN)
    assert_close(hidden(with_text, alone), hidden(ids, alone))
    other = collate([[6]], MAX_LEN)
    assert not torch.allclose(hidden(with_text, other), hidden(ids, other))


@families
@pytest.mark.parametrize("more", [(), ("model.max_tokens=6", "model.read_at=end")], ids=["all", "budget"])
@torch.no_grad()
def test_begin_and_step_with_texts_equal_reading_the_whole(family: str, more: tuple[str]) -> None:
    model = built(family, *TEXT, *more)
    state = model.begin(collate([[1, 2, 3], [5, 6, 7, 8, 9, 10, 11]], MAX_LEN))
    for item_B in (torch.tensor([4, 1]), torch.tensor([5, 2])):
        state = model.step(state, item_B)
        rows = [[i for i in row if i] for row in state.batch.item_BL.tolist()]
        whole = model.encode_next(collate(rows, MAX_LEN)).hidden_BLD[:, -1]
        assert_close(state.hidden_BD, whole, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_one_more_event_costs_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built()
    state = model.begin(collate([[1, 2, 3]], MAX_LEN))
    n_read: list[int] = []
    model.blocks[0].register_forward_pre_hook(lambda _, given: n_read.append(given[0].shape[1]))
    model.step(state, torch.tensor([4]))
    assert n_read == [1]


@torch.no_grad()
def test_a_state_can_be_continued_in_several_ways() -> None:
    model = built()
    state = model.begin(collate([[1, 2, 3]], MAX_LEN))
    one = model.step(state, torch.tensor([4])).hidden_BD
    model.step(state, torch.tensor([7]))
    assert torch.equal(model.step(state, torch.tensor([4])).hidden_BD, one)


@families
@torch.no_grad()
def test_text_after_a_history_passes_the_text_experts(family: str) -> None:
    model = built(family)
    state = model.begin(collate([[1, 2, 3], [4]], MAX_LEN))
    token_BS = torch.tensor([[10, 11, 12], [0, 13, 14]])
    is_token_BS = torch.tensor([[True, True, True], [False, True, True]])
    after = model.read_text(state, token_BS, is_token_BS)
    # The same, one token at a time.
    one = model.read_text(state, token_BS[:, :1], is_token_BS[:, :1])
    for t in (1, 2):
        one = model.read_text(one, token_BS[:, t : t + 1], is_token_BS[:, t : t + 1])
    assert_close(after.hidden_BD, one.hidden_BD, atol=1e-5, rtol=1e-4)
    for dual in duals(model):
        perturb(dual.item)
    assert_close(model.read_text(state, token_BS, is_token_BS).hidden_BD, after.hidden_BD)
    assert not torch.allclose(after.hidden_BD, state.hidden_BD)


def test_recomputing_layers_changes_neither_loss_nor_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = built("llama", *TEXT, f"lm.checkpointing={str(checkpointing).lower()}").train()
        objective = NextItem(NextItemConfig(), N_ITEMS)
        batch = collate([[1, 2, 3, 4], [5, 6, 7]], MAX_LEN + 1)
        loss = Step(model, objective)(batch, objective.prepare(batch, torch.Generator()))["loss"]
        loss.backward()
        gradients.append(
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"": loss}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient)


def test_bf16_trains_and_ranks_alike() -> None:
    model, exact = built("llama", "lm.dtype=bf16", *TEXT), built("llama", *TEXT)
    assert_close(hidden(model, ragged()), hidden(exact, ragged()), atol=0.1, rtol=0.1)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    losses = trained_a_little(model)
    assert losses[-1] < losses[0]


def test_a_state_dict_holds_what_was_trained() -> None:
    model = built("llama", *TEXT)
    state = model.state_dict()
    assert set(state) == {"item_scale", *(name for name, p in model.named_parameters() if p.requires_grad)}
    other = built("llama", *TEXT)
    trained_a_little(model)
    other.load_state_dict(model.state_dict())
    assert torch.equal(hidden(other, ragged()), hidden(model, ragged()))
    state.pop("items.embedding.weight")
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "items.embedding.weight"'):
        other.load_state_dict(state)


@torch.no_grad()
def test_what_an_encoder_adds_after_the_first_layer_is_scaled_like_its_vectors() -> None:
    model = built("gemma3_text", "model.item_scale=3")
    model.items = build_encoder("mltfr", inject="after_block0").eval()
    batch, seen = collate([[3, 1, 4]], 3), []
    model.blocks[1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with_it = model.items(batch)
    model(batch)
    model.items.forward = lambda batch: with_it._replace(after_block0_BLD=None)  # type: ignore[method-assign]
    model(batch)
    assert_close(seen[0] - seen[1], 3 * WIDTH**0.5 * with_it.after_block0_BLD, atol=1e-5, rtol=1e-4)


def test_no_part_keeps_what_it_was_told() -> None:
    model = built("llama", *TEXT)
    hidden(model, ragged())
    assert all(dual.take_stream() is None for dual in duals(model))


def test_a_width_that_is_not_the_language_models_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=rf"model\.dim=64: language model .* is {WIDTH} wide; leave dim out"
    ):
        built("llama", "model.dim=64")


def test_columns_that_are_not_there_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"have no column 'brand'; known: title, category; prepare it again"
    ):
        built("llama", "model.columns=[title, brand]")
    empty = pa.table({"item_id": list(range(N_ITEMS)), "title": pa.array([None] * N_ITEMS, pa.string())})
    with pytest.raises(ConfigError, match=r"model\.columns: no item has any text in title"):
        built("llama", "model.columns=[title]", table=empty)


def cycling() -> Dataset:
    return world([[(u + t) % N_ITEMS + 1 for t in range(7)] for u in range(24)], N_ITEMS)


def test_a_run_names_its_language_model_and_holds_only_what_was_trained(tmp_path: Path) -> None:
    from safetensors import safe_open

    options = [f"lm.model={folder()}", "model.max_len=6", "train.max_epochs=2", "train.warmup_steps=0"]
    run = train("idiomoe", data=cycling(), out=tmp_path / "run", overrides=options, device="cpu", track=())
    card = json.loads((run.path / "lm.json").read_text())
    assert card["sha256"] == find(str(folder())).sha256
    weights = next(run.path.rglob("model.safetensors"))
    with safe_open(weights, "pt") as file:
        names = set(file.keys())
    assert "items.embedding.weight" in names
    names.remove("item_scale")
    assert all(".item." in name or name.startswith("items.") for name in names)
    assert run.summary["parameters"] == sum(run.weights()[name].numel() for name in names)
    (run.path / "lm.json").write_text(json.dumps(card | {"sha256": "0" * 64}))
    with pytest.raises(RunError, match=r"was trained on language model .* 000000000000, found"):
        run.model()


class _StopsIn(Tracker):
    """Ends a run after so many validations, as a killed process would."""

    def __init__(self, n_validations: int) -> None:
        self.n_left = n_validations

    def validated(self, at: Progressed, metrics: dict[str, float], is_best: bool) -> None:
        self.n_left -= 1
        if not self.n_left:
            raise KeyboardInterrupt


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    options = [f"lm.model={folder()}", "model.max_len=6", "train.warmup_steps=0", "train.max_epochs=3"]
    data = cycling()
    whole = train("idiomoe", data=data, out=tmp_path / "a", overrides=options, track=())
    with pytest.raises(KeyboardInterrupt):
        train("idiomoe", data=data, out=tmp_path / "b", overrides=options, track=(_StopsIn(2),))
    again = train("idiomoe", data=data, out=tmp_path / "b", overrides=options, resume=True, track=())
    assert again.summary["best_step"] == whole.summary["best_step"]
    for name, tensor in whole.weights().items():
        assert torch.equal(again.weights()[name], tensor), name


def test_the_loss_on_texts_is_that_of_the_language_model_itself() -> None:
    model = built("llama", *TEXT, "model.lm_loss=0.5", "model.lm_places=20000").train()
    batch = collate([[3, 1, 4], [5]], MAX_LEN)
    aux = model(packed(batch)).aux
    model.eval()
    assert model(batch).aux == {}
    with torch.no_grad():
        losses = []
        for row in ([3, 1, 4], [5]):
            hidden_W, target = written_out(model, row)
            logit_NV = model.lm.text_logits(hidden_W)
            losses.append(torch.nn.functional.cross_entropy(logit_NV, target, reduction="none"))
    # Places are drawn, so the mean is one over a sample.
    assert_close(aux["language"], 0.5 * torch.cat(losses).mean(), atol=0.02, rtol=0)


def written_out(model: Idiomoe, row: list[int]) -> tuple[Tensor, Tensor]:
    """States and targets of every text token of a history, which is read alone in a row."""
    prompt, states, targets = model.prompt, [], []
    seen: list[Tensor] = []
    hook = model.lm.decoder.register_forward_hook(lambda _, __, out: seen.append(out.last_hidden_state[0]))
    model.begin(collate([row], len(row)))
    hook.remove()
    stride = 1 + prompt.n_texts
    for e, item in enumerate(row):
        n_tokens = int(prompt.length_I[item])
        states.append(seen[0][e * stride : e * stride + n_tokens])
        targets.append(prompt.token_IT[item, :n_tokens])
    return torch.cat(states), torch.cat(targets)


def test_a_loss_on_texts_needs_texts() -> None:
    with pytest.raises(ConfigError, match=r"lm_loss=0\.1 is a loss on texts; name some, columns="):
        built("llama", "model.lm_loss=0.1")


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_a_step_over_texts_never_waits_for_the_device(checkpointing: str) -> None:
    options = ("model.lm_loss=0.5", "model.dropout=0.1", "model.train_attention=true", "model.max_tokens=9")
    model = built("gemma3_text", *TEXT, *options, f"lm.checkpointing={checkpointing}").train()
    objective, batch = NextItem(NextItemConfig(), N_ITEMS), collate([[3, 1, 4, 2], [5]], MAX_LEN + 1)
    with Waits() as waits:
        targets = objective.prepare(batch, torch.Generator())
        Step(model, objective)(batch, targets)["loss"].backward()
    assert waits.found == set()


@torch.no_grad()
def test_rows_of_many_tokens_are_read_some_at_a_time_and_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("llama", *TEXT)
    batch, n_read = packed(ragged()), []
    model.blocks[0].register_forward_pre_hook(lambda _, given: n_read.append(given[0].shape[1]))
    whole = model.encode_next(batch).hidden_BLD
    monkeypatch.setattr("lexrec.models.idiomoe._TOKENS_AT_ONCE", 60)
    some = model.encode_next(batch).hidden_BLD
    stride = 1 + model.prompt.n_texts
    # 15 slots at once; then two rows with 8 + 1 events, and two with none and 3.
    assert n_read == [15 * stride, 9 * stride, 3 * stride]
    assert_close(some[batch.length_B > 0], whole[batch.length_B > 0])


@families
@pytest.mark.parametrize("budget", ["null", "6"])
@torch.no_grad()
def test_a_history_may_begin_as_a_text_does(family: str, budget: str) -> None:
    """With `begin` a history is what it is after the begin token, packed, in rows and step by step."""
    options = (*TEXT, "model.begin=true", "model.read_at=end", f"model.max_tokens={budget}")
    model = built(family, *options)
    assert model.begin_1P.tolist() == [[1]]
    batch = collate([[3, 1, 4], [5], [2, 7, 6, 9, 8]], MAX_LEN)
    together = model(packed(batch)).hidden_BLD[:, -1]
    state = model.begin(collate([[3, 1], [5, 2]], 2))
    assert_close(model.step(state, torch.tensor([4, 6])).hidden_BD[0], together[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(built(family, *options, "model.begin=false")(batch).hidden_BLD[:, -1], together)
    if budget == "null":
        plain = built(family, *options, "model.adapter={name: shared, train_ffn: false}")
        embedded = [plain.lm.embed_text(torch.tensor([1]))]
        for item in (3, 1, 4):
            tokens = plain.prompt.token_IT[item, : plain.prompt.length_I[item]]
            embedded += [
                plain.item_scale * plain.items.lookup(torch.tensor([item])),
                plain.lm.embed_text(tokens),
            ]
        expected = plain.lm.decoder(inputs_embeds=torch.cat(embedded)[None], use_cache=False)[0][0, -1]
        assert_close(plain(packed(batch)).hidden_BLD[0, -1], expected, atol=1e-5, rtol=1e-4)


def test_the_begin_token_is_trained_through_with_and_without_recomputing() -> None:
    gradients = []
    for checkpointing in ("false", "true"):
        options = ("model.begin=true", "model.train_attention=true", f"lm.checkpointing={checkpointing}")
        model = built("gemma3_text", *TEXT, *options).train()
        objective = NextItem(NextItemConfig(), N_ITEMS)
        batch = collate([[1, 2, 3, 4], [5, 6, 7]], MAX_LEN + 1)
        Step(model, objective)(batch, objective.prepare(batch, torch.Generator()))["loss"].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)
