import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lexrec.errors import DataError
from lexrec.serving import histories
from lexrec.serving.histories import FileReport
from lexrec.serving.recommender import Recommender

ROWS = [
    ("b", [10, 20]),
    ("a", []),
    ("c", [99, 20, None]),
    ("a", [30]),
    ("d", None),
    ("e", [10, 20, 30, 40, 50]),
]


@pytest.fixture
def recommender(markov) -> Recommender:
    return Recommender.load(markov.path)


def write(path, rows, kind=None) -> None:
    users, items = zip(*rows, strict=True)
    pq.write_table(
        pa.table({"user_id": users, "history": pa.array(items, kind or pa.list_(pa.int64()))}), path
    )


def expected(recommender, rows, k):
    """What `recommend` says to the same histories, as rows of a file."""
    found = recommender.recommend([history or [] for _, history in rows], k)
    return [
        {"user_id": user, "item_id": item, "rank": rank, "score": score}
        for (user, _), items, scores in zip(rows, found.item_ids, found.scores, strict=True)
        for rank, (item, score) in enumerate(zip(items, scores, strict=True), 1)
    ]


def test_a_file_gets_what_each_history_gets(recommender, tmp_path):
    write(tmp_path / "h.parquet", ROWS)
    report = recommender.recommend_file(tmp_path / "h.parquet", tmp_path / "o.parquet", k=3)
    table = pq.read_table(tmp_path / "o.parquet")
    assert table.to_pylist() == expected(recommender, ROWS, 3)
    assert table.schema.types == [pa.string(), pa.int64(), pa.int32(), pa.float32()]
    assert report == FileReport(users=6, rows=3 * 5 + 2, unknown=2, by_popularity=2)


def test_rows_are_read_and_written_in_batches(recommender, tmp_path, monkeypatch):
    rows = ROWS * 5
    write(tmp_path / "h.parquet", rows)
    recommender.recommend_file(tmp_path / "h.parquet", tmp_path / "whole.parquet", k=2)
    monkeypatch.setattr(histories, "_ROWS", 4)
    recommender.recommend_file(tmp_path / "h.parquet", tmp_path / "parts.parquet", k=2)
    assert pq.ParquetFile(tmp_path / "parts.parquet").num_row_groups == 8
    assert pq.read_table(tmp_path / "parts.parquet") == pq.read_table(tmp_path / "whole.parquet")


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_list(pa.int64()),
        pa.list_(pa.int32()),
        pa.list_(pa.uint64()),
        pa.list_(pa.dictionary(pa.int8(), pa.int64())),
    ],
    ids=str,
)
def test_how_wide_or_coded_the_ids_are_does_not_matter(recommender, tmp_path, kind):
    write(tmp_path / "h.parquet", ROWS, kind)
    recommender.recommend_file(tmp_path / "h.parquet", tmp_path / "o.parquet", k=2)
    assert pq.read_table(tmp_path / "o.parquet").to_pylist() == expected(recommender, ROWS, 2)


def test_a_file_without_rows_or_ids_is_a_file(recommender, tmp_path):
    empty = pa.table({"user_id": pa.array([], pa.int64()), "history": pa.array([], pa.list_(pa.int64()))})
    pq.write_table(empty, tmp_path / "h.parquet")
    report = recommender.recommend_file(tmp_path / "h.parquet", tmp_path / "o.parquet")
    assert report == FileReport(0, 0, 0, 0)
    assert pq.read_table(tmp_path / "o.parquet").num_rows == 0
    write(tmp_path / "h.parquet", [("a", []), ("b", [])], pa.list_(pa.null()))
    assert recommender.recommend_file(tmp_path / "h.parquet", tmp_path / "o.parquet").by_popularity == 2


@pytest.mark.parametrize(
    ("rows", "kind", "text"),
    [
        ([("a", ["10"])], pa.list_(pa.string()), "history holds string ids, the items of this run are int64"),
        ([("a", [1.5])], pa.list_(pa.float64()), "history holds double ids, the items of this run are int64"),
        ([("a", "10,20")], pa.string(), "history is string, expected lists of item ids, oldest first"),
        ([("a", [10]), (None, [10])], None, "1 rows have no user_id; drop them"),
        (
            [("a", [2**63])],
            pa.list_(pa.uint64()),
            "is damaged: Integer value 9223372036854775808 not in range",
        ),
    ],
)
def test_wrong_files_are_refused_and_nothing_is_written(recommender, tmp_path, rows, kind, text):
    write(tmp_path / "h.parquet", rows, kind)
    with pytest.raises(DataError, match=text):
        recommender.recommend_file(tmp_path / "h.parquet", tmp_path / "o.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["h.parquet"]


def test_a_damaged_file_leaves_an_older_result_as_it_was(recommender, tmp_path):
    source, out = tmp_path / "h.parquet", tmp_path / "o.parquet"
    write(source, [(str(i), [10 * (i % 7) + 10]) for i in range(5000)])
    content = bytearray(source.read_bytes())
    content[4:2000] = bytes(1996)
    source.write_bytes(content)
    out.write_bytes(b"older")
    with pytest.raises(DataError, match=r"h\.parquet is damaged: "):
        recommender.recommend_file(source, out)
    assert out.read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["h.parquet", "o.parquet"]


def test_places_that_cannot_be_read_or_written_are_named(recommender, tmp_path):
    source = tmp_path / "h.parquet"
    with pytest.raises(DataError, match=r"histories file '.*h\.parquet' does not exist"):
        recommender.recommend_file(source, tmp_path / "o.parquet")
    source.write_text("user_id,history\n")
    with pytest.raises(DataError, match=r"cannot read .*h\.parquet as Parquet"):
        recommender.recommend_file(source, tmp_path / "o.parquet")
    write(source, ROWS)
    with pytest.raises(DataError, match="holds the histories; choose another --out"):
        recommender.recommend_file(source, source)
    with pytest.raises(DataError, match=r"is a folder; name a file to write \(--out\)"):
        recommender.recommend_file(source, tmp_path)
    with pytest.raises(DataError, match=r"cannot write .*Not a directory|cannot write .*File exists"):
        recommender.recommend_file(source, source / "o.parquet")
    with pytest.raises(DataError, match="k is at least 1, got 0"):
        recommender.recommend_file(source, tmp_path / "o.parquet", k=0)
