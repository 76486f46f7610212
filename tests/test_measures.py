"""How far arrays are apart: each channel by its own spread."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from kerasnorm.compare.measures import channel_differences, relative_difference
from kerasnorm.compare.sample_sums import SampleSums, by_sample, fit_interval, share_interval

WAVE = np.array([1.0, -1.0, 1.0, -1.0], "float32")


def of_one(expected, by, dtype="float32"):
    """The difference of a single channel whose first entry is off."""
    expected = np.asarray(expected, dtype)
    off = expected.copy()
    off[0] += np.asarray(by, dtype)
    (found,) = channel_differences(expected[:, None], off[:, None])
    return found


def test_each_channel_has_a_spread_of_its_own():
    scales = np.array([1e-3, 1.0, 1e3])
    expected = WAVE[:, None] * scales
    received = expected + np.array([0.05e-3, 0.0, 5.0])
    np.testing.assert_allclose(channel_differences(expected, received), [0.05, 0, 0.005])
    np.testing.assert_allclose(channel_differences(expected, 1.5 * expected), [0.5] * 3)


def test_the_spread_is_over_samples_and_positions_of_any_axis():
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(3, 4, 5)) * np.array([1.0, 10.0, 100.0, 0.1])[None, :, None]
    received = expected + 0.5
    by_hand = [0.5 / expected[:, channel].std() for channel in range(4)]
    np.testing.assert_allclose(channel_differences(expected, received, axis=1), by_hand)
    assert channel_differences(expected, received).shape == (5,)
    # a batch of numbers, and a number, are one channel
    assert channel_differences(expected[0, 0], received[0, 0]).shape == (1,)
    assert channel_differences(np.float32(2.0), np.float32(2.0)) == [0.0]


@pytest.mark.parametrize(
    ("expected", "by", "difference"),
    [
        (WAVE + 100, 0.05, 0.05),  # an offset changes nothing
        (1e-3 * WAVE + 64, 1.0, 1.0 / 64.001e-4),  # hardly varies: 1e-4 of its size
        ([8.0] * 4, 0.08, 1.0),  # constant: 1e-2 of its size
        ([8.0, 8.000001, 8.0, 8.0], 0.08, 1.0),  # constant but for rounding
        ([0.0] * 4, 2.0, 2.0),  # zero all over, as all else is
        (1e25 * WAVE, 1e25, 1.0),  # whose squares overflow
        (1e-25 * WAVE, 1e-25, 1.0),  # whose squares vanish
    ],
)
def test_channels_that_hardly_vary_or_are_of_odd_sizes(expected, by, difference):
    assert of_one(expected, by) == pytest.approx(difference, rel=1e-3)


def test_a_large_offset_costs_no_digits():
    rng = np.random.default_rng(0)
    channel = (1e4 + rng.normal(size=50_000)).astype("float32")
    assert of_one(channel, 1.0) == pytest.approx(1.0 / channel.astype("float64").std(), rel=1e-3)


def test_a_channel_of_zeros_is_compared_with_the_size_of_the_others():
    expected = np.stack([0 * WAVE, 1000 * WAVE], -1)
    received = expected + np.array([0.05, 0.0], "float32")
    np.testing.assert_allclose(channel_differences(expected, received), [0.5, 0], rtol=1e-6)


def test_variation_that_float64_tells_from_rounding():
    channel = 1.0 + 1e-9 * WAVE.astype("float64")
    assert of_one(channel, 1e-6, "float64") == pytest.approx(1e-2, rel=1e-3)


@pytest.mark.parametrize(("steps", "spread"), [(8, 1e-2), (9, 1e-4)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_channel_that_varies_by_eight_rounding_steps_is_constant(steps, spread, dtype):
    channel = 1 + steps * np.finfo(dtype).eps * WAVE.astype(dtype)
    assert of_one(channel, 0.01, dtype) == pytest.approx(0.01 / spread, rel=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.int32, bool])
def test_other_dtypes(dtype):
    expected = (WAVE[:, None] > 0).astype(dtype)
    received = (WAVE[:, None] > 2).astype(dtype)
    np.testing.assert_allclose(channel_differences(expected, received), [2.0])


def test_what_is_not_finite_in_both_is_not_compared():
    expected = np.array([[np.nan, 1.0], [np.inf, -1.0], [1.0, 1.0], [-1.0, -1.0]])
    received = expected.copy()
    received[1, 0] = np.nan
    np.testing.assert_allclose(channel_differences(expected, received), [0, 0])
    received[2] += 0.5
    np.testing.assert_allclose(channel_differences(expected, received), [0.5, 0.5])
    received[3, 1] = np.inf
    np.testing.assert_allclose(channel_differences(expected, received), [0.5, np.inf])
    nothing = np.full((4, 2), np.nan)
    np.testing.assert_allclose(channel_differences(nothing, nothing), [np.nan] * 2)
    expected[:, 1] = received[:, 1] = np.inf
    np.testing.assert_allclose(channel_differences(expected, received), [0.5, 0])
    assert (channel_differences(nothing, np.zeros((4, 2))) == np.inf).all()
    assert (channel_differences(np.zeros((4, 2)), nothing) == np.inf).all()


def test_other_shapes_are_infinitely_far_apart_and_empty_ones_are_not():
    assert channel_differences(np.zeros((4, 2)), np.zeros((4, 1))) == [np.inf]
    np.testing.assert_array_equal(channel_differences(np.zeros((0, 3)), np.zeros((0, 3))), [0] * 3)


def test_places_that_are_not_compared_count_neither_in_the_mean_nor_in_the_deviation():
    rng = np.random.default_rng(0)
    expected = rng.normal(5, 2, size=(20, 3))
    received = expected + 0.25
    left_out = rng.random(expected.shape) < 0.3
    left_out[0] = [True, False, True]
    by_hand = [0.25 / expected[~left_out[:, c], c].std() for c in range(3)]
    with_gaps = (np.where(left_out, np.nan, values) for values in (expected, received))
    np.testing.assert_allclose(channel_differences(*with_gaps), by_hand)


def test_relative_differences_of_nothing_of_zeros_and_of_complex_numbers():
    assert relative_difference(np.zeros(2), np.array([0.5, -3.0])) == (3.0, 0.0)
    assert relative_difference(np.zeros((0, 2)), np.zeros((0, 2))) == (0.0, 0.0)
    difference, scale = relative_difference(np.zeros(2), np.zeros(3))
    assert difference == np.inf
    assert np.isnan(scale)
    assert relative_difference(np.array([3 + 4j]), np.array([3 + 3j])) == (0.2, 5.0)
    # whole numbers do not run over
    ends = np.array([-128, 127], "int8")
    assert relative_difference(ends, ends[::-1]) == (255 / 128, 128.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_relative_difference_is_finite_only_where_all_is(value):
    ones, other = np.ones(2), np.array([1.0, value])
    for pair in ((ones, other), (other, ones), (other, other)):
        assert not np.isfinite(relative_difference(*pair)[0])


# Intervals


def test_r_squared_and_differences_of_samples_are_their_formulas():
    rng = np.random.default_rng(0)
    expected = 1e4 + rng.normal(size=(12, 3, 5, 2)) * [1.0, 3.0]
    received = expected + 0.3 * rng.normal(size=expected.shape)
    sums = SampleSums()
    for part in (slice(0, 8), slice(8, 12)):
        sums.add(expected[part], received[part], -1, len(expected[part]))
    spread = np.square(expected - expected.mean((0, 1, 2)))
    squares = np.square(expected - received)
    np.testing.assert_allclose(sums.r_squared, 1 - squares.sum() / spread.sum())
    of_each = squares.sum((1, 2, 3)) / (spread.sum() / 12)
    np.testing.assert_allclose(sums.differences, of_each)


def test_places_where_the_source_overflows_do_not_count():
    expected = np.array([[1.0, 2.0], [np.inf, 0.0], [3.0, 1.0], [2.0, 5.0]])
    received = expected + np.array([[0.1, 0.0], [np.nan, 7.0], [0.0, 0.2], [0.0, 0.0]])
    sums, finite = SampleSums(), [0, 2, 3]
    sums.add(expected, received, -1, 4)
    spread = np.square(expected[finite] - expected[finite].mean(0)).sum()
    assert sums.r_squared == pytest.approx(1 - 0.05 / spread)
    assert sums.differences[1] == 0


def test_a_sample_whose_answer_is_not_finite_is_infinitely_far():
    expected = np.array([[1.0], [2.0], [4.0]])
    sums = SampleSums()
    sums.add(expected, np.array([[1.0], [np.nan], [np.inf]]), -1, 3)
    np.testing.assert_array_equal(sums.differences, [0, np.inf, np.inf])


def sums_of(expected, received, axis=-1):
    sums = SampleSums()
    sums.add(expected, received, axis, len(expected))
    return sums


def test_a_source_that_does_not_vary_fits_where_it_is_hit():
    constant = np.full((3, 2), 5.0)
    assert sums_of(constant, constant).r_squared == 1
    assert sums_of(constant, constant + 1).r_squared == 0
    np.testing.assert_array_equal(sums_of(constant, constant).differences, [0, 0, 0])
    off = constant + np.array([[0.0], [1e-3], [0.0]])
    np.testing.assert_array_equal(sums_of(constant, off).differences, [0, np.inf, 0])


def test_where_the_source_is_finite_nowhere_no_fit_is_a_number():
    nothing = np.full((3, 2), np.nan)
    assert np.isnan(sums_of(nothing, nothing).r_squared)


def test_rows_that_belong_to_no_sample_are_shared_by_all():
    rows = np.arange(10.0).reshape(5, 2)
    np.testing.assert_array_equal(by_sample(rows, 5), rows[:, None])
    np.testing.assert_array_equal(by_sample(rows[:4], 2), [rows[:2], rows[2:4]])
    np.testing.assert_array_equal(by_sample(rows, 2), [[[4.0, 5.0]]] * 2)


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("places", [1, 20])
def test_the_interval_of_a_share_holds_the_truth_as_often_as_it_says(truth, places):
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        shares = rng.binomial(places, truth, 50) / places
        low, high = share_interval(shares)
        held += low <= truth <= high
        assert 0 <= low <= shares.mean() <= high <= 1
    assert 0.92 <= held / 1000 <= 0.99


def test_the_interval_of_no_failure_is_wilsons():
    low, high = share_interval(np.ones(50))
    assert high == 1
    assert low == pytest.approx(50 / (50 + 1.96**2))


@pytest.mark.parametrize("places", [1, 4])
def test_the_ends_of_the_interval_of_a_share_solve_wilsons_equation(places):
    """(p − mean)² = z²·p·(1 − p)/n, with so many samples n of yes or no as vary as much."""
    shares = np.random.default_rng(0).binomial(places, 0.7, 40) / places
    mean = shares.mean()
    number = 40 if places == 1 else 40 * mean * (1 - mean) / shares.var()
    assert number > 100 or places == 1
    for end in share_interval(shares):
        assert (end - mean) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / number)


def test_samples_that_vary_more_than_yes_and_no_count_as_they_are():
    low, high = share_interval(np.full(50, 0.5))  # which do not vary at all
    assert low == pytest.approx(1 - high)
    assert (low - 0.5) ** 2 == pytest.approx(1.96**2 * low * high / 50)
    assert share_interval(np.zeros(50)) == pytest.approx((0, 1.96**2 / (50 + 1.96**2)))


@pytest.mark.parametrize("noise", [0.5, 0.1, 0.02])
def test_the_interval_of_a_fit_is_that_of_its_derivatives_by_samples(noise):
    rng = np.random.default_rng(0)
    count = 9
    pairs = [(t, t + noise * rng.normal(size=t.shape)) for t in rng.normal(size=(2, count, 4, 2))]

    def fit(weights):
        fits = []
        for expected, received in pairs:
            w = weights[:, None, None]
            mean = (w * expected).sum((0, 1)) / (w * np.ones_like(expected)).sum((0, 1))
            residual = (w * np.square(expected - received)).sum()
            fits.append(1 - residual / (w * np.square(expected - mean)).sum())
        return np.mean(fits)

    step = 1e-5 * np.eye(count)
    slopes = np.array([fit(1 + s) - fit(1 - s) for s in step]) / 2e-5
    half = 1.96 * np.sqrt(count / (count - 1) * np.square(slopes).sum())
    low, high = fit_interval([sums_of(*pair) for pair in pairs])
    middle = fit(np.ones(count))
    assert low == pytest.approx(middle - half, rel=1e-6)
    assert high == pytest.approx(min(1, middle + half), rel=1e-6)


def test_the_interval_of_a_fit_that_nothing_can_be_said_of():
    constant = np.full((3, 2), 5.0)
    assert fit_interval([sums_of(constant, constant)]) == (1, 1)
    assert fit_interval([sums_of(constant, constant + 1)]) == (0, 0)
    one = np.array([[[1.0], [3.0]]])
    assert fit_interval([sums_of(one, one + 0.5)]) == pytest.approx((0.75, 0.75))
    # an output that does not vary leaves the interval to the others
    varied = np.array([[1.0], [2.0], [4.0]])
    both = [sums_of(constant, constant), sums_of(varied, varied + np.array([[0.1], [0.0], [0.5]]))]
    alone = fit_interval(both[1:])
    assert np.subtract(*fit_interval(both)) > np.subtract(*alone)


def test_the_interval_of_a_fit_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(500):
        # noise of a tenth of the variance: R² of 0.9
        expected = rng.normal(size=(60, 4, 1))
        received = expected + rng.normal(size=expected.shape) * np.sqrt(0.1)
        sums = SampleSums()
        sums.add(expected, received, -1, 60)
        low, high = fit_interval([sums])
        held += low <= 0.9 <= high
    assert 0.91 <= held / 500 <= 0.99
