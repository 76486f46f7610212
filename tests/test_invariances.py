"""What scaling the weights or the inputs does to each normalization: the design's table.

With f = Norm_ε(λWx) the identities hold for every λ when ε is scaled along, and are tested at the
tightness of float64; so are their gradients.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from gradients import output_and_gradients
from helpers import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from kerasnorm import BatchNorm, CosineNorm, LayerNorm, WeightNorm

scales = st.floats(-3, 3).map(lambda exponent: float(10**exponent))
# at least 3: two values standardize to ±1 whatever they are, and every gradient vanishes
sizes = st.tuples(st.integers(3, 7), st.integers(3, 8), st.integers(3, 7))
seeds = st.integers(0, 10**6)
EPSILON = 1e-3


@keras.saving.register_keras_serializable("test")
class Normalized(keras.layers.Layer):
    """norm(W x), with W a weight of its own."""

    def __init__(self, norm, units, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(units, use_bias=False, dtype="float64")
        self.norm = norm

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.norm.build((*input_shape[:-1], self.dense.units))

    def call(self, x, training=None):
        return self.norm(self.dense(x), training=training)


def standardizing(kind, epsilon, units):
    norm = {"batch": BatchNorm, "layer": LayerNorm}[kind](epsilon=epsilon, dtype="float64")
    return Normalized(norm, units, dtype="float64")


def run(layer, x, cotangent, kernel, **call):
    """(output, gradient in x, gradient in the kernel) with `kernel` assigned."""
    layer(x, **call)
    wrapped = layer.dense if isinstance(layer, Normalized) else layer.layer
    wrapped.kernel.assign(kernel)
    y, dx, gradients = output_and_gradients(layer, x, cotangent, **call)
    position = [id(w) for w in layer.trainable_weights].index(id(wrapped.kernel))
    return y, dx, gradients[position]


def problem(size, seed):
    batch, inputs, units = size
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, inputs))
    return x, rng.normal(size=(inputs, units)), rng.normal(size=(batch, units))


def assert_all_close(actual, expected):
    for what, one, other in zip(("output", "dx", "dW"), actual, expected, strict=True):
        # the two sides differ in rounding that 1 / sqrt(ε) amplifies where a variance is small
        assert_close(one, other, "float64", factor=1e3, what=what)


@pytest.mark.parametrize("kind", ["batch", "layer"])
@settings(max_examples=12, deadline=None)
@given(sizes, scales, seeds)
def test_standardized_layers_ignore_the_scale_of_weights(kind, size, scale, seed):
    x, kernel, cotangent = problem(size, seed)
    call = {"training": True} if kind == "batch" else {}
    units = kernel.shape[1]
    y, dx, dw = run(standardizing(kind, EPSILON, units), x, cotangent, scale * kernel, **call)
    expected = run(standardizing(kind, EPSILON / scale**2, units), x, cotangent, kernel, **call)
    # ∂Norm(λWx)/∂x = ∂Norm(Wx)/∂x; ∂Norm(λWx)/∂(λW) = (1/λ)·∂Norm(Wx)/∂W
    assert_all_close((y, dx, scale * dw), expected)


@pytest.mark.parametrize("kind", ["batch", "layer"])
@settings(max_examples=12, deadline=None)
@given(sizes, scales, seeds)
def test_standardized_layers_ignore_the_scale_of_inputs(kind, size, scale, seed):
    x, kernel, cotangent = problem(size, seed)
    call = {"training": True} if kind == "batch" else {}
    units = kernel.shape[1]
    y, dx, dw = run(standardizing(kind, EPSILON, units), scale * x, cotangent, kernel, **call)
    expected = run(standardizing(kind, EPSILON / scale**2, units), x, cotangent, kernel, **call)
    # ∂Norm(W·λx)/∂W = ∂Norm(Wx)/∂W
    assert_all_close((y, scale * dx, dw), expected)


def float64_dense(units):
    return keras.layers.Dense(units, bias_initializer="ones", dtype="float64")


def cosine(units, use_bias=True, **options):
    dense = keras.layers.Dense(units, use_bias=use_bias, bias_initializer="ones", dtype="float64")
    return CosineNorm(dense, **options)


@settings(max_examples=12, deadline=None)
@given(sizes, scales, seeds)
def test_weight_norm_ignores_the_scale_of_v_but_not_of_inputs(size, scale, seed):
    x, kernel, cotangent = problem(size, seed)
    units = kernel.shape[1]
    layer = WeightNorm(float64_dense(units))
    base = run(layer, x, cotangent, kernel)
    y, dx, dw = run(layer, x, cotangent, scale * kernel)
    assert_all_close((y, dx, scale * dw), base)
    y, dx, _ = run(layer, scale * x, cotangent, kernel)
    assert_close(y - 1, scale * (base[0] - 1), "float64", what="output without its bias of 1")
    assert_close(dx, base[1], "float64", what="dx")


@settings(max_examples=12, deadline=None)
@given(sizes, seeds)
def test_weight_norm_is_a_dot_product_with_v_of_a_scaled_input(size, seed):
    x, v, _ = problem(size, seed)
    layer = WeightNorm(float64_dense(v.shape[1]))
    layer(x)
    layer.layer.kernel.assign(v)
    gain = np.random.default_rng(seed).normal(size=v.shape[1])
    layer.g.assign(gain)
    w = np.asarray(layer.normalized_kernels()["g"])
    assert_close(np.linalg.norm(w, axis=0), np.abs(gain), "float64", what="‖w‖ = |g|")
    lengths = np.linalg.norm(v, axis=0)
    columns = [v[:, i] @ (gain[i] * x.T / lengths[i]) for i in range(v.shape[1])]
    assert_close(np.asarray(layer(x)) - 1, np.stack(columns, -1), "float64", what="v·(g·x/‖v‖)")


@pytest.mark.parametrize(
    "options",
    [
        {"use_bias": False},
        {"rescale": True},
        {"rescale": True, "centered": True},
        {"rescale": True, "damping": 0.5},
    ],
    ids=str,
)
@settings(max_examples=12, deadline=None)
@given(sizes, scales, seeds)
def test_cosine_norm_ignores_the_scale_of_weights(options, size, scale, seed):
    x, kernel, cotangent = problem(size, seed)
    layer = cosine(kernel.shape[1], **options)
    base = run(layer, x, cotangent, kernel)
    y, dx, dw = run(layer, x, cotangent, scale * kernel)
    assert_all_close((y, dx, scale * dw), base)


@pytest.mark.parametrize(
    "options",
    [{"use_bias": False}, {"rescale": True}, {"rescale": True, "centered": True}],
    ids=str,
)
@settings(max_examples=12, deadline=None)
@given(sizes, scales, seeds)
def test_cosine_norm_ignores_the_scale_of_inputs(options, size, scale, seed):
    x, kernel, cotangent = problem(size, seed)
    layer = cosine(kernel.shape[1], **options)
    base = run(layer, x, cotangent, kernel)
    y, dx, dw = run(layer, scale * x, cotangent, kernel)
    assert_all_close((y, scale * dx, dw), base)


@settings(max_examples=12, deadline=None)
@given(sizes, scales, seeds)
def test_damping_scales_with_the_input(size, scale, seed):
    x, kernel, cotangent = problem(size, seed)
    damped = [
        cosine(kernel.shape[1], rescale=True, damping=damping) for damping in (scale * 0.5, 0.5)
    ]
    y, dx, dw = run(damped[0], scale * x, cotangent, kernel)
    assert_all_close((y, scale * dx, dw), run(damped[1], x, cotangent, kernel))


@settings(max_examples=12, deadline=None)
@given(sizes, scales, seeds)
def test_plain_cosine_norm_ignores_the_scale_of_weights_and_bias_together(size, scale, seed):
    x, kernel, cotangent = problem(size, seed)
    layer = cosine(kernel.shape[1])
    base = run(layer, x, cotangent, kernel)
    layer.layer.bias.assign(scale * np.ones(kernel.shape[1]))
    y, dx, dw = run(layer, x, cotangent, scale * kernel)
    assert_all_close((y, dx, scale * dw), base)
