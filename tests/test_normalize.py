"""Layer and batch normalization at sizes where XLA for CPUs takes other forms than for small ones.

The contract tests prove the layers on small tensors; these compare the same formula with its
gradients, written out in NumPy float64, on tensors large enough for every form of a sum.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from gradients import BACKEND, output_and_gradients
from helpers import TOLERANCE

from kerasnorm import BatchNorm, LayerNorm
from kerasnorm.math import sums

EPSILON = 1e-3
# What is normalized: the layer, the shape of its input, the axes of a set, and those of gamma.
CASES = {
    "rows of 48": (LayerNorm, {}, (9, 48), (1,), (1,)),
    "rows of 300": (LayerNorm, {}, (140, 300), (1,), (1,)),
    "images by position": (LayerNorm, {}, (2, 9, 9, 40), (3,), (3,)),
    "images by sample": (LayerNorm, {"axis": "sample"}, (2, 13, 13, 40), (1, 2, 3), (3,)),
    "few channels": (LayerNorm, {"axis": "sample"}, (3, 13, 13, 8), (1, 2, 3), (3,)),
    "channels first": (
        LayerNorm, {"axis": "sample", "channel_axis": 1}, (2, 5, 13, 40), (1, 2, 3), (1,),
    ),
    "one gain": (
        LayerNorm, {"axis": "sample", "scalar_affine": True}, (2, 12, 12, 8), (1, 2, 3), (),
    ),
    "batch of rows": (BatchNorm, {}, (140, 40), (0,), (1,)),
    "batch of images": (BatchNorm, {}, (3, 13, 13, 8), (0, 1, 2), (3,)),
    "batch of images, channels first": (BatchNorm, {"axis": 1}, (3, 5, 13, 40), (0, 2, 3), (1,)),
}  # fmt: skip
names = pytest.mark.parametrize("name", CASES)
means = pytest.mark.parametrize("mean", [0.0, 1e4])


def oracle(x, gamma, beta, dy, axes):
    """y, and what flows back to x, gamma and beta, whose axes of size 1 are summed over."""
    centered = x - x.mean(axes, keepdims=True)
    scale = 1 / np.sqrt((centered**2).mean(axes, keepdims=True) + EPSILON)
    normalized = centered * scale
    h = dy * gamma
    mean_h, mean_hx = (t.mean(axes, keepdims=True) for t in (h, h * normalized))
    shared = tuple(a for a, size in enumerate(gamma.shape) if size == 1)
    return (
        normalized * gamma + beta,
        scale * (h - mean_h - normalized * mean_hx),
        (dy * normalized).sum(shared),
        dy.sum(shared),
    )


def layer_and_oracle(name, mean):
    """A layer with random gains, and everything that it is compared with."""
    kind, arguments, shape, axes, affine_axes = CASES[name]
    rng = np.random.default_rng(0)
    x = (mean + rng.normal(size=shape)).astype("float32")
    dy = rng.normal(size=shape).astype("float32")
    layer = kind(epsilon=EPSILON, **arguments)
    layer.build(shape)
    gamma, beta = (rng.normal(size=v.shape).astype("float32") for v in (layer.gamma, layer.beta))
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    spread = [size if a in affine_axes else 1 for a, size in enumerate(shape)]
    call = {"training": True} if kind is BatchNorm else {}
    wide = (t.astype("float64") for t in (x, gamma.reshape(spread), beta.reshape(spread), dy))
    return layer, x, dy, call, oracle(*wide, axes)


@names
@means
@pytest.mark.parametrize("mode", ["eager", "jit"])
def test_against_the_formula_and_its_gradients(name, mean, mode):
    layer, x, dy, call, expected = layer_and_oracle(name, mean)
    # the forms for other platforms once, eagerly: they are what small tensors take as well
    for platform in ("cpu", "gpu") if (mode, mean) == ("eager", 1e4) else ("cpu",):
        with sums.assuming(platform):
            y, dx, dw = output_and_gradients(layer, x, dy, mode, **call)
        assert_as_expected((y, dx, *dw), expected)


def assert_as_expected(actual, expected):
    for what, value, wanted in zip(("y", "dx", "dgamma", "dbeta"), actual, expected, strict=True):
        error = np.abs(value.reshape(wanted.shape) - wanted).max() / np.abs(wanted).max()
        assert error < TOLERANCE["float32"], f"{what}: {error:.1e}"


@pytest.mark.parametrize(
    ("layer", "shape"), [(BatchNorm(), (0, 3)), (LayerNorm(axis="sample"), (2, 0, 3))]
)
def test_gradients_of_nothing(layer, shape):
    call = {"training": True} if isinstance(layer, BatchNorm) else {}
    layer.build((None, *shape[1:-1], 3))
    nothing = np.zeros(shape, "float32")
    y, dx, dw = output_and_gradients(layer, nothing, nothing, **call)
    assert y.shape == dx.shape == shape
    for gradient in dw:
        np.testing.assert_array_equal(gradient, np.zeros(3))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="how TensorFlow differentiates")
class TestEveryModeOfDifferentiation:
    """A gradient of its own must not stand in the way of other derivatives."""

    @names
    def test_forward_mode(self, name):
        import tensorflow as tf

        layer, x, dy, call, _ = layer_and_oracle(name, 0.0)
        x, tangent = tf.constant(x), tf.constant(dy)
        with tf.autodiff.ForwardAccumulator(x, tangent) as forward:
            moved = forward.jvp(layer(x, **call))
        behind = tf.random.stateless_normal(x.shape, (1, 2))
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **call)
        backward = tape.gradient(y, x, behind)
        # ⟨behind, J tangent⟩ = ⟨Jᵀ behind, tangent⟩
        left = float(tf.reduce_sum(behind * moved))
        right = float(tf.reduce_sum(backward * tangent))
        # both in float32, sums of up to 40,000 products of either sign
        assert abs(left - right) < 1e-4 * float(tf.norm(backward) * tf.norm(tangent))

    @names
    def test_second_derivatives(self, name):
        import tensorflow as tf

        kind, arguments, shape, *_ = CASES[name]
        layer = kind(dtype="float64", **arguments)
        layer.build(shape)
        rng = np.random.default_rng(0)
        x, tangent, behind = (tf.constant(rng.normal(size=shape)) for _ in range(3))
        call = {"training": True} if kind is BatchNorm else {}

        def gradient(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, **call)
            return tape.gradient(y, x, behind)

        with tf.GradientTape() as tape:
            tape.watch(x)
            slope = tf.reduce_sum(gradient(x) * tangent)
        curvature = tape.gradient(slope, x)
        # along the tangent, by central differences of the first derivative
        step = 1e-5
        difference = (gradient(x + step * tangent) - gradient(x - step * tangent)) / (2 * step)
        along = float(tf.reduce_sum(curvature * tangent))
        expected = float(tf.reduce_sum(difference * tangent))
        # the difference is off by the square of its step, and by rounding over the step: 1e-10
        assert abs(along - expected) < 1e-6 * float(tf.norm(difference) * tf.norm(tangent))


@pytest.mark.skipif(BACKEND != "jax", reason="how JAX differentiates")
@names
def test_forward_mode_of_jax(name):
    import jax

    layer, x, dy, call, _ = layer_and_oracle(name, 0.0)
    weights = [v.value for v in layer.trainable_variables]
    frozen = [v.value for v in layer.non_trainable_variables]

    def function(x):
        return layer.stateless_call(weights, frozen, x, **call)[0]

    y, tangent = jax.jvp(function, (keras.ops.convert_to_tensor(x),), (dy,))
    _, back = jax.vjp(function, x)
    behind = np.random.default_rng(3).normal(size=y.shape).astype("float32")
    [backward] = back(keras.ops.convert_to_tensor(behind))
    left, right = float((behind * tangent).sum()), float((backward * dy).sum())
    # as above
    assert abs(left - right) < 1e-4 * float(np.linalg.norm(backward) * np.linalg.norm(dy))
