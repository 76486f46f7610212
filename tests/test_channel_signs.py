"""The signs of the channels in front of a layer norm make them cancel in its mean."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest

import kerasnorm
from kerasnorm import LayerNorm
from kerasnorm.graph import sites
from kerasnorm.graph.model_graphs import graphs_of
from kerasnorm.graph.stored_statistics import stored_statistics
from kerasnorm.targets import fold_into
from kerasnorm.targets.channel_signs import channel_signs

layers = keras.layers
BN = layers.BatchNormalization


def alike(make, shape, rows=600):
    """A model whose channels rise and fall together, as with light, and such data."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    x = make(inputs)
    model = keras.Model(inputs, BN(name="bn")(x))
    rng = np.random.default_rng(0)
    data = rng.uniform(0.2, 2, (rows, *[1] * len(shape))) * rng.uniform(0.5, 1.5, (rows, *shape))
    kerasnorm.estimate_statistics(model, data.astype("float32"))
    model.get_layer("bn").beta.assign(rng.normal(size=model.output_shape[-1]))
    return model, data.astype("float32")


CASES = {
    "Dense": (lambda x: layers.Dense(16, kernel_initializer="random_uniform")(x), (12,)),
    "positive Dense": (
        lambda x: layers.Dense(16, kernel_initializer=keras.initializers.RandomUniform(0, 1))(x),
        (12,),
    ),
    "Conv2D": (lambda x: layers.Conv2D(16, 3)(x), (8, 8, 4)),
    "groups": (lambda x: layers.Conv2D(16, 3, groups=2)(x), (8, 8, 4)),
    "transposed": (lambda x: layers.Conv2DTranspose(16, 3)(x), (6, 6, 4)),
    "depthwise": (lambda x: layers.DepthwiseConv2D(3, depth_multiplier=4)(x), (8, 8, 4)),
    "separable": (lambda x: layers.SeparableConv2D(16, 3)(x), (8, 8, 4)),
    "einsum": (lambda x: layers.EinsumDense("abc,cd->abd", (5, 16), bias_axes="d")(x), (5, 8)),
    "activation": (lambda x: layers.ReLU()(layers.Dense(16)(x)), (12,)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_mean_of_a_sample_varies_less(case):
    model, data = alike(*CASES[case])
    swap = kerasnorm.swap_norms(model, "layer")
    (norm,) = (layer for layer in swap.model.layers if isinstance(layer, LayerNorm))
    signs = np.sign(norm.gamma)
    assert set(signs) <= {-1.0, 1.0}
    y = np.asarray(model(data)).astype("float64")
    axes = tuple(range(1, y.ndim)) if norm.axis == "sample" else -1
    signed, plain = (np.square((s * y).mean(axes)).mean() for s in (signs, 1.0))
    # that much at least in every case; all signs alike would leave it as it is
    assert signed < 0.5 * plain


@pytest.mark.parametrize("damping", [0, 1e6])
def test_the_gain_undoes_them(damping):
    """On the data that the statistics are of, what the source puts out comes again on average."""
    model, data = alike(*CASES["Conv2D"])
    swap = kerasnorm.swap_norms(model, "layer", damping=damping)
    source, swapped = (np.asarray(m(data)).reshape(-1, 16) for m in (model, swap.model))
    for expected, received in zip(source.T, swapped.T, strict=True):
        # a layer norm loses some of it; with a gain of the wrong sign this would be negative
        assert np.corrcoef(expected, received)[0, 1] > 0.7


def test_a_maximum_in_between_is_of_the_channel_itself():
    inputs = keras.Input((8, 8, 3))
    x = layers.MaxPooling2D()(layers.Conv2D(8, 3, name="conv")(inputs))
    model = keras.Model(inputs, BN(name="bn")(x))
    swap = kerasnorm.swap_norms(model, "layer")
    (norm,) = (layer for layer in swap.model.layers if isinstance(layer, LayerNorm))
    assert (np.asarray(norm.gamma) > 0).all()


def found_in(model, seed):
    """What the BatchNorm of a model computes, of random statistics, and the layer in front."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        value = rng.normal(size=variable.shape)
        variable.assign(np.abs(value) if "variance" in variable.name else value)
    graphs = graphs_of(model)
    ((site,), _) = sites.find_sites(graphs)
    found = stored_statistics(site.layer)
    partner = fold_into.partner_of(site, graphs, found)
    return found, partner if isinstance(partner, fold_into.Partner) else None


def products_of_kernels(layer, shape):
    """⟨U_c, U_d⟩ of what reaches channels c and d from each input alone, far from any border.

    The inputs of a separable convolution are those of its second step, whose kernel is folded.
    """
    if isinstance(layer, layers.SeparableConv2D):
        kernel = np.asarray(layer.pointwise_kernel, "float64")[0, 0]
        return kernel.T @ kernel
    middle = tuple(size // 2 for size in layer.compute_output_shape((1, *shape))[1:-1])
    inputs = np.zeros((shape[-1], *shape))
    for number in range(shape[-1]):
        inputs[number, ..., number] = 1
    bias = 0 if layer.bias is None else np.asarray(layer.bias)
    answers = (np.asarray(layer(inputs)).astype("float64") - bias)[(slice(None), *middle)]
    return answers.T @ answers


def least_turns(gram, start):
    """Single signs turned, that which gains most first, until none makes sᵀGs less."""
    signs = start.copy()
    while True:
        turned = [signs * np.where(np.arange(len(signs)) == c, -1, 1) for c in range(len(signs))]
        values = [s @ gram @ s for s in turned]
        if min(values) >= signs @ gram @ signs - 1e-9 * np.trace(gram):
            return signs
        signs = turned[int(np.argmin(values))]


def balanced(values):
    signs, total = np.ones(len(values)), 0.0
    for channel in sorted(range(len(values)), key=lambda c: -abs(values[c])):
        if total * values[channel] > 0:
            signs[channel] = -1
        total += signs[channel] * values[channel]
    return signs


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_signs_make_the_mean_square_of_the_mean_small(case, seed):
    """They are those of the formula in the docstring, written out."""
    make, shape = CASES[case]
    inputs = keras.Input(shape)
    found, partner = found_in(keras.Model(inputs, BN()(make(inputs))), seed)
    size = found.scale.size
    own = np.eye(size) if partner is None else products_of_kernels(partner.layer, shape)
    offset = 0 if partner is None else np.asarray(partner.layer.bias, "float64")
    each = found.scale[:, None] * own * found.scale
    together = found.scale * (found.mean - offset)
    gram = each / np.trace(each) + np.outer(together, together) / (together @ together)
    gram *= (found.scale**2 * found.variance).sum() / 2
    gram += np.outer(found.beta, found.beta)
    ends = [least_turns(gram, start) for start in (np.ones(size), balanced(found.beta))]
    best = min(signs @ gram @ signs for signs in ends)
    signs = channel_signs(found, partner)
    assert set(signs) <= {-1.0, 1.0}
    assert signs @ gram @ signs == pytest.approx(best, rel=1e-6)


def test_channels_that_are_zero_have_signs():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, BN()(inputs))
    found, _ = found_in(model, 0)
    nothing = dataclasses.replace(
        found, scale=0 * found.scale, shift=0 * found.shift, beta=0 * found.beta
    )
    np.testing.assert_array_equal(channel_signs(nothing, None), np.ones(6))


def test_of_very_many_channels_all_signs_are_alike():
    inputs = keras.Input((4097,))
    found, _ = found_in(keras.Model(inputs, BN()(inputs)), 0)
    np.testing.assert_array_equal(channel_signs(found, None), np.ones(4097))
