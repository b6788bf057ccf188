"""`lexrec inspect` on runs over a tiny language model: what it finds, writes and refuses."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from lexrec.commands.__main__ import main
from lexrec.data.prepare import prepare
from lexrec.run_dir import RunDir
from lexrec.serving.recommender import Recommender
from lexrec.tokens.stored import write_folder
from lexrec.tokens.table import TokenTable
from lexrec.training.train import train
from tests import language_models
from tests.worlds import world

HISTORIES = [[1 + (u + t) % 24 for t in range(8)] for u in range(24)]
KINDS = ["red", "green", "blue"]


def dataset():
    """24 items of three kinds, the last of none."""
    made = world(HISTORIES, n_items=24)
    items = pa.table(
        {
            "item_id": [f"i{i}" for i in range(1, 25)],
            "category": [KINDS[i // 8] for i in range(23)] + [None],
            "kind": [None] * 24,
        }
    )
    return replace(made, tables={**made.tables, "items": items})


def made(recipe: str, out: Path) -> RunDir:
    small = [f"lm.model={language_models.folder()}", "lm.dtype=fp32", "model.max_len=6"]
    changes = [*small, "train.max_epochs=1", "train.warmup_steps=0"]
    return train(recipe, data=dataset(), out=out, overrides=changes, device="cpu", track=())


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[RunDir, RunDir]:
    """IDIOMoE and Item-LLM."""
    folder = tmp_path_factory.mktemp("runs")
    return made("idiomoe", folder / "experts"), made("item_llm", folder / "shared")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("red nail polish for the children and t40 t41 t42 " * 8)
    return path


def inspect(capsys, *words: object) -> dict:
    assert main(["inspect", *map(str, words), "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def plant(run: RunDir) -> None:
    """Rows of the first eight items, and all that the last layer's item expert writes, lie one way."""
    axis_W = torch.zeros(language_models.WIDTH)
    axis_W[0] = 1
    tensors = run.weights()
    items_IW = tensors["items.embedding.weight"]
    items_IW[:] = 0.01 * torch.randn(items_IW.shape, generator=torch.Generator().manual_seed(0))
    items_IW[1:9] += axis_W
    (name,) = (key for key in tensors if key.endswith("layers.1.mlp.item.down_proj.weight"))
    tensors[name][:] = axis_W[:, None]
    save_file(tensors, run.checkpoint(run.summary["best_step"]) / "model.safetensors")


def test_what_a_run_remembers_is_found_written_and_drawn(tmp_path, capsys) -> None:
    run, out = made("idiomoe", tmp_path / "run"), tmp_path / "memory"
    plant(run)
    (found,) = inspect(capsys, run.path, "--out", out, "-k", 8)["memory"]["runs"]
    layers = {(entry["layer"], entry["expert"]): entry for entry in found["layers"]}
    assert set(layers) == {(layer, expert) for layer in (0, 1) for expert in ("text", "item")}
    planted = layers[1, "item"]
    assert planted["purity"]["mean"] == planted["clustered"] == 1
    assert planted["affinity"]["p25"] > 0.3
    assert all(layers[1, "text"][key] != planted[key] for key in ("affinity", "purity", "clustered"))
    assert found["random"]["purity"]["mean"] < 1
    assert (found["items"], found["tokens"], found["categories"]) == (24, language_models.N_TOKENS, 3)
    assert json.loads((out / "memory.json").read_text())["runs"] == [found]
    neurons = pq.read_table(out / "neurons.parquet").to_pylist()
    assert len(neurons) == sum(entry["neurons"] for entry in found["layers"]) == 4 * 48
    ours = [row for row in neurons if (row["layer"], row["expert"]) == (1, "item")]
    assert {row["category"] for row in ours} == {"red"}
    assert [row["neuron"] for row in ours] == list(range(48))
    for name in ("affinity", "purity", "clustered"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_runs_stand_side_by_side(runs, tmp_path, capsys) -> None:
    experts, shared = runs
    out = tmp_path / "memory"
    assert main(["inspect", str(experts.path), str(shared.path), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("random directions") == 2
    assert "24 items, 96 tokens of" in printed
    assert set(pq.read_table(out / "neurons.parquet")["expert"].to_pylist()) == {"text", "item", "all"}


def test_a_run_alone_keeps_its_own_memory_and_is_looked_at_again(runs, capsys) -> None:
    for k in (20, 10):
        assert main(["inspect", str(runs[1].path), "-k", str(k)]) == 0
        assert "random directions" in capsys.readouterr().out
        assert json.loads((runs[1].path / "inspect" / "memory.json").read_text())["k"] == k


def test_without_categories_affinity_alone_is_known(runs, tmp_path, capsys) -> None:
    out = tmp_path / "memory"
    (found,) = inspect(capsys, runs[0].path, "--out", out, "--column", "kind")["memory"]["runs"]
    assert found["layers"][0]["purity"]["mean"] == 0  # a column, but every item's is empty
    table = runs[0].item_table
    pq.write_table(table.drop_columns(["category", "kind"]), runs[0].path / "items.parquet")
    out = tmp_path / "other"
    assert main(["inspect", str(runs[0].path), "--out", str(out)]) == 0
    said = capsys.readouterr()
    pq.write_table(table, runs[0].path / "items.parquet")
    assert "items have no categories, so purity is not known; name a --column" in said.err
    assert not (out / "purity.png").exists()
    assert (out / "affinity.png").exists()


def test_what_is_kept_of_language(runs, text, capsys) -> None:
    experts, shared = runs
    words = [experts.path, shared.path, "--text", text, "--context", 16, "--stride", 4]
    found = inspect(capsys, *words)["text"]
    kept, forgot = found[str(experts.path)], found[str(shared.path)]
    assert kept["is_same"]
    assert kept["run"] == kept["base"] == forgot["base"]
    assert (kept["tokens"], kept["context"], kept["stride"]) == (80, 16, 4)
    assert not forgot["is_same"]
    assert forgot["run"]["nll"] != forgot["base"]["nll"]
    assert main(["inspect", str(experts.path), "--text", str(text)]) == 0
    assert "all logits are the same, bit for bit" in capsys.readouterr().out


def test_tasks_of_lm_eval_are_run_on_both(runs, tmp_path, capsys) -> None:
    questions = [{"q": f"t{i} red", "choices": ["nail", "soap"], "gold": i % 2} for i in range(4)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions))
    data = {"data_files": {"test": str(tmp_path / "data.jsonl")}, "cache_dir": str(tmp_path / "cache")}
    task = {"task": "words", "dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}
    task |= {"output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "choices"}
    task |= {"doc_to_target": "gold", "metric_list": [{"metric": "acc"}]}
    (tmp_path / "words.yaml").write_text(json.dumps(task))  # JSON is YAML
    words = ["--tasks", "words", "--task-folder", tmp_path, "--limit", 2]
    (found,) = inspect(capsys, runs[0].path, *words)["tasks"].values()
    assert found["limit"] == 2
    assert found["run"] == found["base"]
    assert found["run"]["words"]["acc"]["value"] in (0, 0.5, 1)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--out", "{tmp}/m", "--column", "price"], "--column 'price': the items of"),
        (["--out", "{tmp}/m", "-k", "30"], "k=30 nearest of 24 items and 96 tokens; give 1 to 24"),
        (["--out", "{tmp}/m", "--tau", "2"], "tau=2.0 is no share of the nearest items"),
        (["--out", "{tmp}/text.txt"], "text.txt is a file; name a folder"),
        (["--out", "{tmp}/taken"], "taken already holds memory.json; choose another"),
        (["--out", "{tmp}/m", "{run}"], "the same run twice: "),
        (["--text", "{tmp}/absent"], "absent: No such file or directory"),
        (["--text", "{tmp}/empty"], "empty is empty; give a text with words"),
        (["--text", "{tmp}/bytes"], "bytes is no UTF-8 text: invalid start byte at byte 0"),
        (["--text", "{tmp}/text.txt", "--context", "999"], "context 999: language model"),
        (["--tasks", ","], "--tasks (): tuple should have at least 1 item"),
        (["--tasks", "a", "--limit", "0"], "--limit 0: input should be greater than or equal to 1"),
    ],
)
def test_what_cannot_be_looked_at_is_one_error(runs, text, tmp_path, capsys, words, error) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "memory.json").write_text("{}")
    words = [word.format(tmp=tmp_path, run=runs[0].path) for word in words]
    assert main(["inspect", str(runs[0].path), *words]) == 2
    said = capsys.readouterr()
    assert error in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (tmp_path / "m").exists()


def test_another_kind_of_run_is_told_what_looks_into_it(tmp_path, capsys) -> None:
    run = train("markov", data=dataset(), out=tmp_path / "run", track=())
    assert main(["inspect", str(run.path), "--out", str(tmp_path / "m")]) == 2
    said = capsys.readouterr().err
    assert "is built on no language model, and inspect looks into those" in said
    assert "of token tables it has --experts, and lexrec explain" in said


def test_token_experts_are_counted_over_histories(tmp_path, capsys) -> None:
    tables = []
    for name, seed in (("a", 0), ("b", 1)):
        made_of = torch.randn(30, 6, generator=torch.Generator().manual_seed(seed)).bfloat16()
        tokens = tuple(f"{name}{i}" for i in range(30))
        table = TokenTable(name, made_of, tokens, "made", "", str(seed) * 64, "none")
        tables.append(f"file:{write_folder(table, tmp_path)}")
    prepared = shop(tmp_path)
    small = ["model.dim=8", "model.n_heads=1", "item_encoder.n_heads=2", "item_encoder.k=3"]
    changes = [*small, f"item_encoder.tables=[{','.join(tables)}]", "train.max_epochs=1"]
    run = train("sasrec_mltfr", data=prepared, out=tmp_path / "run", overrides=changes, track=())
    (found,) = inspect(capsys, run.path, "--experts")["experts"].values()
    assert found["histories"] == len(HISTORIES)
    recommender = Recommender.load(run.path)
    dataset = run.dataset()
    rows = [dataset.item_N[end - 8 : end - 1].tolist() for end in dataset.offset_U[1:].tolist()]
    views = [recommender.ranker.inspect(row) for row in rows]
    for x, expert in enumerate(found["experts"]):
        gates = [float(each[x].gate_B[0]) for each in views]
        assert expert["gate"]["mean"] == pytest.approx(sum(gates) / len(gates), rel=1e-5)
        is_first = [
            gate == max(float(v.gate_B[0]) for v in each) for gate, each in zip(gates, views, strict=True)
        ]
        assert expert["first"] == pytest.approx(sum(is_first) / len(rows))
        share = Counter()
        for each in views:
            for token, weight in zip(
                each[x].token_BK[0].tolist(), each[x].weight_BK[0].tolist(), strict=True
            ):
                share[f"{expert['table']}{token}"] += weight / len(rows)
        assert {t["text"]: t["share"] for t in expert["tokens"]} == pytest.approx(
            dict(share.most_common(20)), rel=1e-4
        )
    assert sum(expert["gate"]["mean"] for expert in found["experts"]) == pytest.approx(1)
    assert main(["inspect", str(run.path), "--experts", "--histories", "5"]) == 0
    assert "5 histories" in capsys.readouterr().out


def shop(folder: Path) -> Path:
    """HISTORIES as a prepared folder."""
    rows = [(u, item, t) for u, history in enumerate(HISTORIES) for t, item in enumerate(history)]
    users, items, times = zip(*rows, strict=True)
    prepare(pa.table({"user_id": users, "item_id": items, "time": times}), time="time", out=folder / "shop")
    return folder / "shop"


def test_without_matplotlib_the_extra_is_named_before_anything_is_read(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["inspect", str(tmp_path / "no run"), "--out", str(tmp_path / "m")]) == 2
    assert "matplotlib, which is missing; pip install 'lexrec[report]'" in capsys.readouterr().err
