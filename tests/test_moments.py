"""Mean, variance and R² of what arrives in parts are those of the whole, whatever the cut."""

from __future__ import annotations

import numpy as np
import pytest

from kerasnorm.math.r_squared import RSquared, r_squared
from kerasnorm.math.running_moments import RunningMoments


def rows(count=23, mean=0.0):
    rng = np.random.default_rng(0)
    return mean + rng.normal(size=(count, 3)) * [1.0, 10.0, 0.1]


@pytest.mark.parametrize("cuts", [[], [1], [4, 5, 20], [0, 7, 7]])
@pytest.mark.parametrize("mean", [0.0, 1e5])
def test_moments_of_parts_are_those_of_the_whole(cuts, mean):
    whole, moments = rows(mean=mean), RunningMoments()
    for part in np.split(whole, cuts):
        if len(part):
            moments.add_rows(part)
    assert moments.count == 23
    np.testing.assert_allclose(moments.mean, whole.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.variance, whole.var(0), rtol=1e-9)


def test_channels_may_have_counts_of_their_own():
    first, second, moments = rows(4), rows(9)[4:], RunningMoments()
    moments.add(np.array([4.0, 0.0, 4.0]), first.mean(0), first.var(0))
    np.testing.assert_allclose(moments.mean, first.mean(0) * [1, 0, 1])
    np.testing.assert_allclose(moments.variance, first.var(0) * [1, 0, 1])
    moments.add(np.array([5.0, 5.0, 0.0]), second.mean(0), second.var(0))
    np.testing.assert_array_equal(moments.count, [9, 5, 4])
    expected = [np.vstack([first, second])[:, 0], second[:, 1], first[:, 2]]
    np.testing.assert_allclose(moments.mean, [values.mean() for values in expected])
    np.testing.assert_allclose(moments.variance, [values.var() for values in expected])


def test_rows_are_added_up_in_float64():
    halves, moments = np.array([[60_000.0], [60_002.0]], "float16"), RunningMoments()
    moments.add_rows(np.repeat(halves, 50, axis=0))
    assert moments.mean == halves.astype("float64").mean()
    assert moments.variance == halves.astype("float64").var()


def test_the_typical_variance_is_the_mean_of_all_channels_but_for_rounding():
    moments = RunningMoments()
    moments.add(2.0, np.array([3.0, 0.0]), np.array([1.0, 5.0]))
    assert moments.typical_variance == 3.0
    for variance, typical in ((0.9e-12, 0.0), (1.1e-12, 1.1e-12)):
        moments = RunningMoments()
        moments.add(2.0, np.array([1.0]), np.array([variance]))
        assert moments.typical_variance == pytest.approx(typical, rel=1e-6, abs=0)


def test_r_squared_of_parts_is_its_formula():
    expected = rows(mean=100.0)
    received = expected + 0.3 * np.random.default_rng(1).normal(size=expected.shape)
    found = RSquared()
    for part in (slice(0, 7), slice(7, 7), slice(7, None)):
        found.add(expected[part], received[part])
    spread = np.square(expected - expected.mean(0)).sum()
    by_hand = 1 - np.square(expected - received).sum() / spread
    assert found.value == pytest.approx(by_hand, rel=1e-12)
    assert r_squared(expected, received) == pytest.approx(by_hand, rel=1e-12)


def test_r_squared_where_nothing_varies_and_of_nothing():
    constant = np.full((4, 2), 3.0)
    assert r_squared(constant, constant) == 1
    assert r_squared(constant, constant + 1e-3) == 0
    assert np.isnan(r_squared(constant[:0], constant[:0]))
    # squares of float16 would not be finite
    assert r_squared(np.float16([[6e4], [0]]), np.float16([[0], [0]])) == -1
