"""From texts to rows: the shipped tokenizer where there is one, token strings alone where there is none."""

import json
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from lexrec.errors import TokensError
from lexrec.tokens.catalogue import load_table
from lexrec.tokens.table import TokenTable
from lexrec.tokens.tokenize import token_rows

WORDPIECES = ["[PAD]", "[UNK]", "red", "nail", "pol", "##ish", "##s", ",", "cafe", "&"]


def table(tokens: list[str], tokenizer: str | None = None, n_rows: int | None = None) -> TokenTable:
    weight_VW = torch.zeros(n_rows or len(tokens), 4)
    names = tuple(tokens[: len(weight_VW)])
    return TokenTable("made", weight_VW, names, "made", "0", "", "none", tokenizer)


def read(made: TokenTable, *texts: str) -> list[list[str]]:
    return [[made.tokens[row] for row in rows] for rows in token_rows(made, texts)]


def wordpiece_tokenizer() -> Tokenizer:
    vocab = {token: i for i, token in enumerate(WORDPIECES)}
    built = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer(lowercase=True)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return built


TEXTS = ("Red nail polish, Café", "nails & polishs", "unknowable red", "", "red_red")


def test_wordpieces_alone_give_what_the_tokenizer_gives() -> None:
    shipped = table(WORDPIECES, wordpiece_tokenizer().to_str())
    alone = replace(shipped, tokenizer=None)
    assert read(alone, *TEXTS) == read(shipped, *TEXTS)
    assert read(alone, TEXTS[0]) == [["red", "nail", "pol", "##ish", ",", "cafe"]]


def test_a_tokenizers_own_padding_and_cut_are_not_ours() -> None:
    built = wordpiece_tokenizer()
    built.enable_padding(length=9)
    built.enable_truncation(max_length=2)
    assert read(table(WORDPIECES, built.to_str()), "red nail polish") == [["red", "nail", "pol", "##ish"]]


def test_sentence_pieces_and_byte_pieces_are_cut_greedily() -> None:
    pieces = table(["<s>", "\u2581red", "\u2581na", "il", "s", "\u2581", "\u2581r"])
    assert read(pieces, "red nails", "  ", "x") == [["\u2581red", "\u2581na", "il", "s"], [], ["\u2581"]]
    # An accented letter is two bytes, which byte-level vocabularies write as two letters.
    bytes_ = table(["<|endoftext|>", "\u0120red", "\u0120caf", "\u00c3\u00a9", "\u0120"])
    assert read(bytes_, "red caf\u00e9") == [["\u0120red", "\u0120caf", "\u00c3\u00a9"]]


def test_tokens_without_a_row_or_without_text_are_left_out() -> None:
    shorter = table(WORDPIECES, wordpiece_tokenizer().to_str(), n_rows=4)
    assert read(shorter, "red nail polish xyz") == [["red", "nail"]]


def test_a_table_that_cannot_be_read_says_why() -> None:
    with pytest.raises(TokensError, match="token table made: came without token strings, so no text"):
        token_rows(table([], n_rows=3), ["red"])
    with pytest.raises(TokensError, match="token table made: its tokenizer cannot be read: "):
        token_rows(table(WORDPIECES, json.dumps({"model": "?"})), ["red"])


@pytest.mark.network
def test_without_its_tokenizer_minilm_reads_titles_all_the_same() -> None:
    minilm = load_table("minilm")
    assert minilm.tokenizer is not None
    titles = [
        "Urban Decay Naked 3 Eyeshadow Palette",
        "Star Wars (1977)",
        "L'Or\u00e9al Paris Voluminous, 2-Pack",
    ]
    assert read(replace(minilm, tokenizer=None), *titles) == read(minilm, *titles)
