"""The benchmark of a training step runs, and what it prints is one line of figures that fit together."""

import json

import pytest

from benchmarks import train_step


def test_it_prints_one_line_of_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in (train_step.EAGER, train_step.COMPILE):
        monkeypatch.setenv(variable, "0")  # the benchmark sets them
    monkeypatch.setenv("LEXREC_COMMIT", "abc1234")
    words = "train_step --batch 4,8 --loss ce,bce --mode eager --items 30 --length 6 --steps 2 --rounds 3"
    monkeypatch.setattr("sys.argv", [*words.split(), "--kernels", "4", "model.dim=8"])
    train_step.main()
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert {"processor", "python", "torch", "lexrec", "threads", "at"} <= set(found)
    assert found["commit"] == "abc1234"
    assert [(r["loss"], r["batch"]) for r in found["results"]] == [
        ("ce", 4), ("bce", 4), ("ce", 8), ("bce", 8),
    ]  # fmt: skip
    for result in found["results"]:
        low, high = result["ms_spread"]
        assert 0 < low <= result["ms"] <= high
        us = [one["us"] for one in result["kernels"]]
        assert us == sorted(us, reverse=True)
        assert 0 < sum(us) <= result["kernels_us"] + 0.1
        assert len(result["kernels"]) == 4 < result["n_kernels"]
        assert result["positions_per_s"] == pytest.approx(result["batch"] * 6 / result["ms"] * 1000, rel=1e-3)


def test_every_position_has_a_target() -> None:
    data = train_step.full_rows(9, 6, 5)
    assert len(data.item_N) == 5 * 7
    assert (data.train_end_U - data.start_U == 7).all()
    assert data.item_N.min() >= 1
    assert data.item_N.max() <= 9
