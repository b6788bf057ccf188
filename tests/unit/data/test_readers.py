import gzip
import json
import sqlite3

import duckdb
import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lexrec.data import readers
from lexrec.data.prepare import Columns, Filters, Options
from lexrec.errors import DataError
from tests.unit.data._tables import EVENTS, built, histories, table, write

NAMES = ("u", "i", "t")


def delimited(mark, names=NAMES):
    return "\n".join(mark.join(map(str, row)) for row in [names, *EVENTS]) + "\n"


def as_parquet(folder):
    pq.write_table(table(), folder / "e.parquet")
    return folder / "e.parquet"


def as_parquet_folder(folder):
    (folder / "parts").mkdir()
    for part in range(3):
        pq.write_table(table().slice(2 * part, 2), folder / "parts" / f"{part}.parquet")
    return folder / "parts"


def as_csv(folder):
    return write(folder / "e.csv", delimited(","))


def as_csv_gz(folder):
    with gzip.open(folder / "e.csv.gz", "wt") as file:
        file.write(delimited(","))
    return folder / "e.csv.gz"


def as_tsv(folder):
    return write(folder / "e.TSV", delimited("\t"))


def as_jsonl(folder):
    return write(folder / "e.jsonl", "".join(json.dumps(row) + "\n" for row in table().to_pylist()))


def as_inter(folder):
    return write(folder / "e.inter", delimited("\t", ("u:token", "i:token", "t:float")))


def as_duckdb(folder):
    with duckdb.connect(str(folder / "e.db")) as connection:
        events = table()
        connection.register("arrow_events", events)
        connection.execute("CREATE SCHEMA shop")
        connection.execute("CREATE TABLE shop.events AS SELECT * FROM arrow_events")
    return f"duckdb://{folder / 'e.db'}#shop.events"


def as_sqlite(folder):
    pytest.importorskip("regex", reason="Ibis reads SQLite with the package regex (ibis-framework[sqlite])")
    connection = sqlite3.connect(folder / "e.sqlite")
    connection.execute("CREATE TABLE events (u TEXT, i TEXT, t INTEGER)")
    connection.executemany("INSERT INTO events VALUES (?, ?, ?)", EVENTS)
    connection.commit()
    connection.close()
    return f"sqlite://{folder / 'e.sqlite'}#events"


def tables_of(backend):
    """Tables and views, temporary ones too."""
    return [name for _, _, name, *_ in backend.con.execute("SHOW ALL TABLES").fetchall()]


FORMATS = [
    as_parquet, as_parquet_folder, as_csv, as_csv_gz, as_tsv, as_jsonl, as_inter, as_duckdb, as_sqlite
]  # fmt: skip


@pytest.mark.parametrize("make", FORMATS)
@pytest.mark.parametrize("columns", [Columns("u", "i", "t"), Columns("u", "i")], ids=["by time", "by row"])
def test_every_format_gives_the_same_data_set(make, columns, tmp_path):
    assert built(make(tmp_path), columns).fingerprint == built(table(), columns).fingerprint


def test_one_user_a_line_is_in_the_order_of_the_line(tmp_path):
    path = write(tmp_path / "e.txt", "ann ink cap  pen\nbob\tink pen \n\ncyd\nann ink\n")
    by_row = built(path, Columns("user_id", "item_id"))
    assert histories(by_row) == {"ann": ["ink", "cap", "pen", "ink"], "bob": ["ink", "pen"]}
    by_position = built(path, Columns("user_id", "item_id", "position"))
    assert histories(by_position) == histories(by_row)
    assert by_position.time_N.tolist() == [0, 1, 2, 3, 0, 1]


def test_long_lines_and_many_of_them_stay_in_order(tmp_path):
    rows = [[(user * 7 + place) % 50_021 for place in range(20_000)] for user in range(30)]
    path = write(tmp_path / "e.txt", "".join(f"{u} {' '.join(map(str, r))}\n" for u, r in enumerate(rows)))
    assert histories(built(path, Columns("user_id", "item_id"))) == dict(enumerate(rows))


def test_rows_of_a_large_file_stay_in_order(tmp_path):
    n = 400_000
    events = pa.table(
        {"u": pa.array([1, 2] * (n // 2)), "i": pa.array((k * 7919) % 10_007 for k in range(n))}
    )
    pq.write_table(events, tmp_path / "e.parquet", row_group_size=10_000)
    dataset = built(tmp_path / "e.parquet", Columns("u", "i"))
    items = events["i"].to_pylist()
    assert histories(dataset) == {1: items[::2], 2: items[1::2]}


def test_text_ids_become_integers_only_if_all_are_written_as_integers_are(tmp_path):
    rows = "u,i,t\n1,007,1\n2,7,2\n"
    dataset = built(write(tmp_path / "e.csv", rows))
    assert (dataset.users.ids, dataset.items.ids) == ([1, 2], ["007", "7"])


def test_json_strings_stay_strings(tmp_path):
    ids = ["6F1B2A3C-0000-0000-0000-0000000000AB", "2024-01-01", "12"]
    rows = [{"u": id_, "i": id_, "t": f"2024-01-0{n + 1}"} for n, id_ in enumerate(ids)]
    for n, id_ in enumerate(ids):
        path = write(tmp_path / f"{n}.jsonl", json.dumps({"u": id_, "i": id_, "t": 1}) + "\n")
        assert built(path).items.ids == [id_]
    path = write(tmp_path / "e.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert built(path).items.ids == sorted(ids)
    assert built(path).manifest["time_unit"] == "microsecond"


def test_mixed_json_ids_are_refused(tmp_path):
    path = write(tmp_path / "e.jsonl", '{"u": "a", "i": 1, "t": 1}\n{"u": 1, "i": 1, "t": 2}\n')
    with pytest.raises(
        DataError, match=r"user ids \(column 'u'\) are of mixed types \(1 strings, 1 others\)"
    ):
        built(path)


def test_quotes_in_an_atomic_file_are_part_of_the_text(tmp_path):
    path = write(tmp_path / "e.inter", 'u:token\ti:token\tt:float\na\t"x\t1\na\ty"\t2\n')
    assert histories(built(path)) == {"a": ['"x', 'y"']}


def test_quoted_commas_and_unicode_are_read_from_csv(tmp_path):
    path = write(tmp_path / "e.csv", '\ufeffu,i,t\nä,"x, ""y""",1\n')
    assert histories(built(path)) == {"ä": ['x, "y"']}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_that_look_like_comments_or_headers_are_data(newline, tmp_path):
    path = tmp_path / "e.csv"
    path.write_bytes(newline.join(["u,i,t", "#a,x,1", "#a,t,2", ""]).encode())
    assert histories(built(path)) == {"#a": ["x", "t"]}


def test_a_folder_may_be_the_one_we_stand_in(tmp_path, monkeypatch):
    monkeypatch.chdir(as_parquet_folder(tmp_path))
    assert built(".").manifest["source"]["events"] == "parts"


def test_a_format_can_be_said(tmp_path):
    path = write(tmp_path / "events.dump", delimited("\t"))
    assert built(path, options=Options(format="tsv")).fingerprint == built(table()).fingerprint
    with pytest.raises(DataError) as caught:
        built(path)
    assert str(caught.value) == (
        "events.dump: the name does not say which format it has; say it with --format (format=...): "
        "csv, inter, jsonl, parquet, sequences, tsv"
    )
    with pytest.raises(
        DataError, match="no format 'xls'; formats: csv, inter, jsonl, parquet, sequences, tsv"
    ):
        built(path, options=Options(format="xls"))


def test_each_reader_says_its_suffixes_once():
    modules = [__import__(f"lexrec.data.readers.{name}", fromlist=["read"]) for name in readers.formats()]
    suffixes = [suffix for module in modules for suffix in module.SUFFIXES]
    assert len(suffixes) == len(set(suffixes)) == 10


def test_ibis_tables_of_any_backend_are_read(tmp_path):
    expected = built(table()).fingerprint
    backend = ibis.duckdb.connect()
    backend.con.execute("SET TimeZone = 'Asia/Tokyo'")
    backend.con.register("arrow_events", table())
    backend.con.execute("CREATE TABLE events AS SELECT * FROM arrow_events")
    backend.con.unregister("arrow_events")
    events = backend.table("events")
    assert built(events).fingerprint == expected
    assert built(events, options=Options(engine=backend)).fingerprint == expected
    assert built(ibis.memtable(table())).fingerprint == expected
    assert built(as_parquet(tmp_path), options=Options(engine=backend)).fingerprint == expected
    # Nothing of ours stays in an engine that is not ours.
    assert tables_of(backend) == ["events"]
    assert backend.con.execute("SELECT current_setting('TimeZone')").fetchone() == ("Asia/Tokyo",)


def test_text_without_an_offset_is_utc_in_a_foreign_engine_too():
    backend = ibis.duckdb.connect()
    backend.con.execute("SET TimeZone = 'Asia/Tokyo'")
    events = pa.table({"u": ["a"], "i": ["x"], "t": ["1970-01-01 00:00:01"]})
    assert built(events, options=Options(engine=backend)).time_N.tolist() == [1_000_000]


def test_an_enum_column_is_sorted_by_its_text():
    backend = ibis.duckdb.connect()
    backend.con.execute("CREATE TYPE ink AS ENUM ('z', 'a')")
    backend.con.execute(
        "CREATE TABLE events AS SELECT 'u' AS u, unnest(['z', 'a'])::ink AS i, unnest([1, 2]) AS t"
    )
    for options in (Options(), Options(engine=backend)):
        assert built(backend.table("events"), options=options).items.ids == ["a", "z"]


def test_a_failing_run_leaves_nothing_in_a_foreign_engine():
    backend = ibis.duckdb.connect()
    with pytest.raises(DataError, match="nothing is left"):
        built(table(), options=Options(filters=Filters(k_core=9), engine=backend))
    assert tables_of(backend) == []


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("duckdb:///nowhere/shop.db#events", "there is no file '/nowhere/shop.db'"),
        ("duckdb:///nowhere/shop.db", "a database address ends in #table, such as duckdb:///shop.db#events"),
        ("nosql://host/db#events", "cannot read nosql table 'events': "),
    ],
)
def test_addresses_that_lead_nowhere_are_refused(address, message):
    with pytest.raises(DataError) as caught:
        built(address)
    assert message in str(caught.value)


def test_a_missing_table_or_column_of_a_database_is_named(tmp_path):
    address = as_duckdb(tmp_path)
    with pytest.raises(DataError, match=r"cannot read duckdb table 'shop.orders'"):
        built(address.replace("events", "orders"))
    with pytest.raises(DataError, match=r"duckdb table 'shop.events' has no column 'x'; it has: u, i, t"):
        built(address, Columns("x", "i", "t"))
    with pytest.raises(DataError, match=r"duckdb table 'shop.events' has no column 'x'"):
        built(address, Columns("x", "x"))


def test_a_password_is_never_shown(tmp_path):
    with pytest.raises(DataError) as caught:
        built("nosql://me:secret@host/db#events")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("e.parquet", b"PAR1 is not enough", "cannot read e.parquet: "),
        ("e.parquet", b"", "cannot read e.parquet: "),
        ("e.csv", b"u,i,t\na,x,1\nb,y\n", "cannot read e.csv: "),
        ("e.csv", b"u,i,t\n\xff\xfe,x,1\n", "cannot read e.csv: "),
        ("e.csv", b"u,i,t\n", "e.csv has no rows"),
        ("e.csv", b"", "e.csv is empty; its first line names the columns"),
        ("e.csv", b"u,i,t,i\na,x,1,y\n", "e.csv names the column 'i' more than once; rename one"),
        ("e.csv", b"u,i,t\na,x,1\nb,y,2,3\n", "cannot read e.csv: Invalid Input Error: CSV Error on Line: 3"),
        ("e.tsv", b'u\ti\tt\na\t"x\t1\n', "cannot read e.tsv: Invalid Input Error: CSV Error on Line: 2"),
        ("e.jsonl", b'{"u": 1, "i"', "cannot read e.jsonl: "),
        ("e.csv.gz", b"not gzip at all", "cannot read e.csv.gz: "),
        ("e.txt", b"", "e.txt has no rows"),
    ],
)
def test_damaged_files_are_refused_in_one_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    columns = Columns("user_id", "item_id") if name == "e.txt" else Columns("u", "i", "t")
    with pytest.raises(DataError) as caught:
        built(tmp_path / name, columns)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_complaint_about_a_long_line_stays_short(tmp_path):
    path = write(tmp_path / "e.csv", "u,i,t\na,x,1\n" + "b," * 5_000 + "\n")
    with pytest.raises(DataError) as caught:
        built(path)
    assert len(str(caught.value)) < 400


def test_a_parquet_file_damaged_inside_is_refused(tmp_path):
    path = as_parquet(tmp_path)
    whole = bytearray(path.read_bytes())
    whole[4:60] = b"\xff" * 56
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"cannot read e\.parquet: "):
        built(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no file '.*none\.csv'"):
        built(tmp_path / "none.csv")
