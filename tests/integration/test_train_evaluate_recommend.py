"""From a table of events to recommendations, through the command line: each command a process of its own
where that matters, and where only what it says matters, the dispatcher in this one.

The world: items stand in circles of twelve, and everybody walks eight steps along one of them. So the item
that comes next is known.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from lexrec.commands.__main__ import main
from lexrec.data.batch import Batch
from lexrec.tokens.stored import write_folder
from lexrec.tokens.table import TokenTable
from lexrec.training.watch import LossWatch

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
N_CIRCLES, AROUND, STEPS, N_USERS = 5, 12, 8, 300

SMALL = ["model.dim=16", "model.n_layers=1", "model.max_len=8", "model.dropout=0.1"]
BRIEF = ["train.lr=0.01", "train.batch_size=64", "train.max_epochs=40"]

SEVERAL = """
import json, sys
from lexrec.commands.__main__ import main
for words in json.loads(sys.argv[1]):
    code = main(words)
    print(f"\\x1e{code}\\x1e", end="", flush=True)
"""


def item(circle: int, place: int) -> str:
    return f"item-{circle}-{place % AROUND:02}"


def lexrec(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "lexrec.commands", *map(str, words)]
    return subprocess.run(command, env=ENV, capture_output=True, text=True, check=False)


def several(*commands: list[str]) -> list[str]:
    """The standard output of each command line, all run by one process; every one must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, json.dumps(commands)],
        env=ENV,
        capture_output=True,
        text=True,
        check=False,
    )
    parts = done.stdout.split("\x1e")
    assert parts[1::2] == ["0"] * len(commands), done.stderr
    return parts[:-1:2]


def refused(capsys, *words: str | Path) -> str:
    """The one line that a refused command prints."""
    code = main(list(map(str, words)))
    out, complaint = capsys.readouterr()
    assert (code, out) == (2, "")
    assert complaint.startswith("lexrec: error: ")
    assert complaint.count("\n") == 1
    return complaint.removeprefix("lexrec: error: ").strip()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with the prepared data set `data` and two token tables."""
    folder = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(0)
    events = []
    for user in range(N_USERS):
        circle, start = random.integers(N_CIRCLES), random.integers(AROUND)
        events += [(f"user-{user}", item(circle, start + step), step) for step in range(STEPS)]
    lines = ["user_id,item_id,time", *(f"{user},{item_id},{step}" for user, item_id, step in events)]
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    titles = [
        f"{item(circle, place)},Place {place} of [circle {circle}]"
        for circle in range(N_CIRCLES)
        for place in range(AROUND)
    ]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *titles]) + "\n")
    done = lexrec(
        *("prepare", folder / "events.csv", "--time", "time", "--out", folder / "data"),
        *("--items", folder / "items.csv", "--title", "title"),
    )
    assert done.returncode == 0, done.stderr
    for seed, name in enumerate(("first", "second")):
        write_folder(token_table(name, seed), folder)
    return folder


def token_table(name: str, seed: int) -> TokenTable:
    weight_VW = torch.randn(40, 12, generator=torch.Generator().manual_seed(seed))
    tokens = tuple(f"\u2581{name}{i}" for i in range(40))
    return TokenTable(name, weight_VW.bfloat16(), tokens, "made", "", str(seed) * 64, "none")


def sasrec(world: Path, out: Path, *more: str) -> list[str]:
    return ["train", "sasrec", "--data", str(world / "data"), "--out", str(out), *SMALL, *BRIEF, *more]


def mltfr(world: Path, out: Path) -> list[str]:
    tables = f"item_encoder.tables=[file:{world / 'first'},file:{world / 'second'}]"
    _, _, *rest = sasrec(world, out, tables, "item_encoder.k=4", "train.max_epochs=8")
    return ["train", "sasrec_mltfr", *rest]


@pytest.fixture(scope="module")
def runs(world) -> Path:
    """Finished runs by recipe name; their weights are tested below."""
    folder = world / "runs"
    done = lexrec(*sasrec(world, folder / "sasrec"))
    assert done.returncode == 0, done.stderr
    assert "best epoch" in done.stdout
    assert f"next: lexrec evaluate {folder / 'sasrec'}\n" in done.stdout
    assert "epoch 20 ndcg@10" in done.stderr
    quiet = lexrec(*mltfr(world, folder / "sasrec_mltfr"), "--quiet")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    several(
        *(
            ["train", name, "--data", str(world / "data"), "--out", str(folder / name)]
            for name in ("popularity", "markov", "item_knn")
        )
    )
    return folder


NAMES = ("popularity", "markov", "item_knn", "sasrec", "sasrec_mltfr")
WALK = [item(2, place) for place in (10, 11, 12)]
NEXT = item(2, 13)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_measured_and_recommends(runs, name):
    run = str(runs / name)
    measured, recommended, table = several(
        ["evaluate", run, "--k", "1,10", "--json"],
        ["recommend", run, "--history", ",".join([*WALK, "nobody-knows"]), "-k", "3", "--json"],
        ["recommend", run, "--history", WALK[0], "-k", "2"],
    )
    result, found = json.loads(measured), json.loads(recommended)
    assert set(result) == {"protocol", "metrics", "groups"}
    assert result["protocol"]["n_events"] == N_USERS
    assert result["protocol"]["selected_on"] == ("validation" if "sasrec" in name else "nothing")
    assert set(found) == {"items", "unknown"}
    assert found["unknown"] == ["nobody-knows"]
    assert len(found["items"]) == 3
    assert not set(WALK) & {row["item_id"] for row in found["items"]}
    assert "of [circle " in table
    if name == "popularity":
        assert result["metrics"]["hr@10"] < 0.5
    elif name == "item_knn":  # it knows who goes together, not in which order
        assert result["metrics"]["hr@10"] > 0.9
    else:
        assert result["metrics"]["hr@1"] > 0.9
        assert found["items"][0]["item_id"] == NEXT


def test_the_evaluation_stays_in_the_run_and_prints_its_groups(runs):
    (text,) = several(["evaluate", str(runs / "markov"), "--split", "validation", "--seen", "keep"])
    assert "300 validation events against 60 items; seen items kept" in text
    (text,) = several(["evaluate", str(runs / "markov"), "--split", "validation", "--seen", "zero"])
    assert "300 validation events against 60 items; seen items scored 0" in text
    assert "training events of the target" in text
    kept = runs / "markov" / "evaluations" / "validation-seen-keep"
    assert {path.name for path in kept.iterdir()} == {
        "protocol.json",
        "metrics.json",
        "ranks_validation.npy",
    }


def test_explanations_name_tables_tokens_and_items(runs):
    text, tree = several(
        ["explain", str(runs / "sasrec_mltfr"), "--history", ",".join(WALK)],
        ["explain", str(runs / "sasrec_mltfr"), "--history", ",".join(WALK), "-k", "2", "--json"],
    )
    assert "first" in text
    assert "Place 0 of [circle 2]" in text
    found = json.loads(tree)
    assert found["items"][0]["item_id"] == NEXT
    assert [expert["table"] for expert in found["experts"]] == ["first", "second"]
    assert sum(expert["gate"] for expert in found["experts"]) == pytest.approx(1)
    tokens = found["experts"][1]["tokens"]
    assert len(tokens) == 4
    assert all(token["text"].startswith(" second") for token in tokens)
    assert sum(token["weight"] for token in tokens) == pytest.approx(1)
    # The newest item says where on the circle the walk stands.
    assert [row["item_id"] for row in found["influence"]] == WALK
    on_first = [row["on"][0] for row in found["influence"]]
    assert max(on_first) == on_first[-1] > 0


def test_a_file_of_histories_becomes_a_file_of_lists(runs, tmp_path):
    histories = [WALK, [], [item(4, 3), "nobody-knows"], WALK[:2]]
    table = pa.table({"user_id": ["b", "a", "c", "a"], "history": histories})
    pq.write_table(table, tmp_path / "h.parquet")
    out = tmp_path / "out" / "recs.parquet"
    (text,) = several(
        [
            *("recommend", str(runs / "sasrec"), "-k", "2", "--deny", NEXT),
            *("--histories", str(tmp_path / "h.parquet"), "--out", str(out), "--json"),
        ]
    )
    assert json.loads(text) == {"out": str(out), "users": 4, "rows": 8, "unknown": 1, "by_popularity": 1}
    found = pq.read_table(out)
    assert found.column_names == ["user_id", "item_id", "rank", "score"]
    assert found["user_id"].to_pylist() == [user for user in "baca" for _ in range(2)]
    assert found["rank"].to_pylist() == [1, 2] * 4
    assert NEXT not in found["item_id"].to_pylist()
    assert found["item_id"].to_pylist()[4] == item(4, 4)
    assert [path.name for path in out.parent.iterdir()] == ["recs.parquet"]


def test_recommending_loads_neither_the_preparation_engine_nor_pandas(runs, tmp_path):
    pq.write_table(pa.table({"user_id": [1], "history": [WALK]}), tmp_path / "h.parquet")
    code = (
        "import sys\nfrom lexrec.commands.__main__ import main\n"
        f"run, here = {str(runs / 'sasrec')!r}, {str(tmp_path)!r}\n"
        f"assert main(['recommend', run, '--history', {WALK[0]!r}]) == 0\n"
        "assert main(['recommend', run, '--user', 'user-1']) == 0\n"
        "assert main(['recommend', run, '--histories', here + '/h.parquet', '--out', here + '/o']) == 0\n"
        "print('LOADED', {'ibis', 'duckdb', 'pandas', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("LOADED set()\n"), done.stdout + done.stderr


def weights(run: Path) -> bytes:
    (path,) = (run / "checkpoints").glob("*/model.safetensors")
    return path.read_bytes()


def log(run: Path) -> list[dict[str, object]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def kill_after(n_validations: int, command: list[str], run: Path) -> None:
    """Start a training and kill it once it has logged so many validations."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lexrec.commands", *command],
        env=ENV,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while process.poll() is None:
        metrics = run / "metrics.jsonl"
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= n_validations:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    _, complaint = process.communicate()
    assert process.returncode == -signal.SIGKILL, complaint


def test_a_killed_run_is_refused_and_resumes_to_the_same_bits(world, runs, tmp_path, capsys):
    run = tmp_path / "killed"
    command = sasrec(world, run)
    kill_after(3, command, run)
    assert not (run / "DONE").exists()
    unfinished = f"{run} is not finished (no DONE); continue it with: lexrec train ... --resume"
    assert refused(capsys, "evaluate", run) == unfinished
    assert refused(capsys, "recommend", run, "--history", WALK[0]) == unfinished
    assert refused(capsys, "explain", run, "--history", WALK[0]) == unfinished
    assert refused(capsys, *command) == (
        f"{run} already holds an unfinished run (continue it with --resume); choose another --out"
    )

    refusal = refused(capsys, *command, "--resume", "train.lr=0.02", "model.dim=32")
    assert refusal == (
        f"{run} was started with another config (model.dim: 16 -> 32; train.lr: 0.01 -> 0.02); "
        "resume it unchanged"
    )
    done = lexrec(*command, "--resume")
    assert done.returncode == 0, done.stderr
    assert "epoch 1 " not in done.stderr
    assert weights(run) == weights(runs / "sasrec")
    assert log(run) == log(runs / "sasrec")
    again = lexrec(*command, "--resume")  # a finished run is left as it is
    assert (again.returncode, again.stderr) == (0, "")


def test_a_run_interrupted_within_an_epoch_resumes_to_the_same_bits(world, tmp_path, monkeypatch, capsys):
    def command(name: str) -> list[str]:
        return sasrec(world, tmp_path / name, "--quiet", "train.max_epochs=2")

    assert main(command("whole")) == 0
    see = LossWatch.see

    def interrupt(self: LossWatch, step: int, loss: torch.Tensor, batch: Batch) -> None:
        see(self, step, loss, batch)
        if step == 8:  # of five steps an epoch
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lexrec.training.loop._CHECKPOINT_SECONDS", -1.0)
        patch.setattr(LossWatch, "see", interrupt)
        assert main(command("halved")) == 130
    newest = max((tmp_path / "halved" / "checkpoints").iterdir())
    assert json.loads((newest / "state.json").read_text())["batch"] == 2
    with (tmp_path / "halved" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 9}\n')  # as if killed between a validation and its checkpoint
    assert main([*command("halved"), "--resume"]) == 0
    assert weights(tmp_path / "halved") == weights(tmp_path / "whole")
    assert log(tmp_path / "halved") == log(tmp_path / "whole")
    assert "next: lexrec evaluate" in capsys.readouterr().out


def test_a_resume_with_other_data_is_refused(world, runs, tmp_path, capsys):
    events = (world / "events.csv").read_text().splitlines()[:-STEPS]
    (tmp_path / "events.csv").write_text("\n".join(events))
    assert main(["prepare", f"{tmp_path}/events.csv", "--time", "time", "--out", f"{tmp_path}/data"]) == 0
    capsys.readouterr()
    run = runs / "sasrec"
    refusal = refused(capsys, *sasrec(tmp_path, run), "--resume")
    assert refusal.startswith(f"{run} was trained on data ")
    assert f"{tmp_path}/data is " in refusal
    assert refused(capsys, "evaluate", run, "--data", tmp_path / "data") == refusal
    assert refused(capsys, "recommend", run, "--user", "user-1", "--data", tmp_path / "data") == refusal


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_batch(world, tmp_path, capsys):
    run = tmp_path / "diverged"
    done = lexrec(*sasrec(world, run, "train.lr=1e30"), "--quiet")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the loss became nan at step " in done.stderr
    assert "Try a lower train.lr" in done.stderr
    kept = load_file(run / "nan_batch.safetensors")
    assert kept["item_BL"].shape == (64, 9)
    assert kept["item_BL"].max() <= N_CIRCLES * AROUND
    assert kept["step"] >= 1
    assert "is not finished" in refused(capsys, "recommend", run, "--history", WALK[0])


def test_what_cannot_be_trained_leaves_nothing_behind(world, tmp_path, capsys):
    out = tmp_path / "run"
    leaky = ["item_encoder.interest=sequence", f"item_encoder.tables=[file:{world / 'first'}]"]
    words = ["--data", world / "data", "--out", out]
    assert "objective.allow_leak=true" in refused(capsys, "train", "sasrec_mltfr", *words, *leaky)
    assert "no recipe 'sasrek'" in refused(capsys, "train", "sasrek", *words)
    assert "no tracker 'wandb'; known: " in refused(capsys, "train", "sasrec", *words, "--track", "wandb")
    assert "device 'cuda:99' is not usable" in refused(
        capsys, "train", "sasrec", *words, "--device", "cuda:99"
    )
    assert "is not a prepared data set" in refused(
        capsys, "train", "sasrec", "--data", tmp_path / "nothing", "--out", out
    )
    assert not out.exists()
    (tmp_path / "file").write_text("")
    assert "already holds other files" in refused(
        capsys, "train", "popularity", "--data", world / "data", "--out", tmp_path / "file"
    )


def test_requests_that_make_no_sense_are_refused_in_one_line(world, runs, tmp_path, capsys):
    run = runs / "markov"

    def why(*words: str | Path) -> str:
        return refused(capsys, "recommend", run, *words)

    assert refused(capsys, "recommend", world, "--history", "a") == (
        f"{world} is not a run directory (no config.yaml)"
    )
    one_of = "give one of --history, --user and --histories; got "
    assert why() == one_of + "none"
    assert why("--history", "a", "--user", "b") == one_of + "--history and --user"
    assert why("--histories", "h.parquet") == "--histories FILE and --out FILE belong together"
    assert why("--history", "a", "--out", "b") == "--histories FILE and --out FILE belong together"
    assert why("--history", "a", "-k", "0") == "-k is at least 1, got 0"
    assert refused(capsys, "explain", run, "--history", "a", "-k", "0") == "-k is at least 1, got 0"
    assert why("--user", "user-999") == "user 'user-999' is not in the data set (300 users are)"
    assert why("--history", "a", "--allow", "no.txt") == (
        f"allow: none of its 1 ids is an item of {run}, such as 'no.txt'"
    )
    assert refused(capsys, "evaluate", run, "--k", "5,x") == ("--k '5,x'; give whole numbers such as 5,10,20")
    assert "every k is at least 1" in refused(capsys, "evaluate", run, "--k", "0")
    missing = tmp_path / "none.parquet"
    words = ["--histories", missing, "--out", tmp_path / "o.parquet"]
    assert why(*words) == f"histories file '{missing}' does not exist"
    pq.write_table(pa.table({"user_id": [1], "items": [WALK]}), missing)
    assert why(*words) == (
        f"{missing} has no column 'history' (it has user_id, items); a histories file has user_id and history"
    )
    assert not (tmp_path / "o.parquet").exists()


def test_a_run_outlives_its_data_set(world, tmp_path, capsys):
    data, run = tmp_path / "data", tmp_path / "run"
    (world / "data").rename(data)
    try:
        assert main(["train", "popularity", "--data", str(data), "--out", str(run)]) == 0
    finally:
        data.rename(world / "data")
    capsys.readouterr()
    gone = f"{run} was trained on a data set in {data}, which is no longer there; name its folder with --data"
    assert refused(capsys, "evaluate", run) == gone
    assert refused(capsys, "recommend", run, "--user", "user-1") == gone
    assert main(["recommend", str(run), "--history", WALK[0], "--json"]) == 0
    assert main(["evaluate", str(run), "--data", str(world / "data"), "--json"]) == 0


@pytest.mark.shared
def test_real_events_from_table_to_explanation(shared, tmp_path):
    source, data, run = shared / "data" / "ml100k", str(tmp_path / "data"), str(tmp_path / "run")
    prepare = ["prepare", str(source / "interactions.parquet"), "--time", "timestamp", "--out", data]
    items = ["--items", str(source / "items.parquet"), "--title", "title"]
    short = ["model.dim=16", "model.n_layers=1", "train.max_epochs=1"]
    outputs = several(
        [*prepare, *items],
        ["train", "sasrec", "--data", data, "--out", run, "--quiet", *short],
        ["evaluate", run, "--json"],
        ["recommend", run, "--user", "1", "--json"],
        ["recommend", run, "--history", "1,50,172", "--allow", "181,174", "--json"],
        ["explain", run, "--history", "1,50", "-k", "1"],
    )
    assert json.loads(outputs[2])["protocol"]["n_events"] == 943
    mine = json.loads(outputs[3])["items"]
    assert len(mine) == 10
    assert all(isinstance(row["item_id"], int) for row in mine)
    assert {row["item_id"] for row in json.loads(outputs[4])["items"]} == {181, 174}
    assert "Star Wars" in outputs[5]
