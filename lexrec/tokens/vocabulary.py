"""Token strings by token id, from the files tokenizers ship: tokenizer.json and vocab.txt."""

import json
from typing import Any

from lexrec.errors import TokensError

MAX_BYTES = 64 << 20
"""Largest vocabulary file read; that of a quarter of a million tokens takes 33 MB."""


def parse(text: str, filename: str) -> tuple[str, ...]:
    """Token strings of a vocabulary file: `.json` is a tokenizer.json, anything else one token a line.

    Raises:
        TokensError: the file holds no vocabulary.
    """
    by_id = _from_json(text, filename) if filename.endswith(".json") else _from_lines(text)
    if not by_id:
        raise TokensError(f"{filename}: holds no vocabulary")
    if max(by_id) > 100 * len(by_id):
        raise TokensError(f"{filename}: token id {max(by_id)} in a vocabulary of {len(by_id)}")
    return tuple(by_id.get(i, _unnamed(i)) for i in range(max(by_id) + 1))


def fit(tokens: tuple[str, ...], n_rows: int, where: str) -> tuple[str, ...]:
    """One string a row. Tables are often padded to a round number of rows: those get a placeholder.

    Raises:
        TokensError: the vocabulary has tokens beyond the table's last row, so it is another model's.
    """
    if len(tokens) > n_rows:
        raise TokensError(f"{where}: {len(tokens)} token strings for a table of {n_rows} rows")
    if not tokens:
        return ()
    return tokens + tuple(_unnamed(i) for i in range(len(tokens), n_rows))


def is_special(token: str) -> bool:
    """True for a token that stands for no text: `<s>`, `[PAD]`, `<|endoftext|>`, `[unused7]`, `<0x0A>`."""
    return len(token) > 2 and (token[0], token[-1]) in {("<", ">"), ("[", "]")}


def _unnamed(token: int) -> str:
    return f"<row_{token}>"


def _from_lines(text: str) -> dict[int, str]:
    # Not splitlines(): vocabularies hold tokens that are themselves Unicode line separators.
    lines = text.removesuffix("\n").split("\n")
    return {i: line.removesuffix("\r") for i, line in enumerate(lines)} if text else {}


def _from_json(text: str, filename: str) -> dict[int, str]:
    try:
        tree: Any = json.loads(text)
        vocab = tree["model"]["vocab"]
        pairs = (
            vocab.items() if isinstance(vocab, dict) else [(piece, i) for i, (piece, _) in enumerate(vocab)]
        )
        added = [(record["content"], record["id"]) for record in tree.get("added_tokens") or ()]
        by_id = {int(i): str(token) for token, i in [*pairs, *added]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TokensError(f"{filename}: not a tokenizer.json with a model.vocab") from error
    if by_id and min(by_id) < 0:
        raise TokensError(f"{filename}: negative token id {min(by_id)}")
    return by_id
