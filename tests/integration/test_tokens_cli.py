"""`lexrec tokens` as a user runs it: fresh processes, output read back."""

import json

import numpy as np
import pytest


@pytest.fixture
def table_file(tmp_path):
    """A GGUF-less table with words that have neighbours: `beer` and `wine` point one way, `car` another."""
    weight = np.array([[1, 0], [0.9, 0.2], [-1, 0.1], [-0.9, -0.3]], np.float32)
    np.save(tmp_path / "drinks.npy", weight)
    (tmp_path / "vocab.txt").write_text("beer\nwine\ncar\nbus\n")
    return tmp_path / "drinks.npy"


@pytest.fixture
def tokens(lexrec, tmp_path):
    return lambda *words, **more: lexrec("tokens", *words, LEXREC_CACHE=str(tmp_path / "cache"), **more)


def test_list_is_one_plain_line_a_table_and_the_same_as_json(tokens):
    plain, parsed = tokens("list"), tokens("list", "--json")
    assert plain.returncode == parsed.returncode == 0
    rows = [line.split("\t") for line in plain.stdout.splitlines()]
    records = json.loads(parsed.stdout)
    assert [row[0] for row in rows] == [record["name"] for record in records]
    assert rows[0][:4] == ["wordllama", "32000 x 256", "MIT", "-"]
    assert records[0]["cached"] == []
    assert not plain.stderr


def test_show_and_near(tokens, table_file):
    done = tokens("show", f"file:{table_file}", "--near", "beer", "-n", "2")
    assert done.returncode == 0, done.stderr
    facts = dict(line.split("\t") for line in done.stdout.partition("\n\n")[0].splitlines())
    assert facts["shape"] == "[4, 2]"
    assert facts["name"] == "drinks"
    assert float(facts["rms"]) == pytest.approx(0.70, abs=0.02)
    near = [line.split("\t")[0] for line in done.stdout.partition("\n\n")[2].splitlines()]
    assert near == ["wine", "car"] or near == ["wine", "bus"]
    parsed = json.loads(tokens("show", f"file:{table_file}", "--near", "beer", "-n", "2", "--json").stdout)
    assert [neighbour["text"] for neighbour in parsed["neighbours"]] == near
    assert parsed["sha256"] == facts["sha256"]


def test_pull_to_a_folder_show_it_and_check_it(tokens, table_file, tmp_path):
    out = tmp_path / "out"
    done = tokens("pull", f"file:{table_file}", "--out", out, "--dtype", "int8")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"drinks: 4 x 2 from file:{table_file}#array in {out}/drinks\n"
    again = json.loads(tokens("show", f"file:{out}/drinks", "--json").stdout)
    assert again["source"] == f"file:{table_file}#array"
    assert tokens("check", f"file:{out}/drinks").stdout == f"file:{out}/drinks: ok\n"
    stored = out / "drinks" / "table.safetensors"
    stored.write_bytes(stored.read_bytes()[:-1])
    done = tokens("check", f"file:{out}/drinks")
    assert done.returncode == 2
    assert "corrupt: the file has" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "nosuch"], "no token table 'nosuch'; known: wordllama"),
        (["pull", "wordllama", "--offline"], "lexrec is offline; pull it where there is a network"),
        (["show", "file:nothing.gguf"], "token table file 'nothing.gguf' does not exist"),
        (["show", "drinks", "-n", "x"], "invalid int value"),
        ([], "the following arguments are required"),
    ],
)
def test_errors_are_one_line_and_exit_2(tokens, words, message):
    done = tokens(*words)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_near_a_word_that_is_no_token(tokens, table_file):
    done = tokens("show", f"file:{table_file}", "--near", "beers")
    assert done.returncode == 2
    assert "'beers' is not a single token; single tokens that begin alike: beer" in done.stderr


def test_debug_shows_the_traceback(tokens):
    assert "Traceback" in tokens("show", "nosuch", "--debug").stderr


def test_offline_by_environment(tokens):
    done = tokens("pull", "minilm", LEXREC_OFFLINE="1")
    assert done.returncode == 2
    assert done.stderr.endswith("lexrec tokens pull minilm\n")


def test_check_of_an_empty_cache_finds_nothing(tokens):
    assert json.loads(tokens("check", "--json").stdout) == []
