"""`lexrec compare` end to end: killed half-way, continued, used again, refused what it must refuse.

The world: nine items in a circle, and everybody walks along it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from lexrec.commands.__main__ import main
from lexrec.run_dir import RunDir
from tests.conftest import ROOT
from tests.worlds import world

ARMS = ["plain: sasrec", "wide: sasrec model.dim=16"]
SETTINGS = [
    *("--set", "model.dim=8", "--set", "model.n_layers=1", "--set", "model.max_len=6"),
    *("--set", "train.max_epochs=2", "--set", "train.batch_size=32", "--seeds", "2", "--k", "5,10"),
]
RUNS = {f"{arm}/seed-{seed}" for arm in ("plain", "wide") for seed in (1, 2)} | {
    f"{arm}/counted" for arm in ("item_knn", "markov", "popularity")
}


def words(data: Path, out: Path, *more: str) -> list[str]:
    return ["compare", *ARMS, "--data", str(data), "--out", str(out), *SETTINGS, *more]


def finished(out: Path) -> set[str]:
    return {str(done.parent.relative_to(out / "arms")) for done in out.glob("arms/*/*/DONE")}


def workers(out: Path) -> list[int]:
    """Processes that hold a log of this comparison open as their standard error."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str((entry / "fd" / "2").readlink()).startswith(str(out)):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_for(what, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "data"
    world([[(u + t) % 9 + 1 for t in range(7)] for u in range(40)], 9).save(folder)
    return folder


@pytest.fixture(scope="module")
def killed(data, tmp_path_factory) -> Path:
    """A comparison whose process got SIGKILL once three of its runs were finished."""
    out = tmp_path_factory.mktemp("killed") / "out"
    command = [sys.executable, "-m", "lexrec.commands", *words(data, out, "--jobs", "2")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(finished(out)) >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return out


def test_a_killed_comparison_goes_on_and_a_finished_one_is_used_again(data, killed, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if sys.platform == "linux":
        wait_for(lambda: not workers(killed), 20)  # Nobody writes on where nobody waits.
    before = {name: (killed / "arms" / name / "DONE").stat().st_mtime_ns for name in finished(killed)}
    assert 3 <= len(before) < len(RUNS)
    assert not (killed / "report.json").exists()

    assert main(words(data, killed, "--jobs", "2", "--json")) == 0
    out, told = capsys.readouterr()
    report = json.loads(out)
    assert report == json.loads((killed / "report.json").read_text())
    assert list(report) == ["arms", "pairs", "verdict"]
    assert finished(killed) == RUNS
    assert {name: (killed / "arms" / name / "DONE").stat().st_mtime_ns for name in before} == before, (
        "a finished run was made again"
    )
    assert f"[{len(RUNS)}/{len(RUNS)}]" in told

    assert list(report["arms"]) == ["plain", "wide", "item_knn", "markov", "popularity"]
    plain, wide, markov = (report["arms"][name] for name in ("plain", "wide", "markov"))
    assert (plain["seeds"], markov["seeds"]) == ([1, 2], [])
    assert len(plain["metrics"]["ndcg@10"]["values"]) == 2
    assert markov["metrics"]["hr@5"]["mean"] == 1.0  # The next place on the circle is certain.
    assert wide["flops"]["step"] > plain["flops"]["step"] > 0
    assert wide["parameters"] > plain["parameters"]
    assert [(pair["a"], pair["b"]) for pair in report["pairs"]] == [
        ("plain", name) for name in ("wide", "item_knn", "markov", "popularity")
    ]
    assert "40 test events (leave-one-out), against 9 items; seen items removed" in report["verdict"]
    assert "No verdict with fewer than 10 seeds" in report["verdict"]
    configs = [RunDir.open(killed / "arms" / "plain" / f"seed-{seed}").config for seed in (1, 2)]
    assert [(config.train.seed, config.model.dim) for config in configs] == [(1, 8), (2, 8)]

    # Once more, with no run left to do: the same report to the last digit, and the table that people read.
    assert main(words(data, killed)) == 0
    out, told = capsys.readouterr()
    assert told == "7 of 7 runs are there already\n"
    assert report == json.loads((killed / "report.json").read_text())
    assert report["verdict"] in out
    assert max(map(len, out.split("Protocol:")[0].splitlines())) <= 100

    unlike_runs_are_refused(data, killed, capsys)


def unlike_runs_are_refused(data: Path, out: Path, capsys) -> None:
    """What finished runs make possible to try without training again."""
    place = out / "arms" / "wide" / "seed-2"
    assert main(words(data, out, "--set", "train.lr=0.5")) == 2
    assert (
        "plain/seed-1 was made with another config (train.lr: 0.001 -> 0.5); give the arm another name"
        in (capsys.readouterr().err)
    )
    other = world([[(u + 2 * t) % 9 + 1 for t in range(7)] for u in range(40)], 9).save(data.parent / "other")
    assert main(words(other.folder, out)) == 2
    assert "plain/seed-1 was trained on data " in capsys.readouterr().err

    protocol = place / "evaluations" / "test" / "protocol.json"
    kept = protocol.read_text()
    protocol.write_text(kept.replace('"seen": "remove"', '"seen": "keep"'))
    assert main(words(data, out, "--seeds", "3")) == 2
    assert "these results were not measured alike (seen: remove, keep)" in capsys.readouterr().err
    assert finished(out) == RUNS, "a third seed was trained before that was found"
    protocol.write_text(kept)


def test_a_run_that_fails_does_not_lose_the_others(data, tmp_path, capsys, monkeypatch):
    """This objective cannot train this model, which only the run itself finds out."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    leaking = "leaking: bsarec objective.name=next_item"
    arms = ["compare", leaking, "popularity", "--data", str(data), "--out", str(tmp_path / "out")]
    assert main([*arms, "--seeds", "1", "--jobs", "2", "--json", "--drop-weights"]) == 2
    out, told = capsys.readouterr()
    report = json.loads(out)
    (failed,) = report["arms"]["leaking"]["failed"]
    assert failed["seed"] == 1
    assert "leaking seed 1: failed: " in told
    assert failed["error"] in told
    assert "Failed runs, left out: leaking (1 of 1)." in report["verdict"]
    assert report["arms"]["popularity"]["metrics"]["hr@5"]["mean"] > 0
    assert not list(tmp_path.glob("out/arms/*/*/checkpoints"))


def test_models_that_peeked_are_measured_beside_baselines_that_did_not(data, tmp_path, capsys, monkeypatch):
    """The protocol of some papers, from end to end; the report says what it is worth."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    peeking = "peeking: sasrec train.select_on=test"
    arms = ["compare", peeking, "--data", str(data), "--out", str(tmp_path / "out"), *SETTINGS[:-4]]
    assert main([*arms, "--seeds", "1", "--jobs", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["arms"]["peeking"]["protocol"]["selected_on"] == "test"
    assert report["arms"]["markov"]["protocol"]["selected_on"] == "nothing"
    assert (
        "Selected on test, the part measured, which flatters: peeking. "
        "Without that help: item_knn, markov, popularity."
    ) in report["verdict"]


def test_every_arm_is_ranked_in_the_same_small_pools(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arms = ["compare", "markov", "--data", str(data), "--out", str(tmp_path / "out"), "--jobs", "2"]
    assert main([*arms, "--pool", "2", "--sample", "30"]) == 0
    shown = capsys.readouterr().out
    assert "Protocol: 30 test events (leave-one-out), against 2 random unseen items each (seed 0)" in shown
    assert "hr@1" in shown
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["arms"]["markov"]["metrics"]["hr@1"]["mean"] == 1.0  # The next place on the circle.
    assert {arm["protocol"]["pool_seed"] for arm in report["arms"].values()} == {0}
    assert all(arm["metrics"]["hr@5"]["mean"] == 1.0 for arm in report["arms"].values()), "of three"


def test_epochs_chosen_on_unlike_parts_are_refused_before_anything_is_trained(data, tmp_path, capsys):
    arms = ["compare", "sasrec", "peeking: sasrec train.select_on=test", "--data", str(data)]
    assert main([*arms, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "lexrec: error: one part has to choose the epochs of every arm (train.select_on is "
        "validation: sasrec; test: peeking); set it alike, such as train.select_on=validation in each arm\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--jobs", "0"], "--jobs 0: at least 1 run at a time"),
        (["--seeds", "0"], "--seeds 0: input should be greater than or equal to 1"),
        (["--k", "5,x"], "--k '5,x'; give whole numbers such as 5,10,20"),
        (["--pool", "0"], "--pool 0: input should be greater than or equal to 1"),
        (
            ["--pool", "2", "--seen", "keep"],
            "pool: its candidates are unseen items; seen=keep has no meaning",
        ),
        (
            ["--pairs", "plain:wide,plain:pop"],
            "pairs: 'plain:pop' is no pair of arms; write first, all or A:B, with arms of plain, wide, item",
        ),
        (["--pairs", "every"], "pairs: 'every' is no pair of arms"),
        (["--metric", "auc"], "--metric 'auc': string should match pattern"),
        (["--set", "train.dept=3"], "train: unknown key 'dept'; known: "),
        (["--set", "seed"], "override 'seed' is not of the form key.path=value"),
        (["--device", "tpu"], "device 'tpu' is not usable here; use auto, cpu, cuda or cuda:N"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(data, tmp_path, capsys, more, said):
    assert main([*words(data, tmp_path / "out"), *more]) == 2
    out, complaint = capsys.readouterr()
    assert out == ""
    assert said in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_refused(data, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("all of it")
    assert main(words(data, tmp_path)) == 2
    assert "holds other files than a comparison's; choose another --out" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_comparisons_do_not_share_a_folder(data, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".lock"):
        assert main(words(data, out)) == 2
    assert f"another comparison is at work in {out}; wait for it, or choose another --out" in (
        capsys.readouterr().err
    )
    assert [entry.name for entry in out.iterdir()] in ([], [".lock"])


def test_the_package_is_the_function(python):
    """Whichever is imported first."""
    code = """
import sys, lexrec
assert callable(lexrec.compare)
import lexrec.compare.compare
assert callable(lexrec.compare)
print(*sys.modules)
"""
    loaded = set(python("-c", code).stdout.split())
    assert {"torch", "lexrec.compare.report"} <= loaded
    assert loaded & {"scipy", "optuna", "rich", "pandas", "ibis", "duckdb"} == set()
