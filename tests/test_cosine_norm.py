"""CosineNorm stays within its bound whatever it is fed, and refuses what is not one contraction."""

from __future__ import annotations

import keras
import linear_oracle as linear
import numpy as np
import pytest
from gradients import output_and_gradients
from keras import layers

from kerasnorm import Affine, CosineNorm

BOUND = 1 + 2e-6
CONVOLUTIONS = {
    "Conv1D": (lambda: layers.Conv1D(4, 3, padding="causal"), (2, 7, 3)),
    "Conv2D": (lambda: layers.Conv2D(4, 3, padding="same", strides=2), (2, 6, 5, 3)),
    "grouped": (lambda: layers.Conv2D(6, 3, padding="same", groups=3), (2, 5, 5, 3)),
    "DepthwiseConv2D": (lambda: layers.DepthwiseConv2D(3, padding="same"), (2, 5, 5, 3)),
    "Conv2DTranspose": (lambda: layers.Conv2DTranspose(4, 3, strides=2), (2, 4, 4, 3)),
}

MAKERS = {"Dense": (lambda: layers.Dense(4), (5, 6)), **CONVOLUTIONS}
OPTIONS = [
    {},
    {"rescale": True, "centered": True},
    {"rescale": True, "across_groups": True},
    pytest.param({"centered": True}, marks=pytest.mark.slow),
    pytest.param({"rescale": True}, marks=pytest.mark.slow),
    pytest.param({"rescale": True, "damping": 1.0}, marks=pytest.mark.slow),
]


def built(make, shape, **options):
    layer = CosineNorm(make(), **options)
    layer.build((None, *shape[1:]))
    if "rescale" in options:
        layer.g.assign(np.ones(layer.g.shape))  # the bare cosine
    return layer


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_kernel_along_the_input_gives_plus_or_minus_one(scale, sign):
    x = (scale * np.random.default_rng(0).normal(size=(1, 64))).astype("float32")
    layer = built(lambda: layers.Dense(1), x.shape)
    layer.layer.kernel.assign(sign * x.T)
    layer.layer.bias.assign([sign])
    y = np.asarray(layer(x))
    assert abs(y[0, 0] - sign) < 1e-5
    assert abs(y).max() <= BOUND


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_patch_along_the_kernel_gives_one(name, centered, scale):
    make, shape = CONVOLUTIONS[name]
    if name == "Conv2DTranspose":
        pytest.skip("with strides, part of the kernel never meets the input")
    layer = built(make, shape, rescale=True, centered=centered)
    kernel = np.random.default_rng(1).normal(size=layer.layer.kernel.shape).astype("float32")
    layer.layer.kernel.assign(kernel)
    # an input that holds the first filter itself, aligned with one of its positions
    x = np.zeros(shape, "float32")
    if name == "DepthwiseConv2D":
        x[0, 1:4, 1:4, :] = kernel[..., 0]
    elif name == "grouped":
        x[0, 1:4, 1:4, 0] = kernel[..., 0, 0]
    elif name == "Conv2D":
        # strides 2 on 6 rows and 5 columns: output (1, 1) reads rows 2..4 and columns 1..3
        x[0, 2:5, 1:4, :] = kernel[..., 0]
    else:
        x[0, 1:4, :] = kernel[..., 0]
    y = np.asarray(layer(scale * x))
    assert abs(y.max() - 1) < 1e-5
    assert abs(y).max() <= BOUND


@pytest.mark.parametrize("options", [{}, {"rescale": True, "damping": 0.5}], ids=str)
@pytest.mark.parametrize("name", ["grouped", "DepthwiseConv2D"])
def test_across_groups_is_the_convolution_with_zeros_between_them(name, options):
    make, shape = CONVOLUTIONS[name]
    rng = np.random.default_rng(3)
    layer = built(make, shape, across_groups=True, **options)
    units = layer.layer.bias.shape[0]
    plain = layers.Conv2D(units, 3, padding="same")
    plain.build(shape)
    whole = np.zeros(plain.kernel.shape)
    reads = 1 if name == "DepthwiseConv2D" else layer.layer.kernel.shape[2]
    own = rng.normal(size=(3, 3, reads, units))
    for unit in range(units):
        first = unit * shape[-1] // units // reads * reads
        whole[:, :, first : first + reads, unit] = own[..., unit]
    layer.layer.kernel.assign(own.reshape(layer.layer.kernel.shape))
    full = built(lambda: plain, shape, **options)
    plain.kernel.assign(whole)
    for each in (layer.layer, plain):
        each.bias.assign(np.arange(units) / 10)
    x = rng.normal(size=shape).astype("float32")
    np.testing.assert_allclose(layer(x), full(x), atol=2e-6)


def test_gains_across_groups_start_at_the_root_of_all_that_is_measured():
    layer = CosineNorm(layers.DepthwiseConv2D(3), rescale=True, across_groups=True)
    layer.build((None, 8, 8, 5))
    np.testing.assert_allclose(layer.g, np.sqrt(45), rtol=1e-6)


def test_centered_needs_kernels_of_their_own():
    with pytest.raises(ValueError, match="centered=True, across_groups=True, for DepthwiseConv2D"):
        CosineNorm(layers.DepthwiseConv2D(3), centered=True, across_groups=True)
    with pytest.raises(ValueError, match="centered=True, across_groups=False, for SeparableConv1D"):
        CosineNorm(layers.SeparableConv1D(3, 3), centered=True)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e12])
@pytest.mark.parametrize("options", [{}, {"rescale": True, "damping": 0.5}], ids=str)
@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_a_separable_convolution_is_one_with_a_kernel_of_two(
    data_format, multiplier, options, scale
):
    first = data_format == "channels_first"
    shape = (2, 3, 7, 6) if first else (2, 7, 6, 3)
    geometry = {"strides": 2, "padding": "same", "data_format": data_format}
    make = lambda: layers.SeparableConv2D(5, 3, depth_multiplier=multiplier, **geometry)  # noqa: E731
    layer = built(make, shape, **options)
    rng = np.random.default_rng(4)
    depthwise = scale * rng.normal(size=(3, 3, 3, multiplier))
    pointwise = rng.normal(size=(3, multiplier, 5)) / scale
    layer.layer.depthwise_kernel.assign(depthwise)
    layer.layer.pointwise_kernel.assign(pointwise.reshape(1, 1, -1, 5))
    plain = layers.Conv2D(5, 3, **geometry)
    full = built(lambda: plain, shape, **options)
    plain.kernel.assign(np.einsum("klcm,cmo->klco", depthwise, pointwise))
    for each in (layer.layer, plain):
        each.bias.assign(np.arange(5) / 10)
    x = rng.normal(size=shape).astype("float32")
    np.testing.assert_allclose(layer(x), full(x), atol=2e-6)
    np.testing.assert_allclose(layer.lengths(), full.lengths(), rtol=1e-5)
    half = CosineNorm.from_config({**layer.get_config(), "dtype": "mixed_float16"})
    half.build((None, *shape[1:]))
    half.set_weights(layer.get_weights())
    np.testing.assert_allclose(half(x), full(x), atol=5e-3)
    assert layer.contraction(4).size == full.contraction(4).size == 27


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("kind", ["1e-30", "1e30", "zero", "constant", "mixed", "zero kernel"])
def test_extreme_inputs_stay_finite_and_within_the_bound(name, options, kind):
    make, shape = MAKERS[name]
    layer = built(make, shape, **options)
    rng = np.random.default_rng(2)
    layer.layer.bias.assign(rng.normal(size=layer.layer.bias.shape) * (not options.get("rescale")))
    x = rng.normal(size=shape)
    if kind in ("1e-30", "1e30"):
        x = x * float(kind)
    elif kind == "zero":
        x = x * 0
    elif kind == "constant":
        x = x * 0 + 3
    elif kind == "mixed":
        x = x * 10.0 ** rng.integers(-30, 30, size=shape)
    else:
        layer.layer.kernel.assign(np.zeros(layer.layer.kernel.shape))
    x = x.astype("float32")
    # the gradient in an input of 1e-30 is of the order of 1e30: a small cotangent leaves it room
    cotangent = (1e-3 * rng.normal(size=layer(x).shape)).astype("float32")
    y, dx, dw = output_and_gradients(layer, x, cotangent)
    assert np.abs(y).max() <= BOUND
    for gradient in (dx, *dw):
        assert np.isfinite(gradient).all()


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX has no float64 by default")
@pytest.mark.parametrize("scale", [1e-50, 1e-38, 1e38, 1e50])
def test_float64_has_its_own_range(scale):
    layer = CosineNorm(layers.Dense(4, use_bias=False, dtype="float64"))
    x = np.random.default_rng(0).normal(size=(3, 40))
    np.testing.assert_allclose(layer(x * scale), layer(x), atol=1e-12)


def test_float16_inputs_of_60000_do_not_overflow():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = CosineNorm(layers.Conv2D(4, 3), rescale=True)
    finally:
        keras.config.set_dtype_policy("float32")
    x = np.full((1, 5, 5, 64), 6e4, "float16")
    y = np.asarray(layer(x)).astype("float32")
    kernel = np.asarray(layer.layer.kernel)
    expected = 24 * kernel.sum((0, 1, 2)) / np.sqrt((kernel**2).sum((0, 1, 2))) / 24
    np.testing.assert_allclose(y[0, 0, 0], expected, atol=5e-3 * np.abs(expected).max())


@pytest.mark.parametrize("policy", ["float16", "bfloat16"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_pure_16_bit_policies_take_zeros(policy, options):
    layer = CosineNorm(layers.Conv2D(4, 3, dtype=policy), **options)
    x = np.zeros((1, 6, 6, 2), "float32")
    x[:, :3] = np.random.default_rng(0).normal(size=(1, 3, 6, 2))
    y = np.asarray(keras.ops.cast(layer(x), "float32"))
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(y[0, 3:], 0)


def test_a_patch_far_below_the_largest_entry_counts_as_zeros():
    layer = CosineNorm(layers.Conv1D(3, 1, use_bias=False), rescale=True)
    x = np.array([[[1.0, 2.0], [1e-10, 2e-10], [1e-14, 2e-14]]], "float32")
    y = np.asarray(layer(x))
    np.testing.assert_allclose(y[0, 1], y[0, 0], rtol=1e-5)
    np.testing.assert_array_equal(y[0, 2], 0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_empty_batch_gives_an_empty_output(options):
    layer = CosineNorm(layers.Dense(4), **options)
    assert tuple(layer(np.zeros((0, 6), "float32")).shape) == (0, 4)


def test_a_masked_input_raises_no_warning():
    inputs = keras.Input((5, 3))
    model = keras.Model(inputs, CosineNorm(layers.Dense(4))(layers.Masking()(inputs)))
    assert model(np.zeros((2, 5, 3), "float32")).shape == (2, 5, 4)


def test_a_kernel_that_is_plain_no_longer_is_refused():
    layer = CosineNorm(layers.Dense(3))
    layer(np.ones((2, 4), "float32"))
    with pytest.raises(NotImplementedError, match=r"'dense.*' is not quantized: CosineNorm"):
        layer.layer.quantize("int8")
    layer.layer.enable_lora(2)
    with pytest.raises(ValueError, match=r"is LoRA-enabled\. There is no plain layer"):
        layer(np.ones((2, 4), "float32"))


OFFSETS = {
    "depthwise": (
        lambda: layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2),
        linear.depthwise((1, 1), (1, 1), padding="same"),
        [1, -1],
    ),
    "grouped": (
        lambda: layers.Conv2D(4, 3, padding="same", groups=2),
        linear.convolution((1, 1), (1, 1), padding="same", groups=2),
        [1, 1, -1, -1],
    ),
    "colours": (
        lambda: layers.Conv2D(4, 3, padding="same"),
        linear.convolution((1, 1), (1, 1), padding="same"),
        [0.5, 0.4, 0.3],
    ),
}


@pytest.mark.parametrize("offset", [10, 100])
@pytest.mark.parametrize("name", OFFSETS)
def test_centered_keeps_its_digits_where_channels_have_means_of_their_own(name, offset):
    make, bilinear, signs = OFFSETS[name]
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(2, 8, 8, len(signs))) + offset * np.array(signs)).astype("float32")
    layer = built(make, x.shape, rescale=True, centered=True)
    layer.layer.kernel.assign(rng.normal(size=layer.layer.kernel.shape))
    w = np.asarray(layer.layer.kernel).astype("float64")
    axes = (0, 1) if name == "depthwise" else (0, 1, 2)
    w = w - w.mean(axes, keepdims=True)
    w = w / np.sqrt((w**2).sum(axes, keepdims=True))
    wide, ones = x.astype("float64"), np.ones(w.shape)
    size = np.prod([w.shape[a] for a in axes])
    squares = bilinear(wide**2, ones) - bilinear(wide, ones) ** 2 / size
    expected = bilinear(wide, w) / np.sqrt(squares)
    # the mean of a patch is apart from that of its channel by a deviation: a digit or two go
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)
    assert np.abs(layer(x)).max() <= BOUND


@pytest.mark.parametrize("contrast", [1e1, 1e3, 1e5, 1e7])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_strong_contrast_in_space_stays_within_the_bound(name, rescale, contrast):
    make, shape = CONVOLUTIONS[name]
    options = {"rescale": True} if rescale else {}
    layer = built(make, (4, 16, *shape[2:]), centered=True, **options)
    rng = np.random.default_rng(4)
    layer.layer.bias.assign(rng.normal(size=layer.layer.bias.shape) * (not rescale))
    x = rng.normal(size=(4, 16, *shape[2:]))
    x[:, 8:] += contrast
    x[2:, :4] = -contrast
    x = x.astype("float32")
    y, dx, dw = output_and_gradients(layer, x, np.ones(layer(x).shape, "float32"))
    assert np.abs(y).max() <= BOUND
    assert all(np.isfinite(gradient).all() for gradient in (dx, *dw))


@pytest.mark.parametrize("contrast", [30, 100, 200])
def test_a_patch_along_the_kernel_stays_within_the_bound_beside_strong_contrast(contrast):
    layer = built(lambda: layers.Conv1D(8, 3), (1, 96, 2), rescale=True, centered=True)
    kernel = 0.3 * np.random.default_rng(5).normal(size=(8, 3, 2)).astype("float32")
    layer.layer.kernel.assign(np.moveaxis(kernel, 0, -1))
    x = np.concatenate([kernel.reshape(1, -1, 2), np.full((1, 24, 2), contrast, "float32")], 1)
    y = np.asarray(layer(x))
    assert np.abs(y).max() <= BOUND
    np.testing.assert_allclose([y[0, 3 * i, i] for i in range(8)], 1, atol=0.3)


def test_patches_of_zeros_give_zero_and_take_no_gradient():
    layer = CosineNorm(layers.Conv2D(3, 3, use_bias=False), rescale=True)
    x = np.zeros((1, 9, 9, 2), "float32")
    x[0, :3] = 1
    y, dx, _ = output_and_gradients(layer, x, np.ones(layer(x).shape, "float32"))
    assert (y[0, 3:] == 0).all()
    assert (y[0, :2] != 0).all()
    assert (dx[0, 5:] == 0).all()


def test_unknown_height_and_width():
    inputs = keras.Input((None, None, 3))
    layer = CosineNorm(layers.Conv2D(4, 3, padding="same", strides=2), rescale=True)
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, None, None, 4)
    x = np.random.default_rng(3).normal(size=(2, 7, 6, 3)).astype("float32")
    np.testing.assert_allclose(model.predict(x, verbose=0), np.asarray(layer(x)), atol=1e-6)


def test_the_gain_starts_at_the_root_of_the_fan_in():
    layer = built(lambda: layers.Conv2D(4, 3), (1, 5, 5, 8))
    assert not hasattr(layer, "g")
    layer = CosineNorm(layers.Conv2D(4, 3), rescale=True)
    layer.build((None, 5, 5, 8))
    np.testing.assert_allclose(np.asarray(layer.g), np.sqrt(72), rtol=1e-6)


def test_a_penalty_on_outputs_is_kept():
    layer = CosineNorm(layers.Dense(3, activity_regularizer=keras.regularizers.L2(1.0)))
    y = layer(np.ones((2, 4), "float32"))
    np.testing.assert_allclose(float(sum(layer.losses)), np.sum(np.square(y)) / 2, rtol=1e-5)


def test_a_kernel_constraint_acts_on_the_kernel_before_normalization():
    dense = layers.Dense(3, kernel_constraint=keras.constraints.MaxNorm(0.1))
    model = keras.Sequential([keras.Input((4,)), CosineNorm(dense, rescale=True)])
    x = np.random.default_rng(6).normal(size=(8, 4)).astype("float32")
    before = np.asarray(model(x))
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    model.fit(x, np.zeros((8, 3)), verbose=0)
    assert np.linalg.norm(dense.kernel, axis=0).max() <= 0.1 + 1e-6
    np.testing.assert_allclose(model(x), before, rtol=1e-5, atol=1e-6)


def test_integer_inputs_are_cast():
    layer = CosineNorm(layers.Dense(3))
    x = np.arange(8).reshape(2, 4)
    np.testing.assert_allclose(layer(x), layer(x.astype("float32")))


class Doubled(layers.Dense):
    def call(self, inputs):
        return 2 * super().call(inputs)


class Standardized(layers.Conv2D):
    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel - keras.ops.mean(kernel))


REFUSALS = [
    (lambda: CosineNorm(Doubled(3)), "Doubled overrides `call`, which CosineNorm would not use"),
    (lambda: CosineNorm(Standardized(3, 3)), "Standardized overrides `convolution_op`"),
    (lambda: CosineNorm(layers.LSTM(3)), "needs a linear layer, and LSTM is none"),
    (lambda: CosineNorm(Affine()), "each weight vector of Affine is a single number"),
    (
        lambda: CosineNorm(layers.EinsumDense("ab,cd->acd", (2, 3))),
        "must contract the input with the kernel",
    ),
    (
        lambda: CosineNorm(layers.EinsumDense("abc,bd->ad", 3)),
        "and sum over no others",
    ),
    (lambda: CosineNorm(layers.Dense(3), damping=1.0), "needs rescale=True"),
    (lambda: CosineNorm(layers.Dense(3), rescale=True, damping=-1.0), "must be at least 0"),
    (
        lambda: CosineNorm(layers.EinsumDense("abc,cd->abd", (4, 3), bias_axes="bd")).build(
            (None, 4, 5)
        ),
        "Use rescale=True, or bias_axes=None",
    ),
    (
        lambda: CosineNorm(layers.Dense(3)).build((None, None)),
        "must know the size of axis 1 of the input of layer",
    ),
]


@pytest.mark.parametrize(("ask", "text"), REFUSALS, ids=[text for _, text in REFUSALS])
def test_refusals_say_why(ask, text):
    with pytest.raises(ValueError, match=text):
        ask()


def test_a_lora_kernel_is_refused():
    dense = layers.Dense(3)
    dense.build((None, 4))
    dense.enable_lora(2)
    with pytest.raises(ValueError, match="is LoRA-enabled"):
        CosineNorm(dense)
