"""The quick proof that a table is sane: its scale, how alike its rows are, and a word's neighbours.

Dimension key: V tokens, W width of the language model, N pairs or chosen tokens.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity

from lexrec.errors import TokensError
from lexrec.tokens import transforms
from lexrec.tokens.table import TokenTable

_SPACES = ("\u2581", "\u0120", "")
"""How vocabularies write the space before a word: SentencePiece, byte-level BPE, WordPiece."""


@dataclass(frozen=True)
class Neighbour:
    """A token near another one."""

    token: int
    text: str
    cosine: float
    """After removing the table's mean."""


def rms(table: TokenTable) -> float:
    """Root mean square of all entries."""
    squares = (float(rows_NW.square().sum()) for rows_NW in transforms.blocks(table.weight_VW))
    return float((sum(squares) / table.weight_VW.numel()) ** 0.5)


def mean_cosine(table: TokenTable, *, n_pairs: int = 10_000, seed: int = 0) -> float:
    """Mean cosine of random pairs of rows: near 0 where directions are used evenly, up to .9 if not."""
    generator = torch.Generator().manual_seed(seed)
    left_N, right_N = torch.randint(table.n_tokens, (2, n_pairs), generator=generator)
    left_NW, right_NW = table.weight_VW[left_N].float(), table.weight_VW[right_N].float()
    return float(cosine_similarity(left_NW, right_NW, dim=1).mean())


def find_token(table: TokenTable, word: str) -> int:
    """The token that is a whole word, preferring the form with a space before it.

    Raises:
        TokensError: the table has no strings, or the word is not one token; the message offers others.
    """
    if not table.tokens:
        raise TokensError(
            f"token table {table.name}: came without token strings, so words cannot be looked up"
        )
    rows = {token: row for row, token in reversed(list(enumerate(table.tokens)))}
    for form in (word, word.lower(), word.capitalize()):
        for space in _SPACES:
            if space + form in rows:
                return rows[space + form]
    prefix = word.lower()[:3]
    alike = sorted({text for t in rows if (text := t.strip("".join(_SPACES))).lower().startswith(prefix)})
    offer = f"; single tokens that begin alike: {', '.join(alike[:8])}" if alike else ""
    raise TokensError(f"token table {table.name}: {word!r} is not a single token{offer}")


def nearest(table: TokenTable, word: str, n: int = 10) -> list[Neighbour]:
    """The n tokens nearest to a word by cosine, after removing the table's mean; the word itself left out.

    Raises:
        TokensError: as `find_token`; or n is below 1.
    """
    if n < 1:
        raise TokensError(f"cannot show {n} neighbours; n is at least 1")
    row = find_token(table, word)
    weight_VW = transforms.centred(table).weight_VW
    query_W = weight_VW[row].float()
    cosine_V = torch.cat(
        [cosine_similarity(rows_NW, query_W[None], dim=1) for rows_NW in transforms.blocks(weight_VW)]
    )
    cosine_V[row] = -torch.inf
    top = cosine_V.topk(min(n, table.n_tokens - 1))
    return [
        Neighbour(int(token), table.text(int(token)).strip(), float(cosine))
        for token, cosine in zip(top.indices, top.values, strict=True)
    ]
