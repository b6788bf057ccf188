"""The interval against what is known of it, and every verdict there is."""

import numpy as np
import pytest

from lexrec.errors import ConfigError
from lexrec.serving._demo_verdict import Difference, paired_difference, verdict

BETTER, WORSE, UNSURE = (
    Difference(0.1, 0.05, 0.15),
    Difference(-0.1, -0.15, -0.05),
    Difference(0.0, -0.05, 0.05),
)


def ranks(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_equal_ranks_differ_by_nothing():
    rank_E = ranks(1, 3, 50, 7)
    assert paired_difference(rank_E, rank_E) == (0, 0, 0)
    assert paired_difference(rank_E, rank_E).sign == 0


def test_a_gain_that_is_the_same_for_everybody_has_no_width():
    found = paired_difference(ranks(1, 1, 1), ranks(3, 3, 3))
    # 1 / log2(2) less 1 / log2(4)
    assert found == pytest.approx((0.5, 0.5, 0.5))
    assert found.sign == 1
    assert paired_difference(ranks(3, 3, 3), ranks(1, 1, 1)).sign == -1


def test_the_interval_is_about_two_standard_errors_on_either_side():
    generator = np.random.default_rng(7)
    rank_E, other_E = (generator.integers(1, 15, 2000).astype(np.float32) for _ in range(2))
    gain_E = (rank_E <= 10).astype(float) - (other_E <= 10)
    error = gain_E.std() / len(gain_E) ** 0.5
    found = paired_difference(rank_E, other_E, metric="hr@10")
    assert found.mean == pytest.approx(gain_E.mean())
    assert found.high - found.mean == pytest.approx(1.96 * error, rel=0.05)
    assert found.mean - found.low == pytest.approx(1.96 * error, rel=0.05)


def test_pairs_count_and_not_only_their_means():
    one, other = ranks(*[1, 20] * 50), ranks(*[20, 1] * 50)
    assert paired_difference(one, one[::-1].copy()).mean == 0
    # The same ranks in another order: no difference on average, a wide interval.
    assert paired_difference(one, other).high > 0.1


def test_one_result_has_one_interval():
    one, other = ranks(1, 2, 9, 30, 4), ranks(2, 1, 12, 5, 3)
    assert paired_difference(one, other) == paired_difference(one, other)


def test_an_unknown_metric_is_refused():
    with pytest.raises(ConfigError, match="no metric 'auc@10'"):
        paired_difference(ranks(1), ranks(1), metric="auc@10")


@pytest.mark.parametrize(
    ("over_plain", "over_random", "said"),
    [
        (BETTER, BETTER, "The tokens helped in this run"),
        (BETTER, UNSURE, "random tokens did about as well"),
        (BETTER, WORSE, "random tokens helped more"),
        (UNSURE, BETTER, "Real tokens beat random ones in this run, but no gain over the plain"),
        (UNSURE, UNSURE, "Nothing shows that the tokens helped in this run"),
        (UNSURE, WORSE, "No gain over the plain model shows in this run, and random tokens did better"),
        (WORSE, BETTER, "did harm in this run"),
        (WORSE, UNSURE, "did harm in this run"),
        (WORSE, WORSE, "did harm in this run"),
    ],
)
def test_the_verdict_follows_from_both_comparisons(over_plain, over_random, said):
    text = verdict(over_plain, over_random)
    assert said in text
    assert "in this run" in text
    assert ("The tokens helped" in text) == (over_plain is BETTER and over_random is BETTER)
