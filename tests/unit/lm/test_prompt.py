"""Texts of items as tokens, and the places of events in a stream."""

import pyarrow as pa
import pytest
import torch

from lexrec.data.batch import collate, with_slots
from lexrec.errors import ConfigError
from lexrec.lm.prompt import Prompt, read_texts
from lexrec.lm.settings import LmConfig
from tests.language_models import folder


def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder())


def items() -> pa.Table:
    titles = ["red nail polish", None, "soap", ""]
    return pa.table({"item_id": range(4), "title": titles, "category": ["the red brush", "soap", None, None]})


def words(prompt: Prompt) -> list[list[str]]:
    lengths = prompt.length_I.tolist()
    rows = zip(prompt.token_IT.tolist(), lengths, strict=True)
    return [tokenizer().convert_ids_to_tokens(row[:length]) for row, length in rows]


def test_each_column_is_cut_on_its_own_and_what_is_missing_leaves_no_mark() -> None:
    prompt = read_texts(items(), ("title", "category"), 2, tokenizer())
    wanted = [[], ["red", "nail", ";", "the", "red"], ["soap"], ["soap"], [], []]
    assert words(prompt) == wanted
    assert prompt.n_texts == 5
    assert words(read_texts(items(), ("category",), 9, tokenizer()))[1] == ["the", "red", "brush"]


def test_columns_come_in_the_order_they_are_named() -> None:
    prompt = read_texts(items(), ("category", "title"), 1, tokenizer())
    assert words(prompt)[1] == ["the", ";", "red"]


def test_a_table_without_text_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"items have no column 'title'; known: none; prepare it again"):
        read_texts(None, ("title",), 2, tokenizer())
    with pytest.raises(ConfigError, match=r"model\.columns: no item has any text in title"):
        read_texts(pa.table({"item_id": [1], "title": [""]}), ("title",), 2, tokenizer())


def test_events_have_their_places_whatever_the_texts_lengths() -> None:
    prompt = read_texts(items(), ("title", "category"), 2, tokenizer())
    batch = with_slots(collate([[2, 4], [3]], 3), 4)
    events = prompt.events(batch)
    assert events.item_N.tolist() == [2, 4, 3, 0]
    assert events.history_NT[:, 0].tolist() == [0, 0, 1, 1]
    assert events.is_token_NT.sum(1).tolist() == [2, 1, 2, 0]
    # Positions go on where the last event's text ended.
    assert events.position_NT[0, :2].tolist() == [0, 1]
    assert events.position_NT[1, 0] == 2
    assert events.position_NT[2, :2].tolist() == [0, 1]
    assert events.item_place_N.tolist() == [0, 6, 12, 18]
    assert events.end_place_N.tolist() == [1, 6, 13, 18]


def test_ids_alone_are_a_place_an_event() -> None:
    batch = collate([[1, 4], [3]], 3)
    events = Prompt.ids_alone(4).events(batch)
    assert events.position_NT.shape == (6, 1)
    assert events.item_N.tolist() == batch.item_BL.flatten().tolist()
    assert torch.equal(events.item_place_N, events.end_place_N)
    assert events.position_NT[:3, 0].tolist() == [0, 0, 1]


def test_lm_config_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="unknown key 'name'; known: checkpointing, dtype, model"):
        LmConfig(name="x")
