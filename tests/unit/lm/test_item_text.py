"""Item vectors made of texts, Text-Attr LLM's and Title-LLM's, against the family reading alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lexrec.data.batch import collate
from lexrec.data.dataset import Dataset
from lexrec.errors import ConfigError
from lexrec.evaluation.scorer import ModelScorer
from lexrec.item_encoders.base import Catalogue
from lexrec.lm import item_text, loading
from lexrec.lm.prompt import read_texts
from lexrec.lm.settings import LmConfig
from lexrec.models.idiomoe import Idiomoe, IdiomoeConfig
from lexrec.training.step import Step
from lexrec.training.train import train
from tests import components, language_models
from tests.components import DIM, MAX_LEN, N_ITEMS, build_encoder, ragged
from tests.contract.test_backbones import Waits
from tests.worlds import world

FAMILIES = language_models.FAMILIES


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEXREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def titles() -> pa.Table:
    """Item 3 has no title."""
    names = components.item_table()["title"].to_pylist()
    names[2] = None
    return pa.table({"item_id": list(range(N_ITEMS)), "title": names})


def built(family: str = "llama", seed: int = 0, **options: Any) -> Idiomoe:
    torch.manual_seed(seed)
    lm = {"model": str(language_models.folder(family))}
    config = IdiomoeConfig(
        lm=lm,
        adapter={"name": "shared"},
        dim=DIM,
        max_len=MAX_LEN,
        columns=("title",),
        dropout=0.0,
        **options,
    )
    model = Idiomoe(config, build_encoder("id_embedding"))
    model.describe(Catalogue(N_ITEMS, DIM, item_table=titles()))
    return model.eval()


def title_llm(family: str = "llama", seed: int = 0) -> Idiomoe:
    return built(family, seed, text_as="items", read_at="end")


def tokens(lm: loading.LanguageModel, item: int) -> list[int]:
    """What the family itself reads of an item."""
    title = titles()["title"].to_pylist()[item - 1]
    return lm.tokenizer(title, add_special_tokens=False)["input_ids"] if title else []


@torch.no_grad()
def alone(lm: loading.LanguageModel, token_S: list[int]) -> Tensor:
    """States of a text in the plain language model, [S, W]."""
    return lm.decoder(input_ids=torch.tensor([token_S]))[0][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_fixed_vectors_are_standardised_means_of_the_pretrained_models_states(family: str) -> None:
    config = LmConfig(model=str(language_models.folder(family)))
    lm = loading.load(config)
    text_ID = item_text.text_vectors(config, read_texts(titles(), ("title",), 16, lm.tokenizer))
    known = [i for i in range(1, N_ITEMS + 1) if i != 3]
    mean_ND = torch.stack([alone(lm, tokens(lm, i)).double().mean(0) for i in known])
    expected_ND = 0.02 * (mean_ND - mean_ND.mean(0)) / mean_ND.std(0, correction=0)
    assert text_ID.shape == (N_ITEMS + 2, DIM)
    assert_close(text_ID[known].double(), expected_ND, atol=1e-5, rtol=1e-3)
    assert (text_ID[[0, 3, N_ITEMS + 1]] == 0).all()


def test_fixed_vectors_join_those_of_the_encoder_for_input_and_for_scoring() -> None:
    model, plain = built(text_as="vector"), built(text_as="vector").items.plain
    text_ID, item_BL = model.items.text_ID, ragged().item_BL
    with torch.no_grad():
        assert_close(model.items(ragged()).x_BLD, plain.lookup(item_BL) + text_ID[item_BL])
        table, plain_table = model.scoring(), plain.scoring()
        assert_close(table.block(2, 9), plain_table.block(2, 9) + text_ID[2:9])
        item_NK = torch.tensor([[3, 4]])
        assert_close(table.take(item_NK), plain_table.take(item_NK) + text_ID[item_NK])
    assert model.prompt.n_texts == 0
    assert model.tokens_per_event == 1.0
    assert not any("text_ID" in name for name in model.state_dict())


def test_fixed_vectors_are_read_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = built(text_as="vector").items.text_ID
    assert len(list((cache / "lm" / "states").iterdir())) == 1
    other = built("qwen3", text_as="vector").items.text_ID
    assert not torch.allclose(first, other)
    with monkeypatch.context() as patched:
        patched.setattr(item_text, "_read_all", None)
        assert torch.equal(built(text_as="vector").items.text_ID, first)
    for kept in (cache / "lm" / "states").iterdir():
        kept.write_bytes(b"torn")
    assert_close(built(text_as="vector").items.text_ID, first)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_item_is_what_the_language_model_makes_of_its_title(family: str) -> None:
    model, lm = title_llm(family), loading.load(LmConfig(model=str(language_models.folder(family))))
    begin = lm.causal.config.bos_token_id
    with torch.no_grad():
        row_ID = model.scoring().take(torch.tensor([[1, 2], [3, 12]]))
    assert row_ID.shape == (2, 2, DIM)
    for row_D, item in zip(row_ID.flatten(0, 1), (1, 2, 3, 12), strict=True):
        assert_close(row_D, alone(lm, [begin, *tokens(lm, item)])[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_user_is_what_the_language_model_makes_of_the_titles_in_order(family: str) -> None:
    model, lm = title_llm(family), loading.load(LmConfig(model=str(language_models.folder(family))))
    begin, read = lm.causal.config.bos_token_id, []
    with torch.no_grad():
        hidden_LD = model(collate([[4, 3, 7]], 3)).hidden_BLD[0]
    for position, item in enumerate([4, 3, 7]):
        read += [begin, *tokens(lm, item)]
        assert_close(hidden_LD[position], alone(lm, read)[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{"text_as": "vector"}, {"text_as": "items", "read_at": "end"}])
def test_a_step_equals_reading_the_whole(options: dict[str, str]) -> None:
    model = built(**options)
    with torch.no_grad():
        state = model.step(model.begin(collate([[1, 2, 3], [5]], MAX_LEN)), torch.tensor([4, 6]))
        forward_BLD = model(collate([[1, 2, 3, 4], [5, 6]], MAX_LEN)).hidden_BLD
    assert_close(state.hidden_BD, forward_BLD[:, -1])


def test_items_are_ranked_by_cosine_and_read_once_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = title_llm(), collate([[1, 2], [5, 6, 7]], MAX_LEN)
    with torch.no_grad():
        state_BD = model.encode_next(batch).hidden_BLD[:, -1]
        row_ID = model.scoring().take(torch.arange(1, N_ITEMS + 1))
        expected_BI = 20 * torch.cosine_similarity(state_BD[:, None], row_ID[None], dim=-1)
        assert_close(model.scoring().score(state_BD), expected_BI)
        scorer = ModelScorer(model)
        monkeypatch.setattr(model.items, "_read", None)
        assert_close(scorer.score(scorer.encode(batch), 1, N_ITEMS + 1), expected_BI)
        monkeypatch.undo()
        model.train()
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.eval()
        changed_ID = model.scoring().take(torch.arange(1, N_ITEMS + 1))
    assert not torch.allclose(changed_ID, row_ID)


def test_title_llm_has_no_item_table_and_learns_from_titles() -> None:
    model = title_llm().train()
    assert not any("embedding" in name for name in model.state_dict())
    options = {"loss": "sampled_softmax", "shared_negatives": True, "n_negatives": 8}
    goal = components.build_objective("next_item", **options)
    step, batch = Step(model, goal), components.cycles(12)
    optimizer = torch.optim.Adam([p for p in step.parameters() if p.requires_grad], lr=3e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(40):
        loss = step(batch, goal.prepare(batch, generator))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    # The titles of items and those of histories are read by the same weights.
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize("options", [{"text_as": "vector"}, {"text_as": "items", "read_at": "end"}])
def test_a_training_step_never_waits_for_the_device(options: dict[str, str]) -> None:
    goal = components.build_objective(
        "next_item", loss="sampled_softmax", shared_negatives=True, n_negatives=4
    )
    step, batch = Step(built(**options).train(), goal), components.cycles(4)
    with Waits() as waits:
        step(batch, goal.prepare(batch, torch.Generator().manual_seed(0)))["loss"].backward()
    assert waits.found == set()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"text_as=vector reads texts; name some, columns=\[title\]"):
        IdiomoeConfig(text_as="vector")
    with pytest.raises(ValueError, match="text_as=items has no item token to read at; set read_at=end"):
        IdiomoeConfig(text_as="items", columns=("title",))
    model = Idiomoe(
        IdiomoeConfig(
            lm={"model": str(language_models.folder())}, text_as="items", columns=("title",), read_at="end"
        ),
        build_encoder("mltfr"),
    )
    with pytest.raises(ConfigError, match="makes vectors of texts alone; use item_encoder"):
        model.describe(Catalogue(N_ITEMS, DIM, item_table=titles()))


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    rows = [[(u + t) % N_ITEMS + 1 for t in range(7)] for u in range(20)]
    bare = world(rows, N_ITEMS)
    names = [f"i{i}" for i in range(1, N_ITEMS + 1)]
    items = titles().set_column(0, "item_id", pa.array(names))
    return replace(bare, tables={**bare.tables, "items": items}).save(tmp_path / "data")


@pytest.mark.parametrize("recipe", ["text_attr_llm", "title_llm"])
def test_a_run_ranks_after_it_was_saved_as_before(recipe: str, data: Dataset, tmp_path: Path) -> None:
    changes = [
        f"lm.model={language_models.folder()}",
        "model.columns=[title]",
        "model.max_len=6",
        "train.batch_size=8",
        "train.max_steps=6",
    ]
    run = train(recipe, data=data, out=tmp_path / "run", overrides=changes, device="cpu", track=())
    assert run.summary["tokens"] >= run.summary["events"]
    assert run.summary["parameters"] < run.summary["parameters_total"]
    one, other = run.scorer(), run.scorer()
    batch = collate([[1, 2, 3]], 6)
    assert torch.equal(
        one.score(one.encode(batch), 1, N_ITEMS + 1), other.score(other.encode(batch), 1, N_ITEMS + 1)
    )
