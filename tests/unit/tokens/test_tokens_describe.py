import pytest
import torch

from lexrec.errors import TokensError
from lexrec.tokens import describe
from lexrec.tokens.table import TokenTable


def table(tokens, weight_VW) -> TokenTable:
    return TokenTable(
        name="t", weight_VW=weight_VW, tokens=tuple(tokens), source="", revision="", sha256="", licence=""
    )


def drinks() -> TokenTable:
    """beer and wine point one way, car and bus another, and all share a large common offset."""
    directions = torch.tensor([[1.0, 0], [0.9, 0.1], [-1, 0], [-0.9, -0.1]])
    return table(["\u2581beer", "\u2581wine", "\u2581car", "bus"], directions + 50)


def test_rms_and_mean_cosine():
    assert describe.rms(table("ab", torch.tensor([[3.0, 4], [0, 0]]))) == pytest.approx(2.5)
    assert describe.mean_cosine(drinks()) == pytest.approx(1, abs=0.01)
    even = table((), torch.randn(2000, 64, generator=torch.Generator().manual_seed(0)))
    assert describe.mean_cosine(even) == pytest.approx(0, abs=0.02)


def test_neighbours_after_removing_the_mean():
    found = describe.nearest(drinks(), "beer", 2)
    assert [neighbour.text for neighbour in found] == ["wine", "bus"]
    assert found[0].token == 1
    assert found[0].cosine == pytest.approx(1, abs=0.05)
    assert found[1].cosine < 0


def test_more_neighbours_than_tokens_gives_all_the_others():
    assert len(describe.nearest(drinks(), "beer", 99)) == 3


@pytest.mark.parametrize(
    ("word", "row"), [("beer", 1), ("tea", 3), ("Wine", 4), ("RUM", 5), ("milk", 6), ("\u2581beer", 1)]
)
def test_a_word_is_found_with_its_space_before_without_and_in_other_case(word, row):
    tokens = ["beer", "\u2581beer", "tea", "\u0120tea", "wine", "rum", "Milk"]
    assert describe.find_token(table(tokens, torch.ones(7, 2)), word) == row


def test_a_word_that_is_no_token_offers_others():
    tokens = table(["\u2581pan", "\u2581panel", "x"], torch.ones(3, 2))
    with pytest.raises(
        TokensError, match="'pantry' is not a single token; single tokens that begin alike: pan, panel"
    ):
        describe.find_token(tokens, "pantry")
    with pytest.raises(TokensError, match=r"'zebra' is not a single token$"):
        describe.find_token(tokens, "zebra")


def test_without_strings_and_with_a_foolish_n():
    with pytest.raises(TokensError, match="came without token strings"):
        describe.nearest(table((), torch.ones(3, 2)), "beer")
    with pytest.raises(TokensError, match="cannot show 0 neighbours; n is at least 1"):
        describe.nearest(drinks(), "beer", 0)
