"""Names, the cache's place and its promises."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lexrec import registry
from lexrec.errors import TokensError
from lexrec.tokens import cache, catalogue, stored
from lexrec.tokens.catalogue import load_table
from lexrec.tokens.entry import Entry
from tests.unit.tokens import _files
from tests.unit.tokens._hub import Hub, serving

HUB = "hf:owner/model"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    data = _files.safetensors(tmp_path / "m", {"wte.weight": _files.weight()}).read_bytes()
    with serving(Hub(files={"model.safetensors": data})) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


@pytest.mark.parametrize("entry", catalogue.entries(), ids=lambda entry: entry.name)
def test_every_entry_of_the_catalogue_is_complete(entry):
    assert entry.scheme in registry.names("tokens.sources")
    assert entry.shape is not None
    assert entry.licence
    assert entry.about
    assert len(entry.sha256) == (64 if entry.scheme == "pypi" else 0)
    assert catalogue.resolve(entry.name) is entry


def test_the_sources_are_the_files_of_their_folder():
    assert registry.names("tokens.sources") == ["file", "hf", "pypi"]


@pytest.mark.parametrize("name", ["wordlama", "s3:bucket", "hf:", "", "tables/wordllama"])
def test_a_name_that_is_neither_known_nor_a_source(name):
    message = f"no token table {name!r}; known: wordllama, minilm, .*; or a source: hf:repo@rev, pypi:"
    with pytest.raises(TokensError, match=message):
        load_table(name)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf:openai-community/gpt2@main#wte.weight", "gpt2"),
        ("hf:Qwen/Qwen3-0.6B", "qwen3-0.6b"),
        ("file:a/My Model.safetensors", "my-model"),
        ("file:tables/wordllama/", "wordllama"),
        ("file:C:\\models\\x.gguf", "x"),
        ("pypi:tiny==1.0#a/b.gguf:t", "tiny"),
        ("file:..", "table"),
    ],
)
def test_a_source_gets_a_short_name_that_is_safe_as_a_folder(source, name):
    assert catalogue.resolve(source).name == name


def test_entry_parts():
    entry = Entry(name="x", source="hf:a/b@c#d:e")
    assert (entry.scheme, entry.location, entry.fragment) == ("hf", "a/b@c", "d:e")


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert cache.folder() == Path(os.environ["LEXREC_CACHE"])
    monkeypatch.delenv("LEXREC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "lexrec"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "lexrec"


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("true", True), ("0", False), ("", False), ("no", False)]
)
def test_offline_by_environment_and_by_argument(monkeypatch, value, expected):
    monkeypatch.setenv("LEXREC_OFFLINE", value)
    assert cache.is_offline(None) is expected
    assert cache.is_offline(True) is True
    assert cache.is_offline(False) is False


def test_the_tensor_is_stored_under_its_hash_and_shared_by_sources(hub):
    table = load_table(HUB)
    load_table(f"{HUB}@main")
    files = {path.name for path in (cache.folder() / "tables").iterdir()}
    assert {name for name in files if name.endswith(".safetensors")} == {f"{table.sha256}.bf16.safetensors"}
    assert len(cache.manifests()) == 2


def test_both_dtypes_live_side_by_side(hub):
    exact, rounded = load_table(HUB), load_table(HUB, dtype="int8")
    assert rounded.weight_VW.dtype == torch.bfloat16
    assert torch.equal(rounded.weight_VW, stored.rounded(exact.weight_VW, "int8"))
    assert torch.equal(load_table(HUB, offline=True).weight_VW, exact.weight_VW)
    assert torch.equal(load_table(HUB, dtype="int8", offline=True).weight_VW, rounded.weight_VW)


def test_not_cached_and_offline_names_the_command():
    with pytest.raises(
        TokensError, match=r"wordllama \(bf16\) is not in the cache .*: lexrec tokens pull wordllama$"
    ):
        load_table("wordllama", offline=True)


def test_another_shape_or_content_than_the_catalogue_names_is_refused(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", _files.weight().numpy())
    source = f"file:{tmp_path}/x.npy"
    right = load_table(source).sha256
    for entry, message in [
        (Entry(name="x", source=source, shape=(12, 31)), r"has shape \[12, 32\], x is \[12, 31\]"),
        (
            Entry(name="x", source=source, sha256="0" * 64),
            f"has sha256 {right}, x is 0000.*damaged on the way",
        ),
        (Entry(name="x", source=source, sha256=right, shape=(12, 32)), ""),
    ]:
        monkeypatch.setattr(catalogue, "_catalogue", lambda entry=entry: {"x": entry})
        if message:
            with pytest.raises(TokensError, match=message):
                load_table("x")
        else:
            assert load_table("x").n_tokens == 12


def test_a_cached_tensor_that_is_not_the_catalogues_is_stale(hub, monkeypatch):
    monkeypatch.setattr(catalogue, "_catalogue", lambda: {"x": Entry(name="x", source=HUB)})
    right = load_table("x").sha256
    monkeypatch.setattr(catalogue, "_catalogue", lambda: {"x": Entry(name="x", source=HUB, sha256="0" * 64)})
    with pytest.raises(TokensError, match=f"holds tensor {right}, the catalogue names 0000"):
        load_table("x", offline=True)


def test_check_reads_every_byte(hub, tmp_path):
    load_table(HUB)
    folder = stored.write_folder(load_table(HUB), tmp_path / "out")
    assert [why for _, why in catalogue.check()] == [""]
    assert catalogue.check([HUB, f"file:{folder}"]) == [(HUB, ""), (f"file:{folder}", "")]
    (path,) = (cache.folder() / "tables").glob("*.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (_, why), (_, missing) = catalogue.check([HUB, "wordllama"])
    assert "corrupt: its content is not what its manifest says" in why
    assert missing == "token table wordllama (bf16) is not in the cache; lexrec tokens pull wordllama"


def test_an_unwritable_cache_names_the_fix(hub, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored, "write", full)
    with pytest.raises(
        TokensError, match=r"cannot write model to the cache .*No space.*set LEXREC_CACHE to another"
    ):
        load_table(HUB)


def test_two_processes_fetch_once(hub, root):
    code = f"from lexrec.tokens.catalogue import load_table; print(load_table({HUB!r}).sha256)"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    hashes = {process.communicate()[0] for process in running}
    assert {process.returncode for process in running} == {0}
    assert len(hashes) == 1
    listings = [path for path, _, _ in hub.requests if path.startswith("/api/")]
    assert len(listings) == 1
