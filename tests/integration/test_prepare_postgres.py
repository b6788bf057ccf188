"""Preparation from a PostgreSQL server: set LEXREC_POSTGRES to the URL of a database that may be written.

LEXREC_POSTGRES=postgresql://me:secret@localhost/scratch pytest tests/integration/test_prepare_postgres.py
"""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lexrec.data.prepare import prepare
from lexrec.errors import DataError

URL = os.environ.get("LEXREC_POSTGRES")
pytestmark = pytest.mark.skipif(URL is None, reason="LEXREC_POSTGRES names no server")
ROWS = [("ann", 3, 10), ("ann", 1, 20), ("ann", 2, 30), ("bob", 1, 5), ("bob", 3, 6), ("bob", 2, 7)]


@pytest.fixture
def table() -> str:
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(URL, autocommit=True) as connection:
        connection.execute("drop table if exists lexrec_events")
        connection.execute("create table lexrec_events (user_id text, item_id int, at bigint)")
        connection.cursor().executemany("insert into lexrec_events values (%s, %s, %s)", ROWS)
    return f"{URL}#lexrec_events"


def test_a_table_of_a_server_gives_the_same_data_as_a_file(table, tmp_path):
    users, items, times = zip(*ROWS, strict=True)
    pq.write_table(pa.table({"user_id": users, "item_id": items, "at": times}), tmp_path / "events.parquet")
    from_file = prepare(tmp_path / "events.parquet", time="at", out=tmp_path / "file")
    from_server = prepare(table, time="at", out=tmp_path / "server")
    assert from_server.fingerprint == from_file.fingerprint
    assert from_server.item_N.tolist() == [3, 1, 2, 1, 3, 2]
    assert "secret" not in str(from_server.manifest)


def test_a_table_that_is_not_there_is_one_line(table, tmp_path):
    with pytest.raises(DataError) as caught:
        prepare(f"{URL}#no_such_table", time="at", out=tmp_path / "out")
    assert "no_such_table" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
