"""Questions after histories: what is read, what it is equal to, and that answers are learned."""

import pyarrow as pa
import pytest
import torch
from torch.testing import assert_close

from lexrec.config import load_recipe
from lexrec.data.batch import collate
from lexrec.errors import ConfigError
from lexrec.evaluation.scorer import ModelScorer
from lexrec.item_encoders.base import Catalogue
from lexrec.lm.questions import WORDINGS, Questions, Text, item_labels
from lexrec.models import build_model, model_width
from lexrec.models.idiomoe import Idiomoe
from lexrec.objectives.ask import Ask, AskConfig
from lexrec.objectives.next_item import NextItem, NextItemConfig
from lexrec.serving.ask import reasons
from lexrec.serving.scorer_ranker import ScorerRanker
from lexrec.training.step import Step
from tests.components import MAX_LEN, N_ITEMS, build, build_encoder
from tests.contract.test_backbones import Waits
from tests.language_models import FAMILIES, folder

KINDS = ["soap", "brush", "nail polish"]


def table() -> pa.Table:
    """Item i is of kind i mod 3; the last one is of none."""
    kinds = [f"Beauty > {KINDS[i % 3].title()}" for i in range(1, N_ITEMS)] + [None]
    titles = [f"t{i} t{i + 12}" for i in range(1, N_ITEMS + 1)]
    return pa.table({"item_id": list(range(N_ITEMS)), "title": titles, "category": kinds})


def built(family: str = "llama", *overrides: str) -> Idiomoe:
    model = ["model.dropout=0", f"model.max_len={MAX_LEN}", f"lm.model={folder(family)}"]
    config = load_recipe("idiomoe_ask", [*model, *overrides])
    torch.manual_seed(0)
    made = build_model(config, Catalogue(N_ITEMS, model_width(config), (), table()))
    assert isinstance(made, Idiomoe)
    return made.eval()


def question(model: Idiomoe, *texts: str) -> Text:
    """One text a row."""
    return Text.of(texts, model.lm.tokenizer)


def test_values_are_the_ends_of_paths_and_every_wording_names_one() -> None:
    model = built()
    assert model.questions is not None
    assert model.questions.labels == ("", "brush", "nail polish", "soap")
    assert item_labels(table(), "category")[:3] == ["brush", "nail polish", "soap"]
    assert model.questions.value_IC[:, 0].tolist() == [0, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 0, 0]
    tokenizer = model.lm.tokenizer
    for wording, form in enumerate(WORDINGS):
        token_1Q, is_token_1Q = model.questions.text(torch.tensor([2]), torch.tensor([wording]))
        assert token_1Q[is_token_1Q].tolist() == tokenizer(form.format("nail polish"))["input_ids"][1:]


def test_the_last_wording_is_never_drawn_and_items_without_a_value_have_no_question() -> None:
    model = built()
    assert model.questions is not None
    torch.manual_seed(0)
    text, has_question = model.questions.draw(torch.full((200,), 2))
    said = {
        tuple(tokens[keep].tolist()) for tokens, keep in zip(text.token_BQ, text.is_token_BQ, strict=True)
    }
    wanted = {
        tuple(model.lm.tokenizer(form.format("nail polish"))["input_ids"][1:]) for form in WORDINGS[:-1]
    }
    assert said == wanted
    assert has_question.all()
    assert not model.questions.draw(torch.tensor([0, N_ITEMS, N_ITEMS + 1]))[1].any()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("model.columns=[title]", "model.text_len=3"),
        ("model.columns=[title]", "model.read_at=end", "model.begin=true", "model.max_tokens=9"),
    ],
    ids=["ids", "text", "begin"],
)
@torch.no_grad()
def test_an_answer_is_what_follows_history_and_text_one_after_the_other(
    family: str, options: tuple[str]
) -> None:
    model = built(family, *options)
    together = model.answer(
        collate([[3, 1, 4], [5]], MAX_LEN), question(model, "red soap", "a brush for the")
    )
    for row, history, text in ((0, [3, 1, 4], "red soap"), (1, [5], "a brush for the")):
        state = model.begin(collate([history], len(history)))
        state = model.read_text(state, *question(model, text))
        state = model.step(state, torch.tensor([N_ITEMS + 1]))
        assert_close(together[row], state.hidden_BD[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_an_answer_after_no_history_and_under_an_encoder_that_adds_later() -> None:
    model = built()
    empty = collate([[], [3]], MAX_LEN)
    assert model.answer(empty, question(model, "soap", "soap")).isfinite().all()
    model.items = build_encoder("mltfr", inject="after_block0").eval()
    batch, text = collate([[3, 1, 4]], 3), question(model, "soap")
    with_it, plain = model.answer(batch, text), model.items.forward
    model.items.forward = lambda b: plain(b)._replace(after_block0_BLD=None)  # type: ignore[method-assign]
    assert not torch.allclose(model.answer(batch, text), with_it)


def test_what_is_asked_is_a_later_event_of_the_row_after_those_before_it() -> None:
    batch = collate([[1, 2, 3, 4, 5, 6], [7], [], [8, 9]], MAX_LEN + 1)
    goal = Ask(AskConfig(share=1.0, history=3), N_ITEMS)
    seen = set()
    for seed in range(40):
        view = goal.prepare(batch, torch.Generator().manual_seed(seed)).views[0]
        assert view.item_BL.shape == (4, 4)
        seen |= {tuple(row[row > 0].tolist()) for row in view.item_BL}
    wanted = {(1, 2), (1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (3, 4, 5, 6), (7,), (), (8, 9)}
    assert seen == wanted


def trained(model: Idiomoe, goal: torch.nn.Module, n_steps: int) -> None:
    step, generator = Step(model.train(), goal), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([p for p in step.parameters() if p.requires_grad], lr=5e-3)
    # Nothing of the next item follows from the history: only the question tells its kind.
    rows = torch.randint(1, N_ITEMS, (64, 5), generator=torch.Generator().manual_seed(1)).tolist()
    batch = collate(rows, MAX_LEN + 1)
    torch.manual_seed(0)
    for _ in range(n_steps):
        loss = step(batch, goal.prepare(batch, generator))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


@torch.no_grad()
def share_that_fit(model: Idiomoe, wording: int) -> float:
    """Share of the first four answers to each kind that are of it, after histories not trained on."""
    assert model.questions is not None
    batch = collate([[a, b] for a in range(1, N_ITEMS) for b in (3, 7)], MAX_LEN)
    fits = []
    for value in range(1, 4):
        value_B = torch.full((len(batch.item_BL),), value)
        hidden = model.answer(batch, model.questions.text(value_B, torch.full_like(value_B, wording)))
        best = model.scoring().score(hidden).topk(3).indices + 1
        fits.append(model.questions.value_IC[best, 0] == value)
    return float(torch.stack(fits).float().mean())


@pytest.mark.parametrize("frozen", [False, True])
def test_a_model_that_was_asked_answers_with_what_fits(frozen: bool) -> None:
    model = built("llama", f"model.train_attention={not frozen}")
    assert share_that_fit(model, 0) < 0.6
    trained(model, Ask(AskConfig(share=1.0), N_ITEMS), 60)
    assert share_that_fit(model, 0) > 0.9
    assert share_that_fit(model, len(WORDINGS) - 1) > 0.7


def test_a_model_that_was_never_asked_does_not() -> None:
    model = built()
    trained(model, NextItem(NextItemConfig(), N_ITEMS), 60)
    assert share_that_fit(model, 0) < 0.6


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_a_step_with_questions_never_waits_and_recomputes_alike(checkpointing: str) -> None:
    options = ("model.columns=[title]", "model.begin=true", f"lm.checkpointing={checkpointing}")
    model, goal = built("gemma3_text", *options).train(), Ask(AskConfig(share=0.5), N_ITEMS)
    batch = collate([[3, 1, 4, 2], [5], [], [7, 8]], MAX_LEN + 1)
    torch.manual_seed(0)
    with Waits() as waits:
        targets = goal.prepare(batch, torch.Generator().manual_seed(0))
        losses = Step(model, goal)(batch, targets)
        losses["loss"].backward()
    assert waits.found == set()
    assert_close(losses["loss"], losses["ce"] + losses["answers"])
    mask_row = model.items.get_submodule("embedding").weight.grad[N_ITEMS + 1]  # type: ignore[index]
    assert mask_row.any()


def test_objective_ask_refuses_what_has_no_questions() -> None:
    with pytest.raises(ConfigError, match=r"Idiomoe has none; use model\.name=idiomoe with model\.ask=\["):
        Step(build("idiomoe"), Ask(AskConfig(), N_ITEMS))
    with pytest.raises(ConfigError, match=r"and SASRec has none|and Sasrec has none"):
        Step(build("sasrec"), Ask(AskConfig(), N_ITEMS))


def test_columns_that_cannot_be_asked_for_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"questions: the data set's items have no column 'brand'; known: ti"
    ):
        built("llama", "model.ask=[brand]")
    empty = table().set_column(2, "category", pa.array([None] * N_ITEMS, pa.string()))
    with pytest.raises(ConfigError, match=r"questions: no item has any text in category"):
        Questions.of(empty, ["category"], built().lm.tokenizer)
    with pytest.raises(ConfigError, match=r"a question has at least one word, got ' '"):
        Text.of(["soap", " "], built().lm.tokenizer)


def said(model: Idiomoe, row: list[int]) -> tuple[str, bool]:
    assert model.reasons is not None
    text, has_reason = model.reasons.texts(collate([row, [1, 2]], MAX_LEN).item_BL)
    assert text.is_token_BQ[0].tolist() == sorted(text.is_token_BQ[0].tolist(), reverse=True)
    words = model.lm.tokenizer.convert_ids_to_tokens(text.token_BQ[0][text.is_token_BQ[0]].tolist())
    return " ".join(words), bool(has_reason[0])


def test_a_reason_names_the_newest_item_that_is_alike_or_the_newest() -> None:
    model = built()
    because = "<unk> <unk> <unk>"  # the tiny tokenizer does not know "because it is"
    assert said(model, [4, 1, 2, 7]) == (f"{because} brush , like t1 t13 <eos>", True)
    assert said(model, [3, 2, 7]) == (f"{because} brush , <unk> t2 t14 <eos>", True)
    assert not said(model, [3, N_ITEMS])[1]
    assert not said(model, [7])[1]


def test_a_loss_on_reasons_needs_titles_and_moves_text() -> None:
    config = load_recipe("idiomoe_ask", [f"lm.model={folder()}"])
    bare = build_model(config, Catalogue(N_ITEMS, 32, (), table().select(["item_id", "category"])))
    with pytest.raises(
        ConfigError, match=r"objective\.reasons=0\.1 trains on titles, and the items have none"
    ):
        Step(bare, Ask(AskConfig(reasons=0.1), N_ITEMS))
    model, goal = built().train(), Ask(AskConfig(share=1.0, reasons=2.0), N_ITEMS)
    batch = collate([[3, 1, 4, 2], [5], [], [7, 8]], MAX_LEN + 1)
    with Waits() as waits:
        losses = Step(model, goal)(batch, goal.prepare(batch, torch.Generator().manual_seed(0)))
        losses["loss"].backward()
    assert waits.found == set()
    assert losses["reasons"] > 0
    assert_close(losses["loss"], losses["ce"] + losses["answers"] + 2 * losses["reasons"])


def test_a_model_that_learned_reasons_says_what_an_item_is() -> None:
    model = built()
    trained(model, Ask(AskConfig(share=1.0, reasons=3.0), N_ITEMS), 120)
    told = reasons(ScorerRanker(ModelScorer(model)), [3, 7], list(range(1, N_ITEMS)))
    assert sum(reason.is_grounded for reason in told) >= N_ITEMS - 2
    assert told[0].text.startswith("because it is brush ,")
