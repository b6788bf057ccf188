"""The verdict: what it claims by luck, what it withholds, and what it says."""

import numpy as np
import pytest

from lexrec.compare.arms import Arm
from lexrec.compare.report import build_report
from lexrec.compare.results import ArmResult, Users
from lexrec.compare.settings import CompareConfig
from lexrec.errors import ProtocolError
from lexrec.evaluation.protocol import Protocol

N_USERS = 50
USERS = Users(np.arange(N_USERS), np.ones(N_USERS, np.float32))
PROTOCOL = Protocol(
    lexrec="0",
    data="d" * 64,
    split_rule="leave-one-out",
    split="test",
    seen="remove",
    ties="expected",
    candidates="all",
    n_candidates=1682,
    n_events=N_USERS,
    n_unreachable=0,
    k=(10,),
    selected_on="validation",
)
SETTINGS = CompareConfig(k=(10,), draws=200)


def arm(name, mean, *, seeds=10, rng=None, spread=0.01, protocol=PROTOCOL, failed=()) -> ArmResult:
    """Seeds scatter around `mean`, users around the seeds; a counted arm where there is no rng."""
    value_SMU = np.full((seeds, len(SETTINGS.metrics), N_USERS), mean)
    if rng is not None:
        value_SMU += rng.normal(0, spread, (seeds, 1, 1))
    return ArmResult(
        arm=Arm(name, "sasrec" if rng is not None else "markov"),
        is_counted=rng is None,
        seeds=tuple(range(1, seeds + 1)),
        failed=failed,
        protocol=protocol if seeds else None,
        value_SMU=value_SMU.astype(np.float32),
        mean_SM=value_SMU.mean(-1),
        cost={},
    )


def last_lines(results, settings=SETTINGS) -> list[str]:
    return build_report(results, USERS, settings).verdict.split("\n")[2:]


def test_seeds_of_one_arm_are_seldom_called_different():
    """Three arms that are one: with every pair tested, any claim at all is false. Holm keeps them to 5 %."""
    rng, claims, worlds = np.random.default_rng(0), 0, 100
    settings = CompareConfig(k=(10,), draws=100, pairs="all")
    for _ in range(worlds):
        arms = [arm(name, 0.5, rng=rng) for name in "abc"]
        claims += any("better" in line or "worse" in line for line in last_lines(arms, settings))
    assert claims / worlds <= 0.08


def test_a_plain_difference_is_found():
    rng = np.random.default_rng(1)
    report = build_report([arm("a", 0.5, rng=rng), arm("b", 0.6, rng=rng)], USERS, SETTINGS)
    (pair,) = report.pairs
    assert report.verdict.split("\n")[2].startswith("b is better than a: +")
    assert pair["p"] == pair["p_holm"] < 1e-6
    assert pair["difference"] == pytest.approx(0.1, abs=0.02)
    low, high = pair["interval"]
    assert 0.08 < low < pair["difference"] < high < 0.12
    assert list(report.json()) == ["arms", "pairs", "verdict"]
    assert report.arms["a"]["metrics"]["ndcg@10"]["std"] == pytest.approx(0.01, abs=0.005)


def test_nine_seeds_give_no_verdict_but_the_least_difference_they_could_have_shown():
    rng = np.random.default_rng(2)
    report = build_report([arm("a", 0.5, seeds=9, rng=rng), arm("b", 0.6, rng=rng)], USERS, SETTINGS)
    (pair,) = report.pairs
    said = report.verdict.split("\n")[2]
    assert "better" not in said
    assert said.endswith(
        "No verdict with fewer than 10 seeds an arm; the least difference these could have shown is "
        f"{100 * pair['least_difference'] / pair['mean_a']:.1f} %."
    )


def test_one_seed_is_not_tested():
    rng = np.random.default_rng(3)
    (pair,) = build_report([arm("a", 0.5, seeds=1, rng=rng), arm("b", 0.6, rng=rng)], USERS, SETTINGS).pairs
    assert (pair["p"], pair["p_holm"], pair["hedges_g"]) == (None, None, None)


def test_baselines_are_tested_as_the_numbers_they_are_and_a_model_below_one_hears_it():
    rng = np.random.default_rng(4)
    lines = last_lines([arm("a", 0.5, rng=rng), arm("markov", 0.6, seeds=1)])
    assert lines[0].startswith("markov is better than a: +")
    assert lines[1] == "The best counting baseline, markov, has ndcg@10 0.6000: not beaten by a."
    assert last_lines([arm("a", 0.7, rng=rng), arm("markov", 0.6, seeds=1)])[1].endswith(
        "every model is above it."
    )


def test_a_difference_that_other_users_might_not_show_is_said_to_be_one():
    """Seeds agree to the last digit, but it hangs on one user."""
    rng = np.random.default_rng(5)
    a, b = arm("a", 0.5, rng=rng, spread=1e-6), arm("b", 0.5, rng=rng, spread=1e-6)
    b.value_SMU[:, :, 0] += 1
    b.mean_SM[:] += 1 / N_USERS
    assert last_lines([a, b])[0].startswith("b is better than a on these users, and perhaps not on others")


def test_the_family_is_stated():
    rng = np.random.default_rng(6)
    arms = [arm("a", 0.5, rng=rng), arm("b", 0.5, rng=rng), arm("m", 0.1, seeds=1), arm("n", 0.2, seeds=1)]
    first = build_report(arms, USERS, SETTINGS)
    assert [(pair["a"], pair["b"]) for pair in first.pairs] == [("a", "b"), ("a", "m"), ("a", "n")]
    assert "Holm over 3 pairs (every arm against a)" in first.verdict
    every = build_report(arms, USERS, CompareConfig(k=(10,), draws=100, pairs="all"))
    assert len(every.pairs) == 6
    assert every.pairs[-1]["p"] is None  # Two counts: nothing varies.
    assert "Holm over 5 pairs (every pair)" in every.verdict
    named = build_report(arms, USERS, CompareConfig(k=(10,), draws=100, pairs=("b:a", "b:m")))
    assert [(pair["a"], pair["b"]) for pair in named.pairs] == [("b", "a"), ("b", "m")]
    assert "Holm over 2 pairs (those named)" in named.verdict


def test_unlike_protocols_are_refused():
    rng = np.random.default_rng(7)
    other = arm("b", 0.5, rng=rng, protocol=PROTOCOL.model_copy(update={"seen": "keep"}))
    with pytest.raises(
        ProtocolError, match=r"not measured alike \(seen: remove, keep\); evaluate both again"
    ):
        build_report([arm("a", 0.5, rng=rng), other], USERS, SETTINGS)


def test_what_flatters_and_what_failed_is_said():
    rng = np.random.default_rng(8)
    on_test = PROTOCOL.model_copy(update={"selected_on": "test", "allow_leak": True})
    arms = [arm(name, 0.5, rng=rng, protocol=on_test, failed=((11, "broke"),)) for name in "ab"]
    lines = last_lines([*arms, arm("c", 0.5, rng=rng, seeds=0, failed=((1, "broke"),))])
    assert lines[:3] == [
        "Selected on test, the part measured, which flatters: a, b.",
        "Allowed to see their targets in training: a, b.",
        "Failed runs, left out: a (1 of 11), b (1 of 11), c (1 of 1).",
    ]


def test_models_picked_on_the_part_measured_stand_beside_baselines_that_had_no_such_help():
    rng = np.random.default_rng(10)
    on_test = PROTOCOL.model_copy(update={"selected_on": "test"})
    counted = PROTOCOL.model_copy(update={"selected_on": "nothing"})
    peeked, markov = arm("a", 0.5, rng=rng, protocol=on_test), arm("markov", 0.4, seeds=1, protocol=counted)
    lines = last_lines([peeked, markov])
    assert lines[0] == "Selected on test, the part measured, which flatters: a. Without that help: markov."
    assert lines[1].startswith("markov is worse than a: ")
    honest = arm("b", 0.5, rng=rng)
    for arms in ([markov, peeked, honest], [peeked, honest, markov]):
        with pytest.raises(ProtocolError, match=r"not measured alike \(selected_on: "):
            build_report(arms, USERS, SETTINGS)


def test_nothing_that_succeeded_is_nothing_to_compare():
    failed = arm("a", 0.5, rng=np.random.default_rng(9), seeds=0, failed=((1, "broke"),))
    report = build_report([failed], USERS, SETTINGS)
    assert report.verdict == "No run succeeded: there is nothing to compare."
    assert report.arms["a"]["failed"] == [{"seed": 1, "error": "broke"}]
