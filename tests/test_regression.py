"""Least squares from streamed sums against NumPy on all rows at once."""

from __future__ import annotations

import numpy as np
import pytest

from kerasnorm.fit.regression import ChannelwiseRegression, RidgeRegression
from kerasnorm.math.r_squared import r_squared


def test_lines_are_those_of_all_rows_together():
    rng = np.random.default_rng(0)
    z = rng.normal(3.0, 2.0, size=(500, 3))
    t = z * [2.0, -1.0, 0.0] + [0.5, 1.0, -3.0] + 0.1 * rng.normal(size=z.shape)
    lines = ChannelwiseRegression()
    for part in np.array_split(np.arange(500), 7):
        lines.add(z[part], t[part])
    gain, bias = lines.solve()
    for c in range(3):
        np.testing.assert_allclose((gain[c], bias[c]), np.polyfit(z[:, c], t[:, c], 1), rtol=1e-9)


def test_a_constant_channel_gets_gain_0_and_the_mean():
    lines = ChannelwiseRegression()
    lines.add(np.full((10, 1), 4.0), np.arange(10.0)[:, None])
    assert lines.solve() == (np.array([0.0]), np.array([4.5]))


def ridge_of(x, y, parts):
    ridge = RidgeRegression()
    for part in np.array_split(np.arange(x.shape[1]), parts):
        ridge.add(x[:, part], y[:, part])
    return ridge


def expected(x, y, prior, share):
    """From the augmented system, with a row for each feature that pulls it to its prior."""
    x, y = x - x.mean(0), y - y.mean(0)
    penalty = np.sqrt(share * np.square(x).sum() / x.shape[1])
    augmented = np.vstack([x, penalty * np.eye(x.shape[1])])
    return np.linalg.lstsq(augmented, np.vstack([y, penalty * prior]), rcond=None)[0]


# few rows are kept, many are summed up
@pytest.mark.parametrize(("rows", "parts"), [(8, 2), (13, 5), (300, 1), (300, 9)])
@pytest.mark.parametrize("share", [1e-4, 0.1])
def test_ridge_is_that_of_all_rows_together(rows, parts, share):
    rng = np.random.default_rng(1)
    x = rng.normal(1.0, size=(2, rows, 20)) * np.geomspace(0.01, 10, 20)
    y = x @ rng.normal(size=(2, 20, 3)) + rng.normal(size=(2, rows, 3))
    prior = rng.normal(size=(2, 20, 3))
    u, b = ridge_of(x, y, parts).solve(prior, share)
    for g in range(2):
        reference = expected(x[g], y[g], prior[g], share)
        np.testing.assert_allclose(u[g], reference, rtol=1e-4, atol=1e-4)
        offset = y[g].mean(0) - x[g].mean(0) @ reference
        np.testing.assert_allclose(b[g], offset, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [15, 20_000])
@pytest.mark.parametrize("unit", [1e-25, 1.0, 1e25])
def test_ridge_is_precise_far_from_zero_and_in_any_unit(rows, unit):
    rng = np.random.default_rng(1)
    x = unit * (1e4 + rng.normal(size=(1, rows, 20)))
    y = 3e4 + (x / unit - 1e4) @ rng.normal(size=(1, 20, 3)) + 0.1 * rng.normal(size=(1, rows, 3))
    prior = np.zeros((1, 20, 3))
    u, b = ridge_of(x, y, 4).solve(prior, 1e-3)
    reference = expected(x[0] / unit, y[0], prior[0], 1e-3) / unit
    np.testing.assert_allclose(u[0], reference, rtol=1e-4, atol=1e-5 / unit)
    offset = y[0].mean(0) - x[0].mean(0) @ reference
    np.testing.assert_allclose(b[0], offset, rtol=1e-5)


@pytest.mark.parametrize("rows", [10, 200])
def test_what_the_data_does_not_tell_stays_at_the_prior(rows):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(1, rows, 12))
    x[:, :, 3] = 0.0  # dead
    x[:, :, 4] = 5.0  # constant
    x[:, :, 6] = x[:, :, 5]  # twice the same
    prior = rng.normal(size=(1, 12, 2))
    y = x @ prior
    u, b = ridge_of(x, y, 3).solve(prior, 1e-3)
    np.testing.assert_allclose(u, prior, atol=1e-5)
    np.testing.assert_allclose(b, 0.0, atol=1e-5)


def test_features_that_are_all_constant():
    ridge = ridge_of(np.ones((1, 50, 4)), np.arange(50.0)[None, :, None], 2)
    u, b = ridge.solve(np.zeros((1, 4, 1)), 1e-3)
    np.testing.assert_allclose(u, 0.0, atol=1e-12)
    np.testing.assert_allclose(b, 24.5)


def test_r_squared():
    t = np.array([[0.0, 10.0], [2.0, 14.0]])
    assert r_squared(t, t) == 1.0
    assert r_squared(t, np.tile(t.mean(0), (2, 1))) == 0.0
    assert r_squared(t, t + 1.0) == pytest.approx(1 - 4 / 10)
    assert r_squared(np.ones((3, 1)), np.ones((3, 1))) == 1.0
    assert r_squared(np.ones((3, 1)), np.zeros((3, 1))) == 0.0
