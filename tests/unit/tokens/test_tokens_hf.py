"""`hf:` sources against a small hub on this machine: ranges, commits, tokens, faults, resumption."""

import json
import re

import pytest
import torch

from lexrec.errors import TokensError
from lexrec.tokens import cache
from lexrec.tokens.catalogue import load_table
from lexrec.tokens.sources import _http
from tests.unit.tokens import _files
from tests.unit.tokens._hub import COMMIT, Hub, serving

LARGE = 20_000
"""Rows of a table (2.5 MB) that is fetched through a resumable file."""


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch):
    monkeypatch.setattr(_http, "PAUSE_S", 0)


@pytest.fixture
def hub(monkeypatch):
    with serving(Hub(files={})) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def safetensors(tmp_path, rows=_files.V, seed=0):
    tensors = {
        "model.embed_tokens.weight": _files.weight(seed, rows),
        "model.layers.0.weight": torch.zeros(1_000_000),
    }
    return _files.safetensors(tmp_path / "built", tensors).read_bytes()


def bf16(rows=_files.V, seed=0):
    return _files.weight(seed, rows).to(torch.bfloat16)


def test_only_the_tensor_and_the_tokenizer_are_fetched(hub, tmp_path):
    text = _files.tokenizer_json(_files.words())
    hub.files = {
        "model.safetensors": safetensors(tmp_path),
        "tokenizer.json": text.encode(),
        "README.md": b"x",
    }
    table = load_table("hf:owner/model")
    assert torch.equal(table.weight_VW, bf16())
    assert table.tokens == tuple(_files.words())
    assert table.tokenizer == text
    assert table.revision == COMMIT
    assert table.source == f"hf:owner/model@{COMMIT}#model.safetensors:model.embed_tokens.weight"
    assert (table.name, table.licence) == ("model", "mit")
    assert hub.served < 70_000 < len(hub.files["model.safetensors"])
    assert all(asked.startswith("bytes=") for path, asked, _ in hub.requests[1:])


def test_served_again_from_the_cache_without_a_request(hub, tmp_path):
    hub.files = {"model.safetensors": safetensors(tmp_path)}
    first = load_table("hf:owner/model")
    n_requests = len(hub.requests)
    again = load_table("hf:owner/model", offline=True)
    assert torch.equal(first.weight_VW, again.weight_VW)
    assert len(hub.requests) == n_requests


def test_refresh_follows_a_branch_that_moved(hub, tmp_path):
    hub.files = {"model.safetensors": safetensors(tmp_path)}
    load_table("hf:owner/model@main")
    hub.commit, hub.files = "f" * 40, {"model.safetensors": safetensors(tmp_path, seed=1)}
    assert load_table("hf:owner/model@main").revision == COMMIT
    moved = load_table("hf:owner/model@main", refresh=True)
    assert moved.revision == "f" * 40
    assert torch.equal(moved.weight_VW, bf16(seed=1))


def test_the_revision_is_asked_for_as_written(hub, tmp_path):
    hub.files = {"model.safetensors": safetensors(tmp_path)}
    load_table("hf:owner/model@refs/pr/1")
    assert hub.requests[0][0] == "/api/models/owner/model/revision/refs/pr/1"


def test_a_sharded_model_fetches_only_the_shard_that_holds_it(hub, tmp_path):
    one = _files.safetensors(tmp_path / "1", {"wte.weight": _files.weight()}).read_bytes()
    two = _files.safetensors(tmp_path / "2", {"lm_head.weight": _files.weight(1)}).read_bytes()
    weight_map = {"wte.weight": "m-1.safetensors", "lm_head.weight": "m-2.safetensors"}
    index = json.dumps({"weight_map": weight_map}).encode()
    hub.files = {"model.safetensors.index.json": index, "m-1.safetensors": one, "m-2.safetensors": two}
    assert torch.equal(load_table("hf:owner/model").weight_VW, bf16())
    assert not hub.ranges("m-2.safetensors")
    assert torch.equal(load_table("hf:owner/model#lm_head.weight").weight_VW, bf16(seed=1))
    with pytest.raises(
        TokensError, match=r"no tensor 'nothing'; name one after '#': wte\.weight, lm_head\.weight"
    ):
        load_table("hf:owner/model#nothing")


def test_a_torch_checkpoint_by_ranges(hub, tmp_path):
    state = {"transformer.wte.weight": _files.weight(), "h": torch.zeros(1_000_000)}
    torch.save(state, tmp_path / "m.bin")
    hub.files = {"pytorch_model.bin": (tmp_path / "m.bin").read_bytes()}
    assert torch.equal(load_table("hf:owner/model").weight_VW, bf16())
    assert hub.served < 300_000 < len(hub.files["pytorch_model.bin"])


def test_a_gguf_named_by_file(hub, tmp_path):
    path = _files.gguf_file(tmp_path / "m.gguf", _files.weight(), "Q8_0", _files.words())
    hub.files = {"a.gguf": path.read_bytes(), "b.gguf": b"", "sub/tokenizer.json": b"{}"}
    table = load_table("hf:owner/model#a.gguf:token_embd.weight")
    assert torch.equal(table.weight_VW, load_table(f"file:{path}").weight_VW)
    assert torch.equal(load_table("hf:owner/model#a.gguf").weight_VW, table.weight_VW)
    with pytest.raises(TokensError, match=r"cannot tell which file holds the token table: a\.gguf, b\.gguf"):
        load_table("hf:owner/model")


def test_a_broken_download_goes_on_where_it_stopped(hub, tmp_path):
    hub.files = {"model.safetensors": safetensors(tmp_path, LARGE)}
    hub.cuts = [1_500_000, 100_000]
    table = load_table("hf:owner/model")
    assert torch.equal(table.weight_VW, bf16(LARGE))
    n_tensor = LARGE * _files.W * 4
    # Nothing came twice but the head of the file.
    assert n_tensor < hub.served < n_tensor + 70_000
    starts = [int(re.findall(r"\d+", asked)[0]) for asked in hub.ranges("model.safetensors")[1:]]
    assert [later - starts[0] for later in starts] == [0, 1_500_000, 1_600_000]


def test_a_killed_download_goes_on_in_the_next_process(hub, tmp_path, cache_folder):
    hub.files = {"model.safetensors": safetensors(tmp_path, LARGE)}
    hub.cuts = [1_000_000, 0, 0, 0, 0, 0]
    with pytest.raises(TokensError, match=r"no answer after 5 attempts \(the connection closed early\)"):
        load_table("hf:owner/model")
    (partial,) = (cache_folder / "partial").iterdir()
    assert partial.stat().st_size == 1_000_000
    hub.cuts, hub.served = [], 0
    assert torch.equal(load_table("hf:owner/model").weight_VW, bf16(LARGE))
    assert hub.served < LARGE * _files.W * 4 - 1_000_000 + 70_000
    assert not partial.exists()


def test_what_was_fetched_of_another_version_is_not_continued(hub, tmp_path, monkeypatch):
    hub.files = {"model.safetensors": safetensors(tmp_path, LARGE)}
    hub.cuts = [1_000_000, 0, 0, 0, 0, 0]
    with pytest.raises(TokensError, match="no answer"):
        load_table("hf:owner/model")
    hub.etag, hub.cuts = '"two"', []
    hub.files = {"model.safetensors": safetensors(tmp_path, LARGE, seed=1)}
    assert torch.equal(load_table("hf:owner/model").weight_VW, bf16(LARGE, seed=1))


def test_a_file_that_changes_while_it_is_read(hub, tmp_path):
    file = safetensors(tmp_path, LARGE)
    hub.files = {"model.safetensors": file}
    opened = _http.HttpFile(_http.Client(), f"{hub.url}/owner/model/resolve/{COMMIT}/model.safetensors", "m")
    hub.etag = '"two"'
    with pytest.raises(TokensError, match="m: changed on the server while it was being read; pull again"):
        opened.read(100_000, 50_000)


def test_failures_that_pass_are_tried_again_and_others_are_not(hub, tmp_path):
    hub.files = {"model.safetensors": safetensors(tmp_path)}
    hub.failures = [503, 429, 500]
    load_table("hf:owner/model")
    hub.failures, hub.requests = [400], []
    with pytest.raises(TokensError, match="the server refuses with status 400"):
        load_table("hf:owner/model@other")
    assert len(hub.requests) == 1
    hub.failures = [503] * 5
    with pytest.raises(TokensError, match=r"no answer after 5 attempts \(status 503\); is there a network"):
        load_table("hf:owner/model@other")


def test_no_server_at_all(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        TokensError, match=r"no answer after 5 attempts .*LEXREC_OFFLINE=1 uses the cache alone"
    ):
        load_table("hf:owner/model")


def test_a_server_without_ranges_is_refused(hub, tmp_path):
    hub.files, hub.serves_ranges = {"model.safetensors": safetensors(tmp_path)}, False
    with pytest.raises(TokensError, match=r"the server does not serve byte ranges \(status 200\)"):
        load_table("hf:owner/model")


def test_gated_models(hub, tmp_path, monkeypatch):
    hub.files, hub.token = {"model.safetensors": safetensors(tmp_path)}, "secret"
    with pytest.raises(TokensError, match=r"not allowed \(status 401\).*accept its licence and set HF_TOKEN"):
        load_table("hf:owner/model")
    monkeypatch.setenv("HF_TOKEN", "t0k3n")
    with pytest.raises(TokensError, match="the token in HF_TOKEN has no access to it") as caught:
        load_table("hf:owner/model")
    assert "t0k3n" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert torch.equal(load_table("hf:owner/model").weight_VW, bf16())


def test_the_token_does_not_follow_a_redirect_to_another_server(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.files = {"model.safetensors": safetensors(tmp_path)}
    with serving(Hub(files=hub.files)) as store:
        hub.redirect_to = store.url
        assert torch.equal(load_table("hf:owner/model").weight_VW, bf16())
        assert {token for _, _, token in hub.requests} == {"Bearer secret"}
        assert {token for _, _, token in store.requests} == {""}
        assert all(asked for _, asked, _ in store.requests)


def test_an_endpoint_that_is_no_server(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    with pytest.raises(TokensError, match="HF_ENDPOINT 'file:///etc' is not an http or https address"):
        load_table("hf:owner/model")


def test_no_such_model(hub):
    with pytest.raises(TokensError, match=r"does not exist \(status 404\); check the name and the revision"):
        load_table("hf:owner/other")


@pytest.mark.parametrize("repo", ["../etc", "a/b/c", "a b", "owner/", "-x/y", "a/..%2f"])
def test_names_that_are_no_models(repo):
    with pytest.raises(TokensError, match="is not a model's name; write hf:owner/model@rev"):
        load_table(f"hf:{repo}")


def test_a_listing_that_is_none(hub):
    hub.commit = "../../x"
    with pytest.raises(TokensError, match="not a model's record"):
        load_table("hf:owner/model")


def test_a_damaged_cache_entry_is_fetched_again_or_named(hub, tmp_path):
    hub.files = {"model.safetensors": safetensors(tmp_path)}
    load_table("hf:owner/model")
    (stored,) = (cache.folder() / "tables").glob("*.safetensors")
    stored.write_bytes(stored.read_bytes()[:-1])
    with pytest.raises(
        TokensError, match=r"corrupt: .*lexrec is offline; pull it .*: lexrec tokens pull hf:owner"
    ):
        load_table("hf:owner/model", offline=True)
    assert torch.equal(load_table("hf:owner/model").weight_VW, bf16())
    assert torch.equal(load_table("hf:owner/model", offline=True).weight_VW, bf16())
