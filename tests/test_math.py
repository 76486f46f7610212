"""The pure functions of `kerasnorm.math` are their formulas, and so are their gradients.

Values are compared with NumPy in float64, gradients with central differences of the formula.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from kerasnorm.math import normalize, norms, sums

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="float64, and how TensorFlow differentiates"
)


def normal(*shape, seed=0, mean=0.0):
    return mean + np.random.default_rng(seed).normal(size=shape)


def arrays(tensors):
    """What a function gives, as a list of arrays."""
    return [np.asarray(t) for t in keras.tree.flatten(tensors) if t is not None]


def with_gradients(function, values, upstream=None):
    """What a function gives for some arrays, and what flows back to each of these."""
    import tensorflow as tf

    tensors = [tf.constant(value) for value in values]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        found = [t for t in keras.tree.flatten(function(*tensors)) if t is not None]
        if upstream is None:
            upstream = [normal(*t.shape, seed=9 + k) for k, t in enumerate(found)]
        loss = sum(tf.reduce_sum(t * u) for t, u in zip(found, upstream, strict=True))
    flows = tape.gradient(loss, tensors, unconnected_gradients="zero")
    return arrays(found), arrays(flows), upstream


def differences(function, values, upstream, step=1e-6):
    """What flows back to each array by central differences."""

    def loss(moved):
        return sum((t * u).sum() for t, u in zip(arrays(function(*moved)), upstream, strict=True))

    flows = []
    for place, value in enumerate(values):
        flow = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            ends = []
            for sign in (1, -1):
                moved = [v.copy() for v in values]
                moved[place][index] += sign * step
                ends.append(loss(moved))
            flow[index] = (ends[0] - ends[1]) / (2 * step)
        flows.append(flow)
    return flows


def check(function, formula, *values):
    """A function of tensors against its formula in NumPy, whose results it gives in order."""
    found, flows, upstream = with_gradients(function, values)
    for value, expected in zip(found, arrays(formula(*values)), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)
    for flow, expected in zip(flows, differences(formula, values, upstream), strict=True):
        np.testing.assert_allclose(flow, expected, rtol=1e-5, atol=1e-7)


def length(x, axes):
    return np.sqrt(np.square(x).sum(axes, keepdims=True))


AXES = pytest.mark.parametrize("axes", [(0,), (0, 1), (0, 1, 2), (2,)])


@AXES
def test_norm(axes):
    check(lambda v: norms.norm(v, axes), lambda v: length(v, axes), normal(3, 2, 4))


@AXES
def test_normalized_weight(axes):
    shape = tuple(1 if axis in axes else size for axis, size in enumerate((3, 2, 4)))
    check(
        lambda v, g: norms.normalized_weight(v, g, axes),
        lambda v, g: g * v / length(v, axes),
        normal(3, 2, 4),
        normal(*shape, seed=1),
    )


def test_norms_of_single_numbers_are_their_sizes():
    v, g = np.array([-3.0, 0.0, 1e-30, 2.0]), np.array([2.0, 5.0, 3.0, -1.0])
    np.testing.assert_array_equal(norms.norm(v, ()), [3, 1, 1e-30, 2])
    np.testing.assert_array_equal(norms.normalized_weight(v, g, ()), [-2, 0, 3, -1])


@pytest.mark.parametrize("size", [0.0, 4e-38, 1e-30, 1.0, 1e30, 8e37])
def test_norms_of_any_size_and_of_zeros(size):
    v = np.float32([[1.0, 1.0, -1.0], [0.0, 1.0, 0.5]]) * np.float32(size)
    g = np.float32([[2.0, -3.0, 1.0]])
    expected = length(v.astype("float64"), 0)
    found = np.asarray(norms.norm(ops.convert_to_tensor(v), (0,)), "float64")
    if size:
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    else:
        assert (found > 0).all()
    unit = v / np.where(expected > 0, expected, 1)
    u = norms.normalized_weight(ops.convert_to_tensor(v), g, (0,))
    np.testing.assert_allclose(u, g * unit, rtol=1e-6)
    bias = np.float32([[size, 0.0, -size]])
    joint = np.where(size > 0, length(np.concatenate([v, bias]).astype("float64"), 0), 1)
    w, b = norms.joint_direction(ops.convert_to_tensor(v), ops.convert_to_tensor(bias), (0,))
    np.testing.assert_allclose(w, v / joint, rtol=1e-6)
    np.testing.assert_allclose(b, bias / joint, rtol=1e-6)


def test_no_gradient_of_zeros_is_infinite():
    zeros = np.zeros((3, 2), "float32")
    for function in (
        lambda v: norms.norm(v, (0,)),
        lambda v: norms.normalized_weight(v, ops.ones((1, 2)), (0,)),
        lambda v: norms.joint_direction(v, None, (0,)),
        lambda v: norms.joint_direction(v, v[:1], (0,)),
    ):
        upstream = [np.ones(t.shape, "float32") for t in arrays(function(zeros))]
        values, (flow,), _ = with_gradients(function, [zeros], upstream)
        assert all(np.isfinite(value).all() for value in [*values, flow])


@AXES
def test_joint_direction(axes):
    shape = tuple(1 if axis in axes else size for axis, size in enumerate((3, 2, 4)))

    def formula(w, b):
        both = np.sqrt(length(w, axes) ** 2 + b**2)
        return w / both, b / both

    # a bias that is the largest entry, and one that is not
    for factor in (0.1, 10.0):
        check(
            lambda w, b: norms.joint_direction(w, b, axes),
            formula,
            normal(3, 2, 4),
            factor * normal(*shape, seed=1),
        )
    w, bias = norms.joint_direction(normal(3, 2, 4), None, axes)
    assert bias is None
    np.testing.assert_allclose(w, normal(3, 2, 4) / length(normal(3, 2, 4), axes), rtol=1e-12)
    check(
        lambda w: norms.joint_direction(w, None, axes),
        lambda w: w / length(w, axes),
        normal(3, 2, 4),
    )


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("size", [0.01, 1.0, 10.0])
def test_separable_direction(with_bias, size):
    taps, inputs, multiplier, units = (3, 2), 4, 2, 5
    depthwise = size * normal(*taps, inputs, multiplier)
    pointwise = normal(1, 1, inputs * multiplier, units, seed=1)
    biases = [normal(units, seed=2)] if with_bias else []

    def formula(d, p, *b):
        kernel = np.einsum("hwcm,cmu->hwcu", d, p.reshape(inputs, multiplier, units))
        norm = np.sqrt(np.square(kernel).sum((0, 1, 2)) + sum(np.square(x) for x in b))
        # the scale of the first kernel is the other's loss, which no gradient flows through
        return d / largest, p * largest / norm, *(x / norm for x in b), norm

    largest = np.abs(depthwise).max()
    check(norms.separable_direction, formula, depthwise, pointwise, *biases)


def test_separable_direction_of_any_size_and_of_zeros():
    depthwise, pointwise = normal(3, 4, 1).astype("float32"), normal(1, 4, 2).astype("float32")
    plain = norms.separable_direction(depthwise, pointwise)
    for a, b in ((1e15, 1e15), (1e-15, 1e-15), (1e30, 1e-30), (1e-30, 1e30)):
        d, p, bias, size = norms.separable_direction(
            depthwise * np.float32(a), pointwise * np.float32(b)
        )
        assert bias is None
        np.testing.assert_allclose(d, plain[0], rtol=1e-5)
        np.testing.assert_allclose(p, plain[1], rtol=1e-5)
        np.testing.assert_allclose(size, np.asarray(plain[3]) * np.float32(a) * b, rtol=1e-5)
    pointwise[..., 0] = 0
    d, p, bias, size = norms.separable_direction(depthwise, pointwise, np.zeros(2, "float32"))
    np.testing.assert_array_equal(p[..., 0], 0)
    np.testing.assert_allclose(p[..., 1], np.asarray(plain[1])[..., 1], rtol=1e-6)
    np.testing.assert_array_equal(bias, 0)
    assert (np.asarray(size) > 0).all()
    # a bias alone has the direction of itself
    *_, bias, size = norms.separable_direction(depthwise, pointwise, np.float32([-0.5, 0.0]))
    np.testing.assert_allclose(bias[0], -1, rtol=1e-6)
    np.testing.assert_allclose(size[0], 0.5, rtol=1e-6)


def test_sum_of_squares():
    scale = np.array([[2.0], [0.5], [3.0]])
    check(
        lambda x: norms.sum_of_squares(x, (1,), scale),
        lambda x: np.square(x / scale).sum(1, keepdims=True),
        normal(3, 5),
    )
    # the scale is divided by to keep squares small: what is done with it is multiplied again
    _, (_, flow), _ = with_gradients(
        lambda x, s: norms.sum_of_squares(x, (1,), s), [normal(3, 5), scale]
    )
    np.testing.assert_array_equal(flow, 0)


def test_inverse_length_and_where_there_is_none():
    squares = np.array([0.0, 0.9e-24, 1.1e-24, 1.0, 4.0])
    found, (flow,), _ = with_gradients(norms.inverse_length, [squares], [np.ones(5)])
    np.testing.assert_allclose(found[0], [0, 0, 1.1e-24**-0.5, 1, 0.5])
    np.testing.assert_allclose(flow, [0, 0, -0.5 * 1.1e-24**-1.5, -0.5, -1 / 16])


def test_the_largest_entry():
    x = np.array([[1.0, -3.0], [0.5, 2.0], [-0.1, -0.2]])
    np.testing.assert_array_equal(norms.largest(x, (1,)), [[3], [2], [0.2]])
    np.testing.assert_array_equal(norms.largest(x, (0, 1)), [[3]])
    np.testing.assert_array_equal(norms.largest(x, ()), np.abs(x))
    np.testing.assert_array_equal(norms.largest(x[:0], (0,)), [[0, 0]])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_scale_that_can_be_divided_by(dtype):
    tiny = np.finfo(dtype).tiny
    scale = np.array([0.0, tiny / 2, tiny, 2 * tiny, 7.0], dtype)
    with np.errstate(under="ignore"):
        found, (flow,), _ = with_gradients(norms.positive, [scale], [np.ones(5, dtype)])
    np.testing.assert_array_equal(found[0], np.array([1, 1, tiny, 2 * tiny, 7], dtype))
    np.testing.assert_array_equal(flow, 0)


# What takes a mean off


def drawn(*shapes):
    """Values of the shapes that are not None, and a function that has None in the others' place."""

    def parts(values):
        values = list(values)
        return [values.pop(0) if shape else None for shape in shapes]

    return [normal(*shape, seed=k) for k, shape in enumerate(shapes) if shape], parts


@pytest.mark.parametrize("gain", [None, (1, 4), (3, 1), (1, 1)])
@pytest.mark.parametrize("bias", [None, (1, 4), (3, 1)])
def test_affine(gain, bias):
    given, parts = drawn(gain, bias)

    def formula(x, *values):
        a, c = parts(values)
        return x * (1 if a is None else a) + (0 if c is None else c)

    check(lambda x, *v: normalize.affine(x, *parts(v)), formula, normal(3, 4, seed=5), *given)


WEIGHTS = np.array([[1.0], [0.0], [1.0], [1.0], [0.0]])


def moments(x, weights=None):
    weights = np.ones_like(x) if weights is None else np.broadcast_to(weights, x.shape)
    mean = (x * weights).sum(0, keepdims=True) / weights.sum(0, keepdims=True)
    variance = (np.square(x - mean) * weights).sum(0, keepdims=True)
    return x - mean, mean, variance / weights.sum(0, keepdims=True)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("replicas", [None, list])
def test_moments(weights, replicas):
    x = normal(5, 3, mean=3.0)
    for platform in ("cpu", "gpu"):
        with sums.assuming(platform):
            check(
                lambda x: normalize.centered_moments(x, (0,), weights, replicas)[0],
                lambda x: moments(x, weights)[0],
                x,
            )
            found = normalize.centered_moments(x, (0,), weights, replicas)
            for value, expected in zip(found, moments(x, weights), strict=True):
                np.testing.assert_allclose(value, expected, rtol=1e-12)
    check(
        lambda x: normalize.weighted_mean(x, (0,), weights, replicas),
        lambda x: moments(x, weights)[1],
        x,
    )


def test_moments_over_replicas_are_those_of_all_of_them():
    x, other = normal(5, 3), normal(4, 3, seed=1, mean=2.0)
    asked = []

    def added_to_the_others(tensors):
        """Sums of this replica, and those of another, which is asked in the same order."""
        asked.append(len(tensors))
        of_other = [other.sum(0, keepdims=True), np.full((1, 3), 4.0)]
        return [a + b for a, b in zip(tensors, of_other, strict=True)]

    mean = normalize.weighted_mean(x, (0,), None, added_to_the_others)
    np.testing.assert_allclose(mean, np.concatenate([x, other]).mean(0, keepdims=True))
    assert asked == [2]


def test_sums_over_the_replicas_are_taken_once_and_not_again_for_the_gradient():
    asked = []

    def of_one_replica(tensors):
        asked.append(len(tensors))
        return tensors

    with_gradients(
        lambda x: normalize.normalize(x, (0,), 0.1, sum_replicas=of_one_replica)[0],
        [normal(5, 3)],
    )
    assert asked == [2, 3]  # the mean, then what is left of it and the squares; each with a count


def test_the_mean_of_nothing_is_zero():
    nothing = np.zeros((5, 1))
    mean = normalize.weighted_mean(normal(5, 3), (0,), nothing)
    np.testing.assert_array_equal(mean, np.zeros((1, 3)))
    y, mean, variance = normalize.normalize(normal(5, 3), (0,), 1e-3, weights=nothing)
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(mean, 0)
    np.testing.assert_array_equal(variance, 0)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("replicas", [None, list])
@pytest.mark.parametrize(
    ("gain", "bias"), [(None, None), ((1, 3), (1, 3)), ((1, 1), None), ((5, 3), (1, 1))]
)
def test_normalize(weights, replicas, gain, bias):
    given, parts = drawn(gain, bias)

    def formula(x, *values):
        a, c = parts(values)
        centered, _, variance = moments(x, weights)
        y = centered / np.sqrt(variance + 0.1)
        return y * (1 if a is None else a) + (0 if c is None else c)

    check(
        lambda x, *v: normalize.normalize(
            x, (0,), 0.1, *parts(v), weights=weights, sum_replicas=replicas
        )[0],
        formula,
        normal(5, 3, seed=5, mean=2.0),
        *given,
    )
    _, mean, variance = normalize.normalize(normal(5, 3), (0,), 0.1, weights=weights)
    np.testing.assert_allclose(mean, moments(normal(5, 3), weights)[1])
    np.testing.assert_allclose(variance, moments(normal(5, 3), weights)[2])


@pytest.mark.parametrize("hidden", [np.nan, np.inf, -1e300, 1.1e15, 0.9e15])
def test_what_does_not_count_may_be_anything(hidden):
    x = normal(5, 3)
    expected = moments(x, WEIGHTS)
    x[1] = hidden
    found, (flow,), _ = with_gradients(
        lambda x: normalize.centered_moments(x, (0,), WEIGHTS), [x], [np.ones((5, 3))] * 3
    )
    kept = WEIGHTS[:, 0] > 0
    np.testing.assert_allclose(found[0][kept], expected[0][kept])
    np.testing.assert_allclose(found[1:], expected[1:])
    # beyond 1e15 it is centred as if it were 0
    size = hidden if abs(hidden) < 1e15 else 0.0
    np.testing.assert_allclose(found[0][1], size - expected[1][0])
    assert np.isfinite(flow).all()


def test_moments_keep_their_digits_beside_a_large_mean():
    x = (1e4 + normal(1000, 2)).astype("float32")
    centered, mean, variance = normalize.centered_moments(x, (0,))
    wide = x.astype("float64")
    np.testing.assert_allclose(mean, wide.mean(0, keepdims=True), rtol=1.2e-7)
    np.testing.assert_allclose(variance, wide.var(0, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(centered, wide - wide.mean(0), atol=1e-3)
    constant = normalize.centered_moments(np.full((7, 2), 0.1, "float32"), (0,))
    assert (np.asarray(constant[2]) >= 0).all()


def test_vectors_that_are_constant_take_no_gradient():
    x = np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 1.0]])
    found, (flow,), _ = with_gradients(
        lambda x: normalize.rest_where_constant(x, (1,)), [x], [np.ones((2, 3))]
    )
    np.testing.assert_array_equal(found[0], x)
    np.testing.assert_array_equal(flow, [[0, 0, 0], [1, 1, 1]])


def test_a_moving_average():
    assert normalize.moving_average(2.0, 7.0, 0.9) == pytest.approx(0.9 * 2 + 0.1 * 7)
