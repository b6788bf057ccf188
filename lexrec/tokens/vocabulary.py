"""Token strings by token id, from the files tokenizers ship: tokenizer.json and vocab.txt."""

import json
import re
from typing import Any

from lexrec.errors import TokensError

MAX_BYTES = 64 << 20
"""Largest vocabulary file read; that of a quarter of a million tokens takes 33 MB."""

_SPECIAL = re.compile(r"<\|.*\|>|</?[a-z0-9_]+>|<0x[0-9A-F]{2}>|\[[A-Z]+\]|\[unused\d+\]")


def parse(text: str, filename: str, n_rows: int) -> tuple[str, ...]:
    """Token strings of a vocabulary file, one a row of its table.

    `.json` is a tokenizer.json, anything else one token a line. Tokens that were added to a tokenizer
    without a row for them (Gemma's image token) are left out: they have no vector.

    Raises:
        TokensError: the file holds no vocabulary, or one that is larger than the table.
    """
    base, added = _from_json(text, filename) if filename.endswith(".json") else (_from_lines(text), {})
    by_id = base | {i: token for i, token in added.items() if i < n_rows}
    if not by_id:
        raise TokensError(f"{filename}: holds no vocabulary")
    if min(by_id) < 0:
        raise TokensError(f"{filename}: negative token id {min(by_id)}")
    _check_rows(max(by_id) + 1, n_rows, filename)
    return tuple(by_id.get(i, _unnamed(i)) for i in range(n_rows))


def fit(tokens: tuple[str, ...], n_rows: int, where: str) -> tuple[str, ...]:
    """One string a row: tables are often padded to a round number of rows, those get a placeholder.

    Raises:
        TokensError: the vocabulary has tokens beyond the table's last row, so it is another model's.
    """
    _check_rows(len(tokens), n_rows, where)
    return tokens + tuple(_unnamed(i) for i in range(len(tokens), n_rows))


def is_special(token: str) -> bool:
    """True for a token that stands for no text: `<s>`, `[PAD]`, `<|endoftext|>`, `[unused7]`, `<0x0A>`."""
    return _SPECIAL.fullmatch(token) is not None


def _unnamed(token: int) -> str:
    return f"<row_{token}>"


def _check_rows(n_tokens: int, n_rows: int, where: str) -> None:
    if n_tokens > n_rows:
        raise TokensError(f"{where}: {n_tokens} token strings for a table of {n_rows} rows")


def _from_lines(text: str) -> dict[int, str]:
    # Not splitlines(): vocabularies hold tokens that are themselves Unicode line separators.
    lines = text.removesuffix("\n").split("\n")
    return {i: line.removesuffix("\r") for i, line in enumerate(lines)} if text else {}


def _from_json(text: str, filename: str) -> tuple[dict[int, str], dict[int, str]]:
    """Tokens by id: those of the model's vocabulary, and those that were added to it."""
    try:
        tree: Any = json.loads(text)
        vocab = tree["model"]["vocab"]
        # A unigram vocabulary is a list of [piece, score], any other a mapping of piece to id.
        pairs = vocab.items() if isinstance(vocab, dict) else ((pair[0], i) for i, pair in enumerate(vocab))
        base = {int(i): str(token) for token, i in pairs}
        added = {int(record["id"]): str(record["content"]) for record in tree.get("added_tokens") or ()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise TokensError(f"{filename}: not a tokenizer.json with a model.vocab") from error
    return base, added
