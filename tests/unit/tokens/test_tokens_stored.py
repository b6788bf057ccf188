"""Tables on disk: what is written reads back, and nothing damaged or foreign does."""

import json

import pytest
import torch

from lexrec.errors import TokensError
from lexrec.tokens import stored
from lexrec.tokens.table import TokenTable
from tests.unit.tokens import _files


def table(name="my table", tokens=True, tokenizer="{}") -> TokenTable:
    return TokenTable(
        name=name,
        weight_VW=_files.weight().to(torch.bfloat16),
        tokens=tuple(_files.words()) if tokens else (),
        source="hf:owner/model@abc#f:t",
        revision="abc",
        sha256="a" * 64,
        licence="MIT",
        tokenizer=tokenizer,
    )


def test_a_written_folder_reads_back_as_it_was(tmp_path):
    folder = stored.write_folder(table(), tmp_path / "out")
    assert folder == tmp_path / "out" / "my-table"
    assert {path.name for path in folder.iterdir()} == {
        "table.safetensors",
        "tokens.json",
        "tokenizer.json",
        "manifest.json",
    }
    back = stored.read(folder / "manifest.json", verify=True)
    assert torch.equal(back.weight_VW, table().weight_VW)
    for field in ("name", "tokens", "source", "revision", "sha256", "licence", "tokenizer"):
        assert getattr(back, field) == getattr(table(), field)


def test_without_strings_and_tokenizer(tmp_path):
    folder = stored.write_folder(table(tokens=False, tokenizer=None), tmp_path)
    back = stored.read(folder / "manifest.json")
    assert (back.tokens, back.tokenizer) == ((), None)


def test_int8_is_half_the_bytes_and_as_near_as_it_says(tmp_path):
    wide = _files.weight(rows=64, width=256).to(torch.bfloat16)
    wide[3] = 0
    sizes = {}
    for dtype in ("bf16", "int8"):
        large = table(tokens=False).with_weight(wide)
        folder = stored.write_folder(large, tmp_path / dtype, dtype)
        sizes[dtype] = (folder / "table.safetensors").stat().st_size
        back = stored.read(folder / "manifest.json").weight_VW
    assert sizes["int8"] < 0.53 * sizes["bf16"]
    peak = wide.float().abs().amax(dim=1, keepdim=True)
    # Half a step of int8 and the rounding of bf16.
    assert ((back.float() - wide.float()).abs() <= peak * (1 / 254 + 2**-8)).all()
    assert torch.equal(back, stored.rounded(wide, "int8"))
    assert torch.equal(stored.rounded(wide, "bf16"), wide)


def test_writing_again_is_allowed_for_the_same_table_only(tmp_path):
    stored.write_folder(table(), tmp_path)
    stored.write_folder(table(), tmp_path)
    other = TokenTable(**{**vars(table()), "sha256": "b" * 64})
    with pytest.raises(
        TokensError, match="already holds the table hf:owner/model@abc#f:t; choose another --out"
    ):
        stored.write_folder(other, tmp_path)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "my-table").mkdir()
    (tmp_path / "my-table" / "thesis.txt").write_text("mine")
    with pytest.raises(TokensError, match="exists and holds no token table; choose another --out"):
        stored.write_folder(table(), tmp_path)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TokensError, match=r"cannot write .*file/my-table: "):
        stored.write_folder(table(), tmp_path / "file")


@pytest.mark.parametrize("name", ["table.safetensors", "tokens.json", "tokenizer.json"])
def test_a_damaged_file_is_found_out(tmp_path, name):
    manifest = stored.write_folder(table(tokenizer='{"a": "b"}'), tmp_path) / "manifest.json"
    path = manifest.with_name(name)
    sound = path.read_bytes()
    path.write_bytes(sound[:-1])
    with pytest.raises(
        TokensError, match=rf"{name}: corrupt: the file has {len(sound) - 1} bytes, its manifest says"
    ):
        stored.read(manifest)
    path.write_bytes(sound[:-3] + bytes([sound[-3] ^ 1]) + sound[-2:])
    with pytest.raises(TokensError, match=rf"{name}: corrupt: its content is not what its manifest says"):
        stored.read(manifest, verify=True)
    path.unlink()
    with pytest.raises(TokensError, match=rf"{name}: corrupt: the file is missing"):
        stored.read(manifest)


def rewrite(manifest, **changes):
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))


def test_a_manifest_that_lies_is_refused(tmp_path):
    manifest = stored.write_folder(table(), tmp_path) / "manifest.json"
    sound = manifest.read_text()
    rewrite(manifest, shape=[24, 16])
    with pytest.raises(TokensError, match=r"the tensors are .*\(12, 32\).*, the manifest says .*\(24, 16\)"):
        stored.read(manifest)
    manifest.write_text(sound)
    rewrite(manifest, dtype="int8")
    with pytest.raises(TokensError, match="the tensors are"):
        stored.read(manifest)
    for changes in ({"format_version": 2}, {"surprise": 1}, {"dtype": "fp4"}):
        manifest.write_text(sound)
        rewrite(manifest, **changes)
        with pytest.raises(TokensError, match="not the manifest of a stored token table"):
            stored.read(manifest)
    manifest.write_text(sound[:50])
    with pytest.raises(TokensError, match="not the manifest of a stored token table"):
        stored.read(manifest)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", "a\\b", ""])
def test_a_manifest_never_leads_outside_its_folder(tmp_path, name):
    manifest = stored.write_folder(table(), tmp_path) / "manifest.json"
    record = json.loads(manifest.read_text())["tokens"] | {"name": name}
    rewrite(manifest, tokens=record)
    with pytest.raises(TokensError, match="not the manifest of a stored token table"):
        stored.read(manifest)


def resealed(manifest, name, data):
    """A folder whose file was exchanged, and whose manifest vouches for it."""
    path = manifest.with_name(name)
    path.write_bytes(data)
    part = name.partition(".")[0]
    record = {"name": name, "size": len(data), "sha256": stored.hash_file(path)}
    rewrite(manifest, **{part: record})


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("table.safetensors", b"\xff" * 64, r"table\.safetensors: corrupt"),
        ("tokens.json", b"{", r"tokens\.json: corrupt: not JSON"),
        ("tokens.json", b"[1, 2]", r"tokens\.json: corrupt: not a list of token strings"),
        ("tokens.json", b'["one"]', "1 token strings for 12 rows"),
        ("tokenizer.json", b"\xff\xfe", r"tokenizer\.json: corrupt: not UTF-8 text"),
    ],
)
def test_files_that_are_none_of_a_table_are_refused(tmp_path, name, data, message):
    manifest = stored.write_folder(table(), tmp_path) / "manifest.json"
    resealed(manifest, name, data)
    with pytest.raises(TokensError, match=message):
        stored.read(manifest)


def test_a_write_that_breaks_leaves_no_manifest(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored, "_pack", full)
    with pytest.raises(TokensError, match=r"cannot write .*: No space left on device"):
        stored.write_folder(table(), tmp_path)
    assert not (tmp_path / "my-table" / "manifest.json").exists()


def test_an_unknown_dtype():
    with pytest.raises(
        TokensError, match="dtype 'fp4' is no stored type of a token table; choose bf16 or int8"
    ):
        stored.check_dtype("fp4")
