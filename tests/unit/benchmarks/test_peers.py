"""Other libraries side by side: what is shared by all adapters, and lexrec's own."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.peers import meter as clocks
from benchmarks.peers import worker
from benchmarks.peers.__main__ import Plan, _ask, _turns
from benchmarks.peers.adapters.lexrec import Library
from benchmarks.peers.meter import StepMeter, call_ms
from benchmarks.peers.ratios import ratios
from benchmarks.peers.setting import Histories, K, Setting
from tests.worlds import world

SETTING = Setting(dim=8, n_layers=1, max_len=5, batch_size=8)
LISTS = [[(7 * u + t) % 60 + 1 for t in range(4 + u % 5)] for u in range(12)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return world(LISTS, 60).save(tmp_path_factory.mktemp("peers") / "data").folder


def test_histories_are_those_of_the_data_set_split_leave_one_out(data):
    histories = Histories(data)
    assert (histories.n_users, histories.n_items) == (12, max(map(max, LISTS)))
    assert histories.events(3, 1).tolist() == LISTS[3][:-1]
    assert histories.tests().tolist() == [items[-1] for items in LISTS]
    user_N, item_N, position_N = histories.flat(2)
    assert item_N.tolist() == [item for items in LISTS for item in items[:-2]]
    assert user_N.tolist() == [u for u, items in enumerate(LISTS) for _ in items[:-2]]
    assert position_N[:5].tolist() == [0, 1, 0, 1, 2]
    assert histories.user_of(6) == 3
    assert histories.user_of(50) == 4, "nobody has so many: one of those with most"


def test_users_too_short_to_be_split_are_refused(tmp_path):
    folder = world([[1, 2, 3, 4], [1, 2, 3]], 5).save(tmp_path / "data").folder
    with pytest.raises(SystemExit, match="a user has 3 events; at least 4 are needed"):
        Histories(folder)


def test_a_setting_survives_the_way_to_another_process():
    setting = Setting(loss="bce", dim=32)
    assert Setting.parse(setting.dump()) == setting


def test_the_first_steps_do_not_count(monkeypatch):
    now = iter(np.arange(100.0))
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(clocks.time, "process_time", lambda: 2 * meter_steps)
    meter = StepMeter(seconds=5)
    ends = []
    for meter_steps in range(8):
        meter.step(1000 if meter_steps <= clocks._WARM_STEPS else 10)
        ends.append(meter.is_over)
    assert ends == [False] * 5 + [True] * 3
    found = meter.figures()
    assert found["steps"] == 5
    assert found["targets_per_s"] == 10
    assert found["targets_per_cpu_s"] == 5
    assert found["step_ms"] == 1000


def test_a_call_is_made_a_few_times_at_least():
    calls = []
    found = call_ms(lambda: calls.append(sum(range(10_000))), seconds=0)
    assert found["calls"] == clocks._FEWEST_CALLS == len(calls) - clocks._WARM_CALLS
    assert found["p99"] >= found["p50"] >= found["p10"] > 0


def run(question, peer, value, repetition=0, beside=None, figure="targets_per_s"):
    line = {"question": question, "loss": "ce", "peer": peer, "repetition": repetition}
    figures = {"targets_per_cpu_s": 1.0, "peak_mib": 100.0, "wall_s": 2.0, figure: value}
    return line | figures | ({"beside": beside} if beside else {})


def test_a_ratio_is_taken_pair_by_pair_and_above_one_where_lexrec_is_better():
    lines = [
        run("train", "replay", 100.0),
        run("train", "lexrec", 300.0, beside="replay"),
        run("train", "replay", 50.0, repetition=1),
        run("train", "lexrec", 250.0, repetition=1, beside="replay"),
        run("train", "rectools", 10.0, repetition=1),
        run("start", "replay", 6.0, figure="wall_s"),
        run("start", "lexrec", 2.0, beside="replay", figure="wall_s"),
    ]
    found = {(r.question, r.figure): r for r in ratios(lines)}
    trained = found["train", "targets_per_s"]
    assert trained.pairs == (3.0, 5.0)
    assert (trained.theirs, trained.ours, trained.median) == (75.0, 275.0, 4.0)
    assert found["start", "wall_s"].pairs == (3.0,), "less is better"
    assert {r.peer for r in found.values()} == {"replay"}, "RecTools had no partner"


def test_each_repetition_asks_everything_of_every_library_that_can_answer(tmp_path):
    plan = Plan(
        tmp_path, tmp_path, ("recbole", "replay"), ("train", "start"), ("ce", "bce"), 2, 1.0, 1, False
    )
    turns = list(_turns(plan))
    assert turns[:5] == [
        (0, "train", "ce", "recbole"),
        (0, "train", "ce", "replay"),
        (0, "train", "bce", "replay"),
        (0, "start", "ce", "recbole"),
        (0, "start", "ce", "replay"),
    ]
    assert [turn[1:] for turn in turns[5:]] == [turn[1:] for turn in turns[:5]]


def test_what_a_library_says_when_it_fails_is_kept(data, tmp_path):
    plan = Plan(tmp_path, data / "absent", (), (), (), 1, 1.0, 1, False)
    with pytest.raises(SystemExit, match=r"lexrec start: exit code 1; see .*lexrec\.log"):
        _ask(plan, "lexrec", "start", SETTING, 1.0)
    assert "FileNotFoundError" in (tmp_path / "lexrec.log").read_text()


def test_lexrec_answers_every_question(data, tmp_path):
    histories = Histories(data)
    library = Library(SETTING, histories, tmp_path)
    trained = worker.train(library, histories, 0.02)
    assert trained["targets_per_s"] > 0
    assert trained["parameters"] > 60 * 8
    asked = worker.recommend(library, histories, 0.02)
    assert (asked["seen_one"], asked["seen_many"]) == (0, 0)
    assert (asked["history"], asked["together"]) == (7, 12)
    assert worker.evaluate(library, histories, 0)["users"] == 12
    assert worker.start(library, histories, 0) == {"items": K}


def test_a_worker_prints_one_line_and_nothing_else(data, tmp_path, root):
    words = ["lexrec", "train", "--data", str(data), "--work", str(tmp_path), "--seconds", "0"]
    command = [sys.executable, "-m", "benchmarks.peers.worker", *words, "--setting", SETTING.dump()]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["steps"] > 0
    assert found["peak_mib"] > 100
