"""The embedded engine keeps to its memory, tidies up, and gives up in one line."""

import io

import ibis
import pytest

from lexrec.data import _memory
from lexrec.data._engine import working
from lexrec.data._stages import stages
from lexrec.data.prepare import Options
from lexrec.errors import DataError
from tests.unit.data._tables import built, table


@pytest.mark.parametrize(
    ("said", "n_bytes"),
    [("4GiB", 2**32), ("4 gib", 2**32), ("1500MB", 1_500_000_000), ("1.5G", 1_500_000_000), (2**30, 2**30)],
)
def test_memory_is_read_with_its_unit(said, n_bytes):
    assert _memory.parse_memory(said) == n_bytes


@pytest.mark.parametrize("said", ["", "much", "4 XB", "-4GiB", "4I", "4GiBs", "1e9"])
def test_what_is_no_memory_is_refused(said):
    with pytest.raises(
        DataError, match=f"memory '{said}'; write a number and a unit, such as 4GiB or 1500MB"
    ):
        Options(memory=said)


def test_too_little_memory_is_refused():
    with pytest.raises(DataError, match="memory '100MiB' is too little; preparation needs at least 512MiB"):
        Options(memory="100MiB")


def setting(engine, name):
    (value,) = engine.backend.con.execute("SELECT current_setting(?)", [name]).fetchone()
    return value


def test_the_engine_keeps_to_its_share(tmp_path):
    with working(None, "1GiB", tmp_path) as engine:
        limit = _memory.read_size(setting(engine, "memory_limit"))
        assert abs(limit - 0.65 * (2**30 - 2**28)) < 2**20
        assert setting(engine, "threads") <= 4
        (scratch,) = tmp_path.iterdir()
        assert setting(engine, "temp_directory") == str(scratch)
        engine.keep(ibis.memtable({"a": [1]}))
        assert (scratch / "tables.duckdb").exists()
    assert list(tmp_path.iterdir()) == []


def test_by_default_it_takes_less_than_half_of_what_there_is():
    with working(None) as engine:
        ours = _memory.read_size(setting(engine, "memory_limit"))
    whole = _memory.read_size(setting_of_a_fresh_one()) / 0.8
    assert 0.2 * whole < ours < 0.5 * whole


def setting_of_a_fresh_one():
    (value,) = ibis.duckdb.connect().con.execute("SELECT current_setting('memory_limit')").fetchone()
    return value


def test_out_of_memory_is_one_line_with_the_way_out(tmp_path):
    def too_much():
        with working(None, place=tmp_path) as engine:
            engine.backend.con.execute("SET memory_limit = '2MB'")
            engine.keep(ibis.range(300_000).unnest().name("a").as_table().order_by(ibis.random()))

    with pytest.raises(DataError) as caught:
        too_much()
    assert str(caught.value) == (
        "preparation ran out of memory; nothing was left behind, "
        "give it more (--memory 8GiB, memory='8GiB') or take fewer columns"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_an_interrupt_and_leaves_nothing(tmp_path):
    def interrupted():
        with working(None, place=tmp_path):
            # How DuckDB 1.5 passes on Ctrl-C; a real one it hears only between two of its tasks.
            raise RuntimeError("Query interrupted") from KeyboardInterrupt()

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_tables_of_a_given_engine_are_temporary_and_dropped():
    backend = ibis.duckdb.connect()
    built(table(), options=Options(engine=backend))
    (left,) = backend.con.execute("SELECT count(*) FROM duckdb_tables()").fetchone()
    assert left == 0


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_each_stage(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with stages(terminal) as tell:
        tell("reading")
        tell("writing", 0, 10)
        tell("writing", 10, 10)
        tell("flushing")
    text = terminal.getvalue()
    assert text.index("reading") < text.index("writing") < text.index("flushing")


def test_nothing_is_said_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()
    with stages(file) as tell:
        tell("reading")
    assert file.getvalue() == ""
