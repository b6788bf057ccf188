"""Student's t against SciPy."""

import pytest
from scipy import stats

from lexrec.compare.student import critical_value, detectable, rejected_share


@pytest.mark.parametrize("df", [1, 1.5, 3.3, 9, 18, 57.2, 1000])
def test_p_values_are_scipys(df):
    for t in (0, 0.3, 2, 5, 12):
        assert rejected_share(t, df) == pytest.approx(2 * stats.t.sf(t, df), rel=1e-8, abs=1e-14)


@pytest.mark.parametrize("df", [2, 4.6, 9, 18])
def test_the_detectable_difference_is_found_with_that_power(df):
    ncp = detectable(0.05, 0.8, df)
    critical = stats.t.isf(0.025, df)
    assert critical_value(0.05, df) == pytest.approx(critical, rel=1e-8)
    power = stats.nct.sf(critical, df, ncp) + stats.nct.cdf(-critical, df, ncp)
    assert power == pytest.approx(0.8, abs=1e-6)
