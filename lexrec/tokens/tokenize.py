"""From texts to rows of a token table: what its language model would read of them.

A table that came with a tokenizer.json is read by the `tokenizers` library. For any other, words are cut
greedily: at each place the longest token that fits. That is what WordPiece does; of a byte-pair vocabulary
it finds the same tokens for most words, not for all.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

from lexrec.errors import TokensError
from lexrec.tokens import vocabulary
from lexrec.tokens.table import TokenTable

Rows = list[list[int]]
"""Row numbers of each text's tokens, in order."""

_SENTENCEPIECE, _BYTES, _WORDPIECE = "\u2581", "\u0120", "##"
_LONGEST = 32
_PUNCTUATED = re.compile(r"[^\W_]+|[^\w\s]|_")


def token_rows(table: TokenTable, texts: Sequence[str]) -> Rows:
    """The rows of a table that stand for each text.

    Tokens that stand for no text (padding, unknown, single bytes) and tokens without a row are left out, so
    an empty text has no rows. Nothing is added and nothing is cut off.

    Raises:
        TokensError: the table has neither a tokenizer nor token strings, its tokenizer cannot be read, or
            the `tokenizers` library is needed and not installed.
    """
    if not table.tokens:
        raise TokensError(f"token table {table.name}: came without token strings, so no text can be read")
    cut = _greedy(table.tokens) if table.tokenizer is None else _shipped(table.name, table.tokenizer)
    has_text_V = [not vocabulary.is_special(token) for token in table.tokens]
    n_rows = table.n_tokens
    return [[row for row in rows if row < n_rows and has_text_V[row]] for rows in cut(texts)]


def _shipped(name: str, tokenizer: str) -> Callable[[Sequence[str]], Rows]:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise TokensError(
            f"token table {name}: its tokenizer is read by the package tokenizers, which is not installed; "
            "pip install 'lexrec[text]'"
        ) from error
    try:
        reader = Tokenizer.from_str(tokenizer)
    # The library raises plain Exception.
    except Exception as error:
        raise TokensError(f"token table {name}: its tokenizer cannot be read: {error}") from error
    reader.no_padding()
    reader.no_truncation()

    def cut(texts: Sequence[str]) -> Rows:
        found = reader.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    return cut


def _greedy(tokens: Sequence[str]) -> Callable[[Sequence[str]], Rows]:
    """Cut by token strings alone; how a vocabulary marks the start of a word is told by its tokens."""
    row_of = {token: row for row, token in reversed(list(enumerate(tokens)))}
    counts = {mark: sum(token.startswith(mark) for token in tokens) for mark in (_SENTENCEPIECE, _BYTES)}
    mark = max(counts, key=lambda mark: counts[mark])
    if sum(token.startswith(_WORDPIECE) and len(token) > 2 for token in tokens) > counts[mark]:
        lower = not any(re.fullmatch(r"[A-Z][a-z]+", token) for token in tokens)
        return lambda texts: [_wordpieces(text, row_of, lower) for text in texts]
    if not counts[mark]:
        mark = ""
    return lambda texts: [_marked_pieces(text, row_of, mark) for text in texts]


def _wordpieces(text: str, row_of: dict[str, int], lower: bool) -> list[int]:
    if lower:
        decomposed = unicodedata.normalize("NFD", text.lower())
        text = "".join(char for char in decomposed if unicodedata.category(char) != "Mn")
    found = []
    for word in _PUNCTUATED.findall(text):
        rows: list[int] = []
        at = 0
        while at < len(word):
            front = _WORDPIECE if at else ""
            end = _longest(front, word, at, row_of)
            if end == at:
                rows = []  # BERT gives up the whole word
                break
            rows.append(row_of[front + word[at:end]])
            at = end
        found += rows
    return found


def _marked_pieces(text: str, row_of: dict[str, int], mark: str) -> list[int]:
    found = []
    for word in text.split():
        word = mark + (_byte_letters(word) if mark == _BYTES else word)
        at = 0
        while at < len(word):
            end = _longest("", word, at, row_of)
            if end > at:
                found.append(row_of[word[at:end]])
            at = max(end, at + 1)
    return found


def _longest(front: str, word: str, at: int, row_of: dict[str, int]) -> int:
    """End of the longest token at a place; the place itself where there is none."""
    for end in range(min(len(word), at + _LONGEST), at, -1):
        if front + word[at:end] in row_of:
            return end
    return at


def _byte_letters(word: str) -> str:
    """A word as byte-level vocabularies write it: one printable letter for each byte of its UTF-8."""
    return "".join(_LETTER_OF_BYTE[byte] for byte in word.encode())


def _letters() -> list[str]:
    """Printable bytes stand for themselves, the others in order for the letters from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_LETTER_OF_BYTE = _letters()
