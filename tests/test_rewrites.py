"""The weights and flags that each target gives its layers, before any data: formulas in float64."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from kerasnorm import Affine, CosineNorm, LayerNorm, WeightNorm
from kerasnorm.clone.rebuild import rebuild
from kerasnorm.graph import sites
from kerasnorm.graph.model_graphs import graphs_of
from kerasnorm.layers.sample_norm import SampleNorm
from kerasnorm.targets.registry import TARGETS

BN = layers.BatchNormalization


SAMPLE_NORMS = ("layer", "group")


def random_weights(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "seed" not in variable.path:
            value = rng.normal(size=variable.shape)
            variable.assign(0.1 + np.abs(value) if "variance" in variable.path else value)
    return model


def behind(linear, shape, axis=-1, **options):
    inputs = keras.Input(shape)
    x = BN(axis=axis, name="bn", **options)(linear(inputs))
    return random_weights(keras.Model(inputs, layers.ReLU()(x)))


def rewritten(model, target, damping=(0.0,)):
    graphs = graphs_of(model)
    (site,) = sites.find_sites(graphs)[0]
    plan = TARGETS[target].check(site, graphs)
    return rebuild(graphs, TARGETS[target].rewrite(plan, "bn", damping)).model


def wide(variable):
    return np.asarray(variable, "float64")


def map_of(norm):
    """a and c of y = a·x + c."""
    scale = wide(norm.gamma) / np.sqrt(wide(norm.moving_variance) + norm.epsilon)
    return scale, wide(norm.beta) - wide(norm.moving_mean) * scale


def only(model, cls):
    (layer,) = (layer for layer in model.layers if isinstance(layer, cls))
    return layer


# The layer, its input, how a vector over channels lies in its kernel, and the axes of a norm.
LINEAR = {
    "Dense": (lambda **o: layers.Dense(4, **o), (3,), (1, 4), (0,)),
    "Conv1D": (lambda **o: layers.Conv1D(4, 2, **o), (5, 3), (1, 1, 4), (0, 1)),
    "Conv2D groups": (
        lambda **o: layers.Conv2D(4, 2, groups=2, **o), (5, 5, 6), (1, 1, 1, 4), (0, 1, 2)
    ),
    "transposed": (
        lambda **o: layers.Conv1DTranspose(4, 2, **o), (5, 3), (1, 4, 1), (0, 2)
    ),
    "depthwise": (
        lambda **o: layers.DepthwiseConv1D(2, depth_multiplier=2, **o), (5, 2), (1, 2, 2), (0,)
    ),
    "EinsumDense": (
        lambda **o: layers.EinsumDense(
            "abc,cd->abd", (5, 4), bias_axes="d" if o.get("use_bias", True) else None
        ),
        (5, 3), (1, 4), (0,),
    ),
}  # fmt: skip
linear_layers = pytest.mark.parametrize("kind", LINEAR)


@linear_layers
@pytest.mark.parametrize("use_bias", [True, False])
def test_weight_norm_has_the_kernel_as_its_direction(kind, use_bias):
    make, shape, lies, axes = LINEAR[kind]
    linear = make(use_bias=use_bias)
    model = behind(linear, shape)
    a, c = map_of(model.get_layer("bn"))
    kernel = wide(linear.kernel)
    new = only(rewritten(model, "weight"), WeightNorm)
    np.testing.assert_array_equal(new.layer.kernel, linear.kernel)
    length = np.sqrt(np.square(kernel).sum(axes, keepdims=True))
    np.testing.assert_allclose(np.reshape(new.g, lies), a.reshape(lies) * length, rtol=1e-6)
    bias = wide(linear.bias) if use_bias else 0
    np.testing.assert_allclose(new.layer.bias, c + a * bias, rtol=1e-5)


@linear_layers
@pytest.mark.parametrize("use_bias", [True, False])
def test_layer_norm_follows_what_the_map_is_folded_into(kind, use_bias):
    make, shape, lies, _ = LINEAR[kind]
    linear = make(use_bias=use_bias)
    model = behind(linear, shape)
    norm = model.get_layer("bn")
    a, c = map_of(norm)
    for damping in (0.0, 0.3):
        result = rewritten(model, "layer", (1e6, damping))
        new, folded = only(result, SampleNorm), result.get_layer(linear.name)
        signs = np.sign(wide(new.gamma))
        by_unit = (signs * a).reshape(lies)
        np.testing.assert_allclose(folded.kernel, by_unit * wide(linear.kernel), rtol=1e-6)
        bias = wide(linear.bias) if use_bias else 0
        np.testing.assert_allclose(folded.bias, signs * (c + a * bias), rtol=1e-5)
        means, variances = signs * wide(norm.beta), a**2 * wide(norm.moving_variance)
        center = means.mean()
        spread = np.mean(variances + means**2) - center**2
        epsilon = spread * (damping or 1e-5)
        assert new.epsilon == pytest.approx(epsilon)
        np.testing.assert_allclose(new.gamma, signs * np.sqrt(spread + epsilon), rtol=1e-6)
        np.testing.assert_allclose(new.beta, signs * center, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("step", "shape", "axis"),
    [
        (layers.Dense(4), (3,), -1),
        (layers.Conv1D(4, 1), (5, 3), -1),
        (layers.Conv2D(4, 1), (5, 5, 3), "sample"),
        (layers.ReLU(), (5, 5, 4), "sample"),
        (layers.Conv3D(4, 1), (3, 3, 3, 2), "sample"),
        (layers.Conv3DTranspose(4, 1), (3, 3, 3, 2), "sample"),
        (layers.Dense(4), (3, 3, 3, 2), -1),  # steps of images
        (layers.ReLU(), (3, 3, 3, 4), -1),
    ],
)
def test_maps_are_normalized_as_a_whole_and_steps_by_themselves(step, shape, axis):
    norm = only(rewritten(behind(step, shape), "layer"), LayerNorm)
    assert norm.axis == axis


@linear_layers
@pytest.mark.parametrize("use_bias", [True, False])
def test_cosine_norm_starts_from_the_kernel_with_the_map_folded_in(kind, use_bias):
    make, shape, lies, axes = LINEAR[kind]
    linear = make(use_bias=use_bias)
    model = behind(linear, shape)
    a, c = map_of(model.get_layer("bn"))
    new = only(rewritten(model, "cosine"), CosineNorm)
    kernel = a.reshape(lies) * wide(linear.kernel)
    np.testing.assert_allclose(new.layer.kernel, kernel, rtol=1e-6)
    bias = wide(linear.bias) if use_bias else 0
    np.testing.assert_allclose(new.layer.bias, c + a * bias, rtol=1e-5)
    length = np.sqrt(np.square(kernel).sum(axes)).reshape(-1)
    # of groups and depthwise kernels, x is the patch of all channels
    fan_in = {"Conv2D groups": 2 * 2 * 6, "depthwise": 2 * 2}.get(kind, kernel.size // 4)
    np.testing.assert_allclose(np.reshape(new.g, -1), np.sqrt(fan_in) * length, rtol=1e-5)
    assert (new.rescale, new.across_groups) == (True, True)


def test_elsewhere_the_map_is_diagonal():
    inputs = keras.Input((4,))
    model = random_weights(keras.Model(inputs, layers.ReLU()(BN(name="bn")(layers.ReLU()(inputs)))))
    norm = model.get_layer("bn")
    norm.gamma.assign(np.array(norm.gamma) * [1, 0, 1, -1])
    a, c = map_of(norm)
    new = only(rewritten(model, "weight"), WeightNorm)
    np.testing.assert_array_equal(np.abs(new.layer.kernel), 1)
    np.testing.assert_allclose(wide(new.g) * wide(new.layer.kernel), a, rtol=1e-6)
    np.testing.assert_allclose(new.layer.bias, c, rtol=1e-6)
    for target in ("layer", "group", "cosine"):
        affine = only(rewritten(model, target), Affine)
        if target == "cosine":
            np.testing.assert_allclose(affine.kernel, a, rtol=1e-6)
            np.testing.assert_allclose(affine.bias, c, rtol=1e-6)
        else:
            signs = np.sign(wide(only(rewritten(model, target), SampleNorm).gamma))
            np.testing.assert_allclose(affine.kernel, signs * a, rtol=1e-6)
            np.testing.assert_allclose(affine.bias, signs * c, rtol=1e-6)


def test_a_unit_of_zeros_has_some_direction_and_no_gain():
    linear = layers.Dense(3)
    model = behind(linear, (4,))
    kernel = np.array(linear.kernel)
    kernel[:, 1] = 0
    kernel[:, 2] = [-2, 1, 0, 0]  # the largest entry is negative
    linear.kernel.assign(kernel)
    a, c = map_of(model.get_layer("bn"))
    new = only(rewritten(model, "weight"), WeightNorm)
    np.testing.assert_array_equal(new.layer.kernel[:, 1], np.ones(4))
    np.testing.assert_array_equal(np.array(new.layer.kernel)[:, [0, 2]], kernel[:, [0, 2]])
    np.testing.assert_allclose(new.g, a * np.linalg.norm(kernel, axis=0), rtol=1e-6)
    np.testing.assert_allclose(new.layer.bias, c + a * wide(linear.bias), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_lengths_of_any_size_are_those_of_float64(size):
    linear = layers.Dense(3, dtype="float64")
    inputs = keras.Input((4,), dtype="float64")
    x = BN(name="bn", dtype="float64")(linear(inputs))
    model = random_weights(keras.Model(inputs, layers.ReLU(dtype="float64")(x)))
    linear.kernel.assign(size * np.array(linear.kernel))
    a, _ = map_of(model.get_layer("bn"))
    new = only(rewritten(model, "weight"), WeightNorm)
    length = size * np.linalg.norm(wide(linear.kernel) / size, axis=0)
    np.testing.assert_allclose(new.g, a * length, rtol=1e-12)


@pytest.mark.parametrize("target", TARGETS)
def test_both_kernels_of_a_separable_convolution(target):
    linear = layers.SeparableConv1D(4, 2, depth_multiplier=2)
    model = behind(linear, (5, 3))
    a, _ = map_of(model.get_layer("bn"))
    result = rewritten(model, target)
    if target == "weight":
        new = only(result, WeightNorm)
        np.testing.assert_array_equal(new.layer.depthwise_kernel, linear.depthwise_kernel)
        np.testing.assert_array_equal(new.layer.pointwise_kernel, linear.pointwise_kernel)
        length = np.linalg.norm(wide(linear.depthwise_kernel), axis=0)
        np.testing.assert_allclose(new.g_depthwise, length, rtol=1e-6)
        length = np.linalg.norm(wide(linear.pointwise_kernel)[0], axis=0)
        np.testing.assert_allclose(new.g, a * length, rtol=1e-6)
        return
    signs = 1.0
    if target in SAMPLE_NORMS:
        folded = result.get_layer(linear.name)
        signs = np.sign(wide(only(result, SampleNorm).gamma))
    else:
        folded = only(result, CosineNorm).layer
    np.testing.assert_array_equal(folded.depthwise_kernel, linear.depthwise_kernel)
    expected = signs * a * wide(linear.pointwise_kernel)
    np.testing.assert_allclose(folded.pointwise_kernel, expected, rtol=1e-6)


FOLLOWERS = {
    "Dense": (lambda: layers.Dense(2), (4,), True),
    "without a bias": (lambda: layers.Dense(2, use_bias=False), (4,), True),
    "Conv1D": (lambda: layers.Conv1D(2, 2, activation="tanh"), (5, 4), True),
    "transposed": (lambda: layers.Conv1DTranspose(2, 2), (5, 4), True),
    "EinsumDense": (lambda: layers.EinsumDense("abc,cd->abd", (5, 2)), (5, 4), True),
    "and its bias": (
        lambda: layers.EinsumDense("abc,cd->abd", (5, 2), bias_axes="d"),
        (5, 4),
        True,
    ),
    "over two axes": (lambda: layers.EinsumDense("abc,bcd->ad", 2), (5, 4), False),
    "units along two axes": (lambda: layers.EinsumDense("ab,bcd->acd", (2, 3)), (4,), False),
    "penalized": (lambda: layers.Dense(2, activity_regularizer="l2"), (4,), False),
    "no linear layer": (lambda: layers.LSTM(2), (5, 4), False),
    "PReLU in between": (lambda: keras.Sequential([layers.PReLU(), layers.Dense(2)]), (4,), False),
}


@pytest.mark.parametrize("kind", FOLLOWERS)
def test_the_next_linear_layer_takes_the_cosine_with_its_own_kernel(kind):
    make, shape, takes = FOLLOWERS[kind]
    inputs, follower = keras.Input(shape), make()
    x = layers.ReLU()(BN(name="bn")(layers.ReLU()(inputs)))
    steps = follower.layers if isinstance(follower, keras.Sequential) else [follower]
    for step in steps:
        x = step(x)
    model = random_weights(keras.Model(inputs, layers.ReLU()(x)))
    result = rewritten(model, "cosine")
    a, c = map_of(model.get_layer("bn"))
    affine = result.get_layer("bn")
    np.testing.assert_allclose(affine.kernel, a, rtol=1e-6)
    np.testing.assert_allclose(affine.bias, c, rtol=1e-6)
    found = [layer for layer in result.layers if isinstance(layer, CosineNorm)]
    assert bool(found) == takes
    if takes:
        (new,) = found
        assert new.name == follower.name
        np.testing.assert_array_equal(new.layer.kernel, follower.kernel)
        own = 0 if follower.bias is None else wide(follower.bias)
        np.testing.assert_allclose(new.layer.bias, own + np.zeros(2), rtol=1e-6)
        assert new.layer.bias.shape == (2,)
        assert new.layer.activation is follower.activation


def after_the_map(build):
    """How many layers take the cosine behind a BatchNorm that no linear layer is in front of."""
    inputs = keras.Input((4,))
    found = build(BN(name="bn")(layers.ReLU()(inputs)))
    model = random_weights(keras.Model(inputs, found))
    graphs = graphs_of(model)
    (site,) = (s for s in sites.find_sites(graphs)[0] if s.name == "bn")
    plan = TARGETS["cosine"].check(site, graphs)
    assert plan.case == 2
    assert plan.verdict == ("exact" if plan.partner is None else "calibrated")
    return plan.partner is not None


def test_the_next_linear_layer_must_be_the_only_reader_and_not_be_claimed():
    dense = layers.Dense(4)
    assert after_the_map(lambda x: layers.ReLU()(dense(x)))
    assert not after_the_map(lambda x: [layers.Dense(4)(x), layers.ReLU()(x)])  # read twice
    assert not after_the_map(lambda x: [layers.Dense(4)(x), x])  # an output
    assert not after_the_map(lambda x: layers.Add()([layers.Dense(4)(x), x]))
    shared = layers.Dense(4)
    assert not after_the_map(lambda x: shared(layers.ReLU()(shared(x))))
    # another BatchNorm behind it may take it in, across what commutes with that alone
    assert not after_the_map(lambda x: BN()(layers.Dense(4)(x)))
    assert not after_the_map(lambda x: BN()(layers.Dropout(0.1)(layers.Dense(4)(x))))
    assert after_the_map(lambda x: BN()(layers.ReLU()(layers.Dense(4)(x))))
    # several layers without weights may be in between, and operations of one input
    assert after_the_map(lambda x: layers.Dense(2)(layers.Dropout(0.1)(layers.ReLU()(x))))
    assert not after_the_map(lambda x: layers.Dense(2)(layers.Multiply()([x, x])))
    other = keras.ops.ones((1, 4))
    assert not after_the_map(lambda x: layers.Dense(2)(keras.ops.add(x, other)))
    assert not after_the_map(lambda x: layers.Dense(2)(BN(name="next")(layers.ReLU()(x))))


def test_a_step_that_takes_something_else_too_ends_the_search():
    inputs = keras.Input((4,))
    x = layers.Add()([BN(name="bn")(layers.ReLU()(inputs)), layers.Dense(4)(inputs)])
    model = random_weights(keras.Model(inputs, layers.Dense(2)(x)))
    (site,) = sites.find_sites(graphs_of(model))[0]
    assert TARGETS["cosine"].check(site, graphs_of(model)).partner is None


# What trains


def flags(layer):
    """Which variables train, by the end of their paths."""
    return {v.path.split("/")[-1]: v.trainable for v in layer.weights}


@pytest.mark.parametrize("of_linear", [True, False])
@pytest.mark.parametrize("of_norm", [True, False])
@pytest.mark.parametrize("of_gamma", [True, False])
def test_a_kernel_trains_as_the_linear_layer_and_a_gain_where_either_does(
    of_linear, of_norm, of_gamma
):
    linear = layers.Dense(4)
    model = behind(linear, (3,))
    norm = model.get_layer("bn")
    linear.trainable, norm.trainable = of_linear, of_norm
    norm.gamma.trainable = of_gamma and of_norm
    new = only(rewritten(model, "weight"), WeightNorm)
    assert flags(new) == {
        "kernel": of_linear,
        "bias": of_linear,
        "g": of_linear or (of_norm and of_gamma),
    }


@pytest.mark.parametrize("frozen", ["kernel", "bias"])
@pytest.mark.parametrize("target", TARGETS)
def test_single_weights_of_a_linear_layer_that_do_not_train(target, frozen):
    linear = layers.Dense(4)
    model = behind(linear, (3,))
    getattr(linear, frozen).trainable = False
    result = rewritten(model, target)
    if target in SAMPLE_NORMS:
        new = result.get_layer(linear.name)
        assert all(flags(only(result, SampleNorm)).values())
    else:
        new = only(result, WeightNorm if target == "weight" else CosineNorm)
    expected = {"kernel": frozen != "kernel", "bias": frozen != "bias"}
    if target == "weight":
        expected["g"] = True  # gamma trains
    if target == "cosine":
        expected["g"] = frozen != "kernel"
    assert flags(new) == expected


@pytest.mark.parametrize("target", ["layer", "group", "cosine"])
def test_a_frozen_linear_layer_stays_frozen(target):
    linear = layers.Dense(4)
    model = behind(linear, (3,))
    linear.trainable = False
    result = rewritten(model, target)
    layer = result.get_layer(linear.name)
    assert not layer.trainable
    assert not any(flags(layer).values())
    if target in SAMPLE_NORMS:
        assert all(flags(only(result, SampleNorm)).values())
        model.get_layer("bn").trainable = False
        assert not only(rewritten(model, target), SampleNorm).trainable


@pytest.mark.parametrize("frozen", ["gamma", "beta", None])
@pytest.mark.parametrize("target", TARGETS)
def test_a_map_that_stays_trains_as_gamma_and_beta_did(target, frozen):
    inputs = keras.Input((4,))
    norm = BN(name="bn")
    model = random_weights(keras.Model(inputs, layers.ReLU()(norm(layers.ReLU()(inputs)))))
    if frozen:
        getattr(norm, frozen).trainable = False
    result = rewritten(model, target)
    layer = only(result, WeightNorm if target == "weight" else Affine)
    found = flags(layer)
    assert found.pop("bias") == (frozen != "beta")
    assert found.pop("g" if target == "weight" else "kernel") == (frozen != "gamma")
    norm.trainable = False
    layer = only(rewritten(model, target), WeightNorm if target == "weight" else Affine)
    assert not any(flags(layer).values())
