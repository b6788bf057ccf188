"""`file:` sources through load_table: weights, model folders, pieces, written tables."""

import json

import numpy as np
import pytest
import torch

from lexrec.errors import TokensError
from lexrec.tokens import stored
from lexrec.tokens.catalogue import load_table
from tests.unit.tokens import _files


def test_a_weights_file_with_its_tokenizer_beside_it(tmp_path):
    _files.safetensors(tmp_path / "m.safetensors", {"model.embed_tokens.weight": _files.weight()})
    text = _files.tokenizer_json(_files.words(10))
    (tmp_path / "tokenizer.json").write_text(text)
    table = load_table(f"file:{tmp_path}/m.safetensors")
    assert torch.equal(table.weight_VW, _files.weight().to(torch.bfloat16))
    assert table.tokens == (*_files.words(10), "<row_10>", "<row_11>")
    assert table.tokenizer == text
    assert table.name == "m"
    assert table.source == f"file:{tmp_path}/m.safetensors#model.embed_tokens.weight"


def test_vocab_txt_beside_it_and_a_named_tensor(tmp_path):
    _files.safetensors(tmp_path / "m.safetensors", {"a": _files.weight(1), "b": _files.weight(2)})
    (tmp_path / "vocab.txt").write_text("\n".join(_files.words()))
    with pytest.raises(TokensError, match=r"several tensors .* a \[12, 32\] F32, b \[12, 32\] F32"):
        load_table(f"file:{tmp_path}/m.safetensors")
    table = load_table(f"file:{tmp_path}/m.safetensors#b")
    assert torch.equal(table.weight_VW, _files.weight(2).to(torch.bfloat16))
    assert table.tokens == tuple(_files.words())
    with pytest.raises(TokensError, match=r"no tensor 'c'; it has: a \[12, 32\] F32, b"):
        load_table(f"file:{tmp_path}/m.safetensors#c")


def test_gguf_strings_win_over_a_file_that_merely_lies_there(tmp_path):
    _files.gguf_file(tmp_path / "m.gguf", _files.weight(), "Q8_0", _files.words())
    (tmp_path / "vocab.txt").write_text("other\n" * 12)
    table = load_table(f"file:{tmp_path}/m.gguf")
    assert table.tokens == tuple(_files.words())
    assert table.licence == "apache-2.0"


def test_gguf_pieces_by_a_pattern(tmp_path):
    data = _files.gguf_file(tmp_path / "m.gguf", _files.weight(), "Q8_0").read_bytes()
    (tmp_path / "m.gguf.part0").write_bytes(data[:500])
    (tmp_path / "m.gguf.part1").write_bytes(data[500:])
    whole, joined = load_table(f"file:{tmp_path}/m.gguf"), load_table(f"file:{tmp_path}/m.gguf.part*")
    assert torch.equal(whole.weight_VW, joined.weight_VW)
    assert whole.sha256 == joined.sha256
    with pytest.raises(TokensError, match=r"no file matches '.*/n\.part\*'"):
        load_table(f"file:{tmp_path}/n.part*")


def test_a_models_folder_through_its_index(tmp_path):
    _files.safetensors(tmp_path / "model-00001.safetensors", {"h.0.weight": _files.weight(1)})
    _files.safetensors(tmp_path / "model-00002.safetensors", {"wte.weight": _files.weight(2)})
    weight_map = {"h.0.weight": "model-00001.safetensors", "wte.weight": "model-00002.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(load_table(f"file:{tmp_path}").weight_VW, _files.weight(2).to(torch.bfloat16))
    index.write_text(json.dumps({"weight_map": weight_map | {"wte.weight": "../outside.safetensors"}}))
    with pytest.raises(TokensError, match=r"names shard '\.\./outside\.safetensors', which .* does not have"):
        load_table(f"file:{tmp_path}")
    index.write_text("[]")
    with pytest.raises(TokensError, match="not the index of a sharded model"):
        load_table(f"file:{tmp_path}")


def test_a_folder_with_several_or_no_weights(tmp_path):
    with pytest.raises(TokensError, match="cannot tell which file holds the token table: no weights file"):
        load_table(f"file:{tmp_path}")
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, _files.weight().numpy())
    with pytest.raises(TokensError, match=r"which file holds the token table: a\.npy, b\.npy; name it"):
        load_table(f"file:{tmp_path}")


def test_a_written_table_keeps_its_provenance(tmp_path):
    np.save(tmp_path / "x.npy", _files.weight().numpy())
    table = load_table(f"file:{tmp_path}/x.npy")
    folder = stored.write_folder(table, tmp_path / "tables")
    back = load_table(f"file:{folder}")
    assert (back.source, back.sha256, back.name) == (table.source, table.sha256, "x")
    with pytest.raises(TokensError, match="a stored table is one tensor; leave out '#wte'"):
        load_table(f"file:{folder}#wte")


def test_int8_rounds_a_local_table_as_the_cache_would(tmp_path):
    np.save(tmp_path / "x.npy", _files.weight().numpy())
    table = load_table(f"file:{tmp_path}/x.npy", dtype="int8")
    assert torch.equal(table.weight_VW, stored.rounded(_files.weight().to(torch.bfloat16), "int8"))


def test_a_local_table_needs_no_network_and_no_cache(tmp_path, cache_folder):
    np.save(tmp_path / "x.npy", _files.weight().numpy())
    load_table(f"file:{tmp_path}/x.npy", offline=True)
    assert not cache_folder.exists()


def test_no_such_file(tmp_path):
    with pytest.raises(TokensError, match=r"token table file '.*/nothing\.gguf' does not exist"):
        load_table(f"file:{tmp_path}/nothing.gguf")


def test_vocabulary_files_that_are_too_large_or_no_text(tmp_path, monkeypatch):
    _files.safetensors(tmp_path / "m.safetensors", {"wte.weight": _files.weight()})
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(TokensError, match=r"vocab\.txt: not UTF-8 text"):
        load_table(f"file:{tmp_path}/m.safetensors")
    monkeypatch.setattr("lexrec.tokens.vocabulary.MAX_BYTES", 2)
    with pytest.raises(TokensError, match=r"vocab\.txt has 3 bytes; at most 2 are read"):
        load_table(f"file:{tmp_path}/m.safetensors")
