import json

import pytest

from lexrec.errors import TokensError
from lexrec.tokens import vocabulary
from tests.unit.tokens import _files


def test_tokenizer_json_by_id_with_gaps_and_padding():
    text = json.dumps({"model": {"vocab": {"b": 1, "a": 0, "d": 3}}, "added_tokens": None})
    assert vocabulary.parse(text, "tokenizer.json", 5) == ("a", "b", "<row_2>", "d", "<row_4>")


def test_unigram_vocabulary_is_a_list_of_pieces_with_scores():
    text = json.dumps({"model": {"vocab": [["<s>", 0.0], ["\u2581the", -3.1]]}})
    assert vocabulary.parse(text, "tokenizer.json", 2) == ("<s>", "\u2581the")


def test_added_tokens_name_their_rows_and_those_without_a_row_are_left_out():
    text = _files.tokenizer_json(["a", "b"], added={"<eos>": 2, "<image>": 3})
    assert vocabulary.parse(text, "tokenizer.json", 3) == ("a", "b", "<eos>")


def test_vocab_txt_keeps_tokens_that_are_line_separators():
    assert vocabulary.parse("[PAD]\n\u2028\n\x85\r\nend\n", "vocab.txt", 4) == (
        "[PAD]",
        "\u2028",
        "\x85",
        "end",
    )


@pytest.mark.parametrize(
    ("text", "filename", "message"),
    [
        ("a\nb\nc", "vocab.txt", "vocab.txt: 3 token strings for a table of 2 rows"),
        ("", "vocab.txt", "vocab.txt: holds no vocabulary"),
        ("{", "t.json", "not a tokenizer.json with a model.vocab"),
        ("[]", "t.json", "not a tokenizer.json"),
        ("[" * 100_000, "t.json", "not a tokenizer.json"),
        ('{"model": {}}', "t.json", "not a tokenizer.json"),
        ('{"model": {"vocab": 3}}', "t.json", "not a tokenizer.json"),
        ('{"model": {"vocab": {"a": "x"}}}', "t.json", "not a tokenizer.json"),
        ('{"model": {"vocab": [[]]}}', "t.json", "not a tokenizer.json"),
        ('{"model": {"vocab": {}}}', "t.json", "holds no vocabulary"),
        ('{"model": {"vocab": {"a": -1}}}', "t.json", "negative token id -1"),
        ('{"model": {"vocab": {"a": 1000000000000}}}', "t.json", "for a table of 2 rows"),
    ],
)
def test_vocabularies_that_are_none_are_refused(text, filename, message):
    with pytest.raises(TokensError, match=message.replace(".", r"\.")):
        vocabulary.parse(text, filename, 2)


def test_fit_pads_and_refuses_another_models_vocabulary():
    assert vocabulary.fit(("a",), 3, "t") == ("a", "<row_1>", "<row_2>")
    with pytest.raises(TokensError, match="t: 3 token strings for a table of 2 rows"):
        vocabulary.fit(("a", "b", "c"), 2, "t")


@pytest.mark.parametrize(
    "token",
    ["<s>", "</s>", "<unk>", "<0x0A>", "<|endoftext|>", "[CLS]", "[unused7]", "<unused12>", "<row_4>"],
)
def test_special(token):
    assert vocabulary.is_special(token)


@pytest.mark.parametrize("token", ["the", "\u2581beer", "<", "[]", "<=>", "##ing", "[0]", ""])
def test_not_special(token):
    assert not vocabulary.is_special(token)
