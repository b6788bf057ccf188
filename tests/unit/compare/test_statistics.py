"""Tests against SciPy, Holm by hand, and intervals where the truth is known."""

import numpy as np
import pytest
from scipy import stats

from lexrec.compare.statistics import bootstrap, hedges_g, holm, interval, welch


def test_welch_is_scipys():
    rng = np.random.default_rng(0)
    for n, m in ((10, 10), (3, 7), (2, 2)):
        one, two = rng.normal(0, 1, n), rng.normal(1, 3, m)
        mine, theirs = welch(one, two), stats.ttest_ind(two, one, equal_var=False)
        assert mine is not None
        assert (mine.t, mine.df, mine.p) == pytest.approx((theirs.statistic, theirs.df, theirs.pvalue))


def test_a_counted_arm_is_a_number_to_test_against():
    one = [0.1, 0.12, 0.11, 0.13]
    mine, theirs = welch(one, [0.1]), stats.ttest_1samp(one, 0.1)
    assert mine is not None
    assert (mine.t, mine.df, mine.p) == pytest.approx((-theirs.statistic, theirs.df, theirs.pvalue))


def test_what_has_no_spread_is_not_tested():
    assert welch([0.1], [0.2]) is None
    assert welch([0.1, 0.1], [0.2, 0.2]) is None
    assert hedges_g([0.1, 0.1], [0.2, 0.2]) is None
    assert hedges_g([0.1, 0.2], [0.2]) is None


def test_the_least_difference_is_found_four_times_in_five():
    """Simulated: arms that truly differ by what the test says it can see."""
    rng = np.random.default_rng(1)
    n, runs = 5, 20_000
    test = welch(stats.norm.ppf((np.arange(n) + 0.5) / n), stats.norm.ppf((np.arange(n) + 0.5) / n))
    assert test is not None
    spread = np.std(stats.norm.ppf((np.arange(n) + 0.5) / n), ddof=1)
    one = rng.normal(0, spread, (runs, n))
    two = rng.normal(test.least, spread, (runs, n))
    found = stats.ttest_ind(one, two, axis=1, equal_var=False).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.02)


def test_hedges_g_by_hand():
    # Means 2 and 4, both variances 1, four degrees of freedom: J = gamma(2) / (sqrt(2) gamma(1.5)) = 0.7979.
    assert hedges_g([1, 2, 3], [3, 4, 5]) == pytest.approx(2 * 0.797885, rel=1e-5)


def test_holm_by_hand():
    # Ascending .005, .01, .03, .04 times 4, 3, 2, 1 is .02, .03, .06, .04; and none below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def drawn(rng, n_seeds: int, n_users: int, *, of_seed: float, of_user: float, of_both: float):
    """Values whose true mean is 0, [S, 1, U]."""
    return (
        rng.normal(0, of_seed, (n_seeds, 1, 1))
        + rng.normal(0, of_user, (1, 1, n_users))
        + rng.normal(0, of_both, (n_seeds, 1, n_users))
    ).astype(np.float32)


@pytest.mark.parametrize(
    ("n_seeds", "of_seed", "of_user", "of_both"),
    [(10, 0.1, 1.0, 0.5), (10, 0.5, 0.5, 0.5), (1, 0.0, 1.0, 0.0), (5, 0.02, 1.0, 1.0)],
)
def test_intervals_hold_the_truth_about_as_often_as_they_say(n_seeds, of_seed, of_user, of_both):
    rng, held, worlds = np.random.default_rng(2), 0, 300
    for world in range(worlds):
        value = drawn(rng, n_seeds, 80, of_seed=of_seed, of_user=of_user, of_both=of_both)
        low, high = interval(bootstrap([value], np.ones(80, np.float32), 400, world)[0][:, 0])
        held += low <= 0 <= high
    assert 0.90 <= held / worlds <= 0.99


def test_users_alone_would_call_two_seeds_of_one_arm_different():
    """Where seeds move a mean more than users do, an interval over users misses the truth."""
    rng, users_alone, both, worlds = np.random.default_rng(3), 0, 0, 200
    for world in range(worlds):
        a, b = (drawn(rng, 10, 80, of_seed=0.2, of_user=0.5, of_both=0.5) for _ in range(2))
        count = np.ones(80, np.float32)
        for seeds in (1, 10):
            found = bootstrap([a[:seeds], b[:seeds]], count, 300, world)
            low, high = interval((found[1] - found[0])[:, 0])
            users_alone += seeds == 1 and not low <= 0 <= high
            both += seeds == 10 and not low <= 0 <= high
    assert users_alone / worlds > 0.3
    assert both / worlds < 0.1


def test_a_bootstrap_seed_gives_one_result_and_a_further_arm_changes_none_before_it():
    rng = np.random.default_rng(4)
    arms = [rng.random((n, 2, 30), dtype=np.float32) for n in (3, 1, 4)]
    count = np.full(30, 2, np.float32)
    found, again = bootstrap(arms, count, 100, 7), bootstrap(arms[:2], count, 100, 7)
    assert [arm.shape for arm in found] == [(100, 2)] * 3
    assert all(np.array_equal(one, two) for one, two in zip(found, again, strict=False))
    assert not np.array_equal(found[0], bootstrap(arms, count, 100, 8)[0])


def test_a_user_with_many_events_weighs_as_many():
    value = np.array([[[30.0, 0.0]]], np.float32)
    found = bootstrap([value], np.array([30, 10], np.float32), 500, 0)[0][:, 0]
    # Both users once: 30 / 40; one of them twice: all or nothing.
    assert set(np.round(found, 6)) == {0.0, 0.75, 1.0}
