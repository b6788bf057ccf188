"""A small shop with integer ids, and runs on it."""

from pathlib import Path

import pyarrow as pa
import pytest

from lexrec.data.items import ItemTable
from lexrec.data.prepare import prepare
from lexrec.run_dir import RunDir
from lexrec.training.train import train

HISTORIES = {
    "ann": [10, 20, 30, 40, 50],
    "bob": [20, 30, 40, 10],
    "cid": [10, 20, 30, 60],
    "dan": [10, 20, 50, 70],
}
"""Items 10 < 20 < ... < 70 are indexes 1..7; the last two of each user are held out."""


@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> Path:
    """The prepared folder."""
    rows = [(user, item, i) for user, items in HISTORIES.items() for i, item in enumerate(items)]
    users, items, times = zip(*rows, strict=True)
    events = pa.table({"user_id": users, "item_id": items, "time": times})
    titles = pa.table({"item_id": [10, 20, 30], "title": ["Ten", "Twenty", None]})
    folder = tmp_path_factory.mktemp("shop") / "data"
    prepare(events, time="time", out=folder, items=ItemTable(titles, title="title"))
    return folder


@pytest.fixture(scope="session")
def markov(shop, tmp_path_factory) -> RunDir:
    """A finished run of the Markov baseline."""
    return train("markov", data=shop, out=tmp_path_factory.mktemp("runs") / "markov", track=())
