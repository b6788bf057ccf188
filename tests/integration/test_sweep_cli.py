"""`lexrec sweep` as a process: killed, gone on with, shared by two processes, and its recipe trained."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lexrec.commands.__main__ import main
from tests.worlds import world

pytest.importorskip("optuna")

SMALL = ["model.dim=8", "model.n_heads=1", "model.n_layers=1", "model.max_len=4", "train.batch_size=30"]
N_TRIALS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "circle"
    world([[(user + step) % 8 + 1 for step in range(6)] for user in range(60)], n_items=8).save(folder)
    return str(folder)


def test_a_search_that_is_killed_goes_on_and_its_recipe_trains(data, tmp_path, root, lexrec):
    out = tmp_path / "s"
    words = ["sweep", "sasrec", *SMALL, "train.max_epochs=8", "--data", data, "--out", str(out)]
    words += ["--space", "train.lr=1e-3..0.03:log", "--trials", str(N_TRIALS)]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "lexrec.commands", *words], env=env, cwd=tmp_path)
    while not list(out.glob("trials/*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "report.json").exists()
    begun = {path.name for path in out.glob("trials/*")}

    done = lexrec(*words, "--jobs", "2", "--json", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((out / "report.json").read_text())
    assert len(found["trials"]) == N_TRIALS
    # What was begun was finished where it lay.
    assert begun <= {path.rpartition("/")[2] for path in (trial["run"] for trial in found["trials"])}
    assert f"/{N_TRIALS}] trial " in done.stderr

    assert (
        main(["train", str(out / "best.yaml"), "--data", data, "--out", str(tmp_path / "r"), "--quiet"]) == 0
    )
    summary = json.loads((tmp_path / "r" / "DONE").read_text())
    assert summary["ndcg@10"] == found["best"]["value"]


def test_the_table_has_the_best_first_and_says_where_the_recipe_is(data, tmp_path, capsys):
    out = str(tmp_path / "s")
    words = ["sweep", "item_knn", "--data", data, "--space", "baseline.neighbours=[1, 20]"]
    assert main([*words, "--out", out, "--trials", "3", "--quiet"]) == 0
    shown, progress = capsys.readouterr()
    assert progress == ""
    lines = shown.splitlines()
    assert lines[0] == "3 trials"
    values = [float(line.split()[1]) for line in lines if line.strip()[:1].isdigit() and "trials" not in line]
    assert values == sorted(values, reverse=True)
    assert len(values) == 3
    assert f"{out}/best.yaml: ndcg@10 {values[0]:.4f} on validation, which it was chosen on" in shown
    assert max(map(len, lines[:8])) <= 100


def test_mistakes_are_one_line(data, tmp_path, capsys):
    def refused(*words):
        assert main(["sweep", "sasrec", "--data", data, "--out", str(tmp_path / "s"), *words]) == 2
        out, complaint = capsys.readouterr()
        assert out == ""
        assert complaint.count("\n") == 1
        assert not (tmp_path / "s").exists()
        return complaint

    assert "--trials 0: input should be greater than or equal to 1" in refused(
        "--space", "a=1..2", "--trials", "0"
    )
    unknown = refused("--space", "train.lr=1e-4..1e-2", "model.width=[1, 2]")
    assert unknown.startswith(
        "lexrec: error: space: model.width=1: sasrec: model: unknown key 'width'; known: "
    )
