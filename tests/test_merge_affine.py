"""`fold_norms` merges an Affine into the linear layers beside it, exactly, or leaves it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import kerasnorm
from kerasnorm import Affine, WeightNorm
from kerasnorm.swap.fold import fold_weight_norms
from kerasnorm.targets.merge_affine import _input_letter
from kerasnorm.targets.plain import unfold_affine


def model_of(build, *shape, dtype=None):
    """The functional model of a function, all weights random."""
    inputs = keras.Input(shape, dtype=dtype)
    model = keras.Model(inputs, build(inputs))
    rng = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(rng.normal(size=variable.shape))
    return model


def folded(model, tolerance=2e-6):
    """The folded model, compared with its source in float64 terms, borders included."""
    shape = [6 if size is None else size for size in model.input_shape[1:]]
    x = np.random.default_rng(1).normal(size=(3, *shape)).astype("float32")
    result = kerasnorm.fold_norms(model)
    for a, b in zip(keras.tree.flatten(model(x)), keras.tree.flatten(result(x)), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * np.abs(a).max())
    return result


def kinds(model):
    plain = [layer for layer in model.layers if layer.weights or type(layer) is layers.Rescaling]
    return [type(layer).__name__ for layer in plain]


def behind(layer, use_bias=True, axis=-1):
    return lambda x: layer(Affine(axis=axis, use_bias=use_bias, name="affine")(x))


_FIRST = {"data_format": "channels_first"}
# (layer behind, input shape, axis of the channels)
WITH_SHIFT = [
    (lambda: layers.Dense(3, activation="tanh"), (4,), -1),
    (lambda: layers.Dense(3, use_bias=False), (5, 4), -1),
    (lambda: layers.EinsumDense("abc,cd->abd", (5, 3), bias_axes="d"), (5, 4), -1),
    (lambda: layers.EinsumDense("abc,cd->abd", (5, 3)), (5, 4), -1),
    (lambda: layers.EinsumDense("abc,bcd->abd", (5, 3)), (5, 4), -1),
    (lambda: layers.EinsumDense("abc,bcd->abd", (5, 3), bias_axes="bd"), (5, 4), 1),
    (lambda: layers.EinsumDense("abc,bcde->ade", (2, 3)), (5, 4), -1),
    (lambda: layers.EinsumDense("...x,xy->...y", 3, bias_axes="y"), (5, 4), -1),
    (lambda: layers.Conv1D(3, 2), (7, 4), -1),
    (lambda: layers.Conv1D(3, 1, padding="causal"), (7, 4), -1),
    (lambda: layers.Conv2D(3, 2, strides=2), (6, 7, 4), -1),
    (lambda: layers.Conv2D(3, 1, padding="same", strides=2, use_bias=False), (6, 7, 4), -1),
    (lambda: layers.Conv2D(6, 2, groups=2, dilation_rate=2), (6, 7, 4), -1),
    (lambda: layers.Conv2D(3, 2, **_FIRST), (4, 6, 7), 1),
    (lambda: layers.Conv3D(3, 2), (4, 5, 4, 2), -1),
    (lambda: layers.DepthwiseConv1D(2, depth_multiplier=3), (7, 4), -1),
    (lambda: layers.DepthwiseConv2D(2, use_bias=False), (6, 7, 4), -1),
    (lambda: layers.SeparableConv1D(3, 2), (7, 4), -1),
    (lambda: layers.SeparableConv2D(3, 2, depth_multiplier=2), (6, 7, 4), -1),
    (lambda: layers.SeparableConv2D(3, 2, use_bias=False), (6, 7, 4), -1),
]
WITHOUT_SHIFT = [
    (lambda: layers.Conv1D(3, 2, padding="causal"), (7, 4), -1),
    (lambda: layers.Conv2D(6, 3, padding="same", groups=2), (6, 7, 4), -1),
    (lambda: layers.DepthwiseConv2D(3, padding="same"), (6, 7, 4), -1),
    (lambda: layers.SeparableConv2D(3, 3, padding="same"), (6, 7, 4), -1),
    (lambda: layers.Conv1DTranspose(3, 2), (7, 4), -1),
    (lambda: layers.Conv2DTranspose(3, 3, padding="same", strides=2), (6, 7, 4), -1),
    (lambda: layers.Conv3DTranspose(3, 2), (4, 5, 4, 2), -1),
]


@pytest.mark.parametrize(("layer", "shape", "axis"), WITH_SHIFT)
def test_into_the_layer_behind(layer, shape, axis):
    layer = layer()
    assert kinds(folded(model_of(behind(layer, axis=axis), *shape))) == [type(layer).__name__]


@pytest.mark.parametrize(("layer", "shape", "axis"), WITHOUT_SHIFT)
def test_into_the_layer_behind_without_a_shift_only(layer, shape, axis):
    own = layer()
    result = folded(model_of(behind(own, use_bias=False, axis=axis), *shape))
    assert kinds(result) == [type(own).__name__]
    own = layer()
    result = folded(model_of(behind(own, axis=axis), *shape))
    assert kinds(result) == ["Rescaling", type(own).__name__]


@pytest.mark.parametrize("dots", [False, True])
@pytest.mark.parametrize(
    ("output", "steps", "units", "merges"),
    [
        ("adb", 5, 3, True),  # Keras adds a bias along axis 1, if the last has another size
        ("adb", 5, 5, False),  # and along the last otherwise
        ("adb", 2, 2, False),
        ("adb", 5, 1, True),  # a single entry is the same along any
        ("abd", 5, 3, True),
        ("abd", 5, 5, True),
    ],
)
def test_a_bias_of_an_einsum_goes_where_keras_adds_it(output, steps, units, merges, dots):
    equation, sizes = f"abc,cd->{output}", {"b": steps, "d": units}
    if dots:
        equation = equation.replace("a", "...")
    own = layers.EinsumDense(equation, [sizes[letter] for letter in output[1:]])
    result = folded(model_of(behind(own), steps, 4))
    assert kinds(result) == (["EinsumDense"] if merges else ["Rescaling", "EinsumDense"])


@pytest.mark.parametrize(("size", "merges"), [(5, True), (3, False)])
def test_a_bias_in_front_of_dots(size, merges):
    own = layers.EinsumDense("ab...,bd->ad...", (3, size))
    result = folded(model_of(behind(own, axis=1), 4, size))
    assert kinds(result) == (["EinsumDense"] if merges else ["Rescaling", "EinsumDense"])


@pytest.mark.parametrize(
    ("equation", "letters"),
    [
        ("abc,cd->abd", "abc"),
        ("...x,xy->...y", "...x"),
        ("...bx,xy->...by", "..bx"),
        ("...bx,xy->...by", ".bx"),
        ("abc...,bd->adc...", "abc.."),
    ],
)
def test_letters_of_the_axes_of_an_input(equation, letters):
    layer = layers.EinsumDense(equation, (2, 2))
    found = [_input_letter(layer, axis, len(letters)) for axis in range(len(letters))]
    assert "".join(found) == letters


def test_a_shift_of_zeros_is_none():
    model = model_of(behind(layers.Conv2D(3, 3, padding="same")), 6, 7, 4)
    model.get_layer("affine").bias.assign(np.zeros(4))
    assert kinds(folded(model)) == ["Conv2D"]


def test_the_arithmetic():
    model = model_of(behind(layers.Dense(3, name="dense")), 4)
    affine, dense = model.get_layer("affine"), model.get_layer("dense")
    a, c = np.array(affine.kernel, "float64"), np.array(affine.bias, "float64")
    kernel, bias = np.array(dense.kernel, "float64"), np.array(dense.bias, "float64")
    plain = kerasnorm.fold_norms(model).get_layer("dense")
    np.testing.assert_array_equal(plain.kernel, (a[:, None] * kernel).astype("float32"))
    np.testing.assert_allclose(plain.bias, bias + c @ kernel, rtol=1e-6)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: layers.Dense(4, use_bias=False), (5,)),
        (lambda: layers.Conv2D(4, 3, padding="same"), (6, 7, 3)),
        (lambda: WeightNorm(layers.Conv2D(4, 3, padding="same")), (6, 7, 3)),
        (lambda: layers.SeparableConv1D(4, 3), (7, 3)),
        (lambda: layers.Conv2DTranspose(4, 3, padding="same"), (6, 7, 3)),
    ],
)
@pytest.mark.parametrize("affine", [Affine, lambda: WeightNorm(Affine())])
def test_into_the_layer_in_front(layer, shape, affine):
    own = layer()
    kind = type(getattr(own, "layer", own)).__name__
    model = model_of(lambda x: layers.ReLU()(affine()(layers.Dropout(0.1)(own(x)))), *shape)
    assert kinds(folded(model, 5e-6)) == [kind]


def test_into_several_layers_behind():
    def build(x):
        x = Affine(name="affine")(x)
        return [layers.Dense(3)(x), layers.Conv1D(2, 2)(x), layers.Dense(2)(x)]

    assert kinds(folded(model_of(build, 7, 4))) == ["Dense", "Conv1D", "Dense"]


def test_from_both_sides_and_in_a_row():
    def build(x):
        x = layers.Dense(4, name="one")(Affine(name="first")(x))
        x = layers.Dense(4, name="two")(Affine(name="second")(Affine(name="third")(x)))
        return layers.ReLU()(Affine(name="fourth")(x))

    assert kinds(folded(model_of(build, 4), 1e-5)) == ["Dense", "Dense"]


def _read_by_an_activation(x):
    x = Affine(name="affine")(x)
    return [layers.Dense(3)(x), layers.ReLU()(x)]


def _is_an_output(x):
    x = Affine(name="affine")(x)
    return [x, layers.Dense(3)(x)]


def _into_a_shared_layer(x):
    dense = layers.Dense(4)
    return dense(layers.ReLU()(dense(Affine(name="affine")(x))))


def _called_twice(x):
    affine = Affine(name="affine")
    return layers.Dense(3)(affine(layers.Dense(4)(affine(x))))


def _another_axis(x):
    return layers.Dense(3)(Affine(axis=1, name="affine")(x))


def _a_bias_of_another_form(x):
    affine = Affine(name="affine")(x)
    return layers.EinsumDense("abc,bcd->abd", (7, 3), bias_axes="d")(affine)


def _into_a_subclass(x):
    class Own(layers.Dense):
        pass

    return Own(3)(Affine(name="affine")(x))


@pytest.mark.parametrize(
    "build",
    [
        _read_by_an_activation,
        _is_an_output,
        _into_a_shared_layer,
        _called_twice,
        _another_axis,
        _a_bias_of_another_form,
        _into_a_subclass,
    ],
)
def test_what_stays(build):
    result = folded(model_of(build, 7, 4), 1e-5)
    assert "Rescaling" in {type(la).__name__ for la in result.layers if la.name == "affine"}


def test_sixteen_bits_stay():
    model = model_of(
        lambda x: layers.Dense(3, dtype="mixed_bfloat16")(Affine(dtype="mixed_bfloat16")(x)), 4
    )
    assert kinds(kerasnorm.fold_norms(model)) == ["Rescaling", "Dense"]


def test_a_swapped_model_keeps_no_affine_in_front_of_a_dense_layer():
    inputs = keras.Input((6, 4))
    x = layers.BatchNormalization(name="bn")(layers.Masking()(inputs))
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    swapped = kerasnorm.swap_norms(model, "weight").model
    # EinsumDense would have dropped the mask
    assert kinds(kerasnorm.fold_norms(swapped)) == ["Dense"]


@pytest.mark.parametrize("between", [(), (layers.Dropout(0.5),)])
def test_names_of_outputs_are_kept(between):
    inputs = keras.Input((4,))
    x = layers.Dense(3, name="dense")(inputs)
    for layer in between:
        x = layer(x)
    model = keras.Model(inputs, Affine(name="answer")(x))
    folded = kerasnorm.fold_norms(model)
    assert folded.output_names == model.output_names
    assert not {"Affine", "Rescaling"} & set(kinds(folded))


def test_baked_models_are_left_as_they_were():
    model = model_of(behind(layers.Dense(3)), 4)
    assert fold_weight_norms(model) is model


# An EinsumDense that is an Affine


def unfolded(equation, output_shape, bias_axes=None, shape=(4, 3), **more):
    layer = layers.EinsumDense(equation, output_shape, bias_axes=bias_axes, **more)
    layer.build((None, *shape))
    rng = np.random.default_rng(0)
    for variable in layer.weights:
        variable.assign(rng.normal(size=variable.shape))
    edit = unfold_affine(layer, [], "again")
    if edit is None:
        return layer, None
    affine = edit.make()
    affine.build((None, *shape))
    edit.fill(affine)
    return layer, affine


@pytest.mark.parametrize(
    ("equation", "bias_axes", "axis"),
    [
        ("abc,c->abc", "c", 2),
        ("abc,c->abc", None, 2),
        ("abc,b->abc", "b", 1),
        ("abc,b->abc", None, 1),
    ],
)
def test_a_diagonal_einsum_is_an_affine(equation, bias_axes, axis):
    layer, affine = unfolded(equation, (4, 3), bias_axes, dtype="float64", trainable=False)
    assert type(affine) is Affine
    assert (affine.axis, affine.name, affine.use_bias) == (axis, "again", bias_axes is not None)
    assert (affine.dtype, affine.trainable) == ("float64", False)
    x = np.random.default_rng(1).normal(size=(2, 4, 3))
    np.testing.assert_allclose(affine(x), layer(x), rtol=1e-12)


@pytest.mark.parametrize(
    ("equation", "output_shape", "more"),
    [
        ("abc,cd->abd", (4, 3), {}),  # no diagonal
        ("abc,bc->abc", (4, 3), {}),  # a gain for each of two axes
        ("abc,c->acb", (3, 4), {}),  # which turns round as well
        ("abc,c->abc", (4, 3), {"bias_axes": "b"}),  # a bias along another axis
        ("abc,c->abc", (4, 3), {"activation": "relu"}),
        ("...c,c->...c", 3, {}),  # whose axis is not known
    ],
)
def test_other_einsums_are_none(equation, output_shape, more):
    assert unfolded(equation, output_shape, **more)[1] is None
