"""Tables and pictures of the performance page come from result files, and only from them."""

import json

import pytest

from benchmarks import figures, targets
from benchmarks.figures import filled, number
from benchmarks.results import measured, newest

MACHINE = {
    "processor": "P",
    "cores": 2,
    "memory_gib": 24,
    "python": "3.11.7",
    "commit": "abc",
    "at": "2026-01-01T10:00:00",
}


def run(peer, repetition, targets, beside=None):
    line = {"question": "train", "loss": "ce", "peer": peer, "repetition": repetition, "version": "1.0"}
    line |= {"targets_per_s": targets, "targets_per_cpu_s": targets / 2, "peak_mib": 500.0}
    line |= {"load": repetition + 0.5, "threads": 2, "machine": MACHINE}
    return line | ({"beside": beside} if beside else {})


PEERS = [
    run("replay", 0, 1000.0),
    run("lexrec", 0, 4000.0, "replay"),
    run("replay", 1, 1000.0),
    run("lexrec", 1, 6000.0, "replay"),
]
STEPS = {
    "gpu": "H",
    "commit": "abc",
    "at": "2026-01-01T10:00:00+00:00",
    "threads": 1,
    "python": "3.12",
    "torch": "2.11",
    "results": [
        {
            "loss": "ce",
            "batch": 128,
            "mode": "graph",
            "ms": 0.5,
            "ms_spread": [0.4, 0.625],
            "positions_per_s": 12800000,
            "peak_MiB": 1234,
        }
    ],
}


@pytest.fixture
def results(tmp_path):
    def write(name, lines):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"performance-{name}.jsonl").write_text(text)

    write("peers", PEERS)
    write("steps", [STEPS])
    return tmp_path


def test_a_table_of_ratios_replaces_what_was_between_its_marks(results):
    page = "before\n<!-- figures peers peers train -->\nold\n<!-- end -->\nafter\n"
    lines = filled(page, results).splitlines()
    assert (lines[0], lines[1], lines[-2], lines[-1]) == (
        "before",
        "<!-- figures peers peers train -->",
        "<!-- end -->",
        "after",
    )
    assert lines[4] == "| targets/s, CE | RePlay | 1,000 | 5,000 | **5.00** (4.00 to 6.00) |"
    assert "old" not in lines
    assert filled("\n".join(lines), results) == "\n".join(lines), "filling again changes nothing"


def test_a_question_without_runs_is_an_empty_table(results):
    page = "<!-- figures peers peers evaluate -->\n<!-- end -->"
    assert len(filled(page, results).splitlines()) == 4


def test_a_sentence_says_where_and_with_what(results):
    text = filled("<!-- figures on peers -->\n<!-- end -->", results).splitlines()[1]
    assert text.startswith(
        "P, 2 cores, 24 GiB; Python 3.11.7; 2 threads a process; RePlay 1.0; lexrec at abc"
    )
    assert text.endswith("4 runs; load average of the machine when they began 0.5 to 1.5.")


def test_a_table_of_steps(results):
    lines = filled("<!-- figures steps steps -->\n<!-- end -->", results).splitlines()
    assert lines[3] == "| ce | 128 | graph | **0.500** (0.400 to 0.625) | 12.80 | 1,234 | abc |"
    assert lines[5] == "H, 1 threads, Python 3.12, torch 2.11."


def test_of_a_setting_the_newest_measurement_is_shown(results):
    again = {**STEPS["results"][0], "ms": 0.25, "ms_spread": [0.2, 0.3]}
    compiled = {**again, "mode": "compiled"}
    newer = STEPS | {"commit": "def", "at": "2026-01-02T10:00:00+00:00", "results": [again, compiled]}
    with (results / "performance-steps.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in (newer, STEPS))
    lines = filled("<!-- figures steps steps -->\n<!-- end -->", results).splitlines()
    assert lines[3:6] == [
        "| ce | 128 | graph | **0.250** (0.200 to 0.300) | 12.80 | 1,234 | def |",
        "| ce | 128 | compiled | **0.250** (0.200 to 0.300) | 12.80 | 1,234 | def |",
        "",
    ]


def test_lines_that_do_not_say_when_count_by_their_place():
    lines = [{"of": "a", "n": 1}, {"of": "b", "n": 2}, {"of": "a", "n": 3}]
    assert newest(lines, ["of"]) == lines[1:]
    assert newest([{"of": "a", "at": "2026", "n": 0}, *lines], ["of"]) == [
        {"of": "a", "at": "2026", "n": 0},
        {"of": "b", "n": 2},
    ]


def test_libraries_measured_again_are_compared_by_their_last_runs_alone(results):
    later = MACHINE | {"commit": "def", "at": "2026-01-02T10:00:00"}
    again = [run("replay", 0, 1000.0), run("lexrec", 0, 9000.0, "replay")]
    with (results / "performance-peers.jsonl").open("a") as file:
        file.writelines(json.dumps(line | {"machine": later}) + "\n" for line in again)
    found = measured(results / "performance-peers.jsonl", "peers")
    assert [line["targets_per_s"] for line in found] == [1000.0, 9000.0]


def test_what_was_not_measured_is_said(tmp_path):
    text = filled("<!-- figures ranking ranking -->\n<!-- end -->", tmp_path)
    assert "Not measured yet: there is no performance-ranking.jsonl" in text


def test_the_page_is_filled_from_the_results_that_are_there():
    page = figures.PAGE.read_text(encoding="utf-8")
    assert filled(page, figures.RESULTS) == page, "run: python -m benchmarks.figures"


def test_numbers_are_short():
    assert [number(n) for n in (12345.6, 100, 99.94, 0.01234)] == ["12,346", "100", "99.9", "0.0123"]


def test_a_picture_is_the_same_each_time(results, tmp_path):
    plots = pytest.importorskip("benchmarks.plots", exc_type=ImportError)
    one, other = plots.draw(results, tmp_path / "a"), plots.draw(results, tmp_path / "b")
    assert [path.name for path in one] == ["performance-peers.svg"]
    assert one[0].read_bytes() == other[0].read_bytes()
    assert b"training, CE" in one[0].read_bytes()


def test_a_target_is_met_or_missed_by_the_best_of_what_was_measured(results):
    rows = {line.split(" | ")[0].strip("| "): line for line in figures.targets(results)}
    assert rows["H100, batch 128: a CE step, ms"].endswith("| at most 0.6 | **0.5** | met |")
    assert rows["two CPU cores, Beauty: CE, times the fastest"].endswith("| at least 6 | **5** | missed |")
    assert rows["H100, batch 128: a BCE step, ms"].endswith("|  | not measured yet |")


def test_other_libraries_count_by_the_one_that_does_best():
    slow = [run("rectools", 0, 100.0), run("lexrec", 0, 5000.0, "rectools")]
    assert targets._beside_best("train", "ce", "targets_per_s")([*PEERS, *slow]) == [5.0]
    assert targets._own("train", "ce", "targets_per_s")(PEERS) == [5000.0]
