"""`fold_norms`: plain Keras layers, the same function."""

from __future__ import annotations

import subprocess
import sys

import keras
import numpy as np
import pytest
import tiny_models
from helpers import answer_without_kerasnorm
from keras import layers

import kerasnorm
from kerasnorm import Affine, SwapError, WeightNorm
from kerasnorm.swap.fold import fold_weight_norms


def test_the_folded_file_loads_without_kerasnorm(tmp_path):
    model = kerasnorm.swap_norms(tiny_models.nested(), "weight").model
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype("float32")
    kerasnorm.fold_norms(model).save(tmp_path / "plain.keras")
    received = answer_without_kerasnorm(tmp_path / "plain.keras", x)
    np.testing.assert_allclose(received, model(x), rtol=1e-5, atol=1e-5)


def test_the_swapped_file_loads_where_kerasnorm_is_imported(tmp_path):
    model = kerasnorm.swap_norms(tiny_models.nested(), "weight").model
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype("float32")
    model.save(tmp_path / "swapped.keras")
    np.save(tmp_path / "x.npy", x)
    code = (
        "import kerasnorm, keras, numpy as np\n"
        f"model = keras.models.load_model(r'{tmp_path / 'swapped.keras'}')\n"
        f"np.save(r'{tmp_path / 'y.npy'}', model(np.load(r'{tmp_path / 'x.npy'}')))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), model(x), rtol=1e-6, atol=1e-6)


def wrapped(layer, shape, before=()):
    inputs = keras.Input(shape)
    x = inputs
    for step in before:
        x = step(x)
    model = keras.Model(inputs, layer(x))
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if variable.path.split("/")[-1] == "moving_variance":
            variable.assign(rng.uniform(0.5, 2, size=variable.shape))
        else:
            variable.assign(rng.normal(size=variable.shape))
    return model


@pytest.mark.parametrize(
    ("layer", "shape", "plain"),
    [
        (lambda: WeightNorm(layers.Dense(3, activation="tanh")), (4,), "Dense"),
        (lambda: WeightNorm(layers.SeparableConv2D(3, 2)), (5, 6, 2), "SeparableConv2D"),
        (lambda: WeightNorm(Affine()), (4,), "Rescaling"),
        (lambda: Affine(), (5, 7, 4), "Rescaling"),
        (lambda: Affine(axis=1), (4, 5, 7), "Rescaling"),
        (lambda: Affine(axis=2, use_bias=False), (5, 4, 7), "Rescaling"),
        (lambda: Affine(), (None, None, 4), "Rescaling"),
        (lambda: kerasnorm.BatchNorm(epsilon=1e-2), (5, 4), "Rescaling"),
        (lambda: kerasnorm.BatchNorm(axis=1, scale=False), (5, 4), "Rescaling"),
        (lambda: Affine(dtype="float64"), (5, 4), "Rescaling"),
        (lambda: kerasnorm.LayerNorm(), (5, 4), "LayerNormalization"),
        (lambda: kerasnorm.LayerNorm(axis=(1, 2), center=False), (5, 4), "LayerNormalization"),
        (lambda: kerasnorm.LayerNorm(scalar_affine=True), (5, 4), "LayerNormalization"),
        (lambda: kerasnorm.LayerNorm(axis="sample"), (5, 6, 4), "GroupNormalization"),
        (lambda: kerasnorm.LayerNorm(axis="sample"), (None, None, 4), "GroupNormalization"),
        (
            lambda: kerasnorm.LayerNorm(axis="sample", channel_axis=1, scalar_affine=True),
            (4, 5, 6),
            "GroupNormalization",
        ),
    ],
)
def test_each_fold_is_exact(layer, shape, plain):
    model = wrapped(layer(), shape)
    folded = kerasnorm.fold_norms(model)
    assert type(folded.layers[-1]).__name__ == plain
    assert folded.output_shape == model.output_shape
    sizes = [6 if size is None else size for size in shape]
    x = np.random.default_rng(1).normal(size=(3, *sizes)).astype("float32")
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-6, atol=1e-6)


def test_the_source_is_not_touched():
    model = wrapped(WeightNorm(layers.Dense(3)), (4,))
    before = model.get_weights()
    folded = kerasnorm.fold_norms(model)
    for variable in folded.variables:
        variable.assign(variable * 0)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_names_do_not_collide():
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="dense")(inputs)
    model = keras.Model(inputs, WeightNorm(layers.Dense(3, name="dense"), name="normed")(x))
    assert [layer.name for layer in kerasnorm.fold_norms(model).layers][1:] == ["dense", "normed"]

    def twice(x):
        for name in ("first", "second"):
            x = WeightNorm(layers.Dense(3, name="dense"), name=name)(x)
        return layers.ReLU()(x)

    folded = kerasnorm.fold_norms(keras.Model(inputs, twice(inputs)))
    assert [layer.name for layer in folded.layers][1:3] == ["dense", "second"]


@pytest.mark.parametrize("between", [(), (layers.Dropout(0.5),)])
def test_outputs_keep_their_names(between):
    inputs = keras.Input((4,))
    x = layers.Dense(3, name="dense")(inputs)
    for layer in between:
        x = layer(x)
    normed = layers.BatchNormalization(name="out")(x)
    model = keras.Model(inputs, [normed, layers.Dense(2, name="beside")(inputs)])
    model.compile("sgd", {"out": "mse", "beside": "mae"})
    swap = kerasnorm.swap_norms(model, "weight")
    assert swap.report.sites[0].partner == "dense"
    assert swap.model.output_names == ["out", "beside"]
    folded = kerasnorm.fold_norms(swap.model)
    assert folded.output_names == ["out", "beside"]
    folded.evaluate(np.ones((4, 4)), [np.ones((4, 3)), np.ones((4, 2))], verbose=0)


def test_a_layer_is_folded_for_all_the_models_that_call_it():
    norm = layers.BatchNormalization()
    small, large = keras.Input((4, 4, 3)), keras.Input((8, 8, 3))
    inner = keras.Model(small, layers.ReLU()(norm(layers.ReLU()(small))))
    x = layers.AveragePooling2D(2)(layers.ReLU()(norm(layers.ReLU()(large))))
    model = kerasnorm.swap_norms(keras.Model(large, inner(x)), "weight").model
    folded = kerasnorm.fold_norms(model)
    image = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(folded(image), model(image), rtol=1e-5, atol=1e-5)
    assert not folded.variables
    kinds = [type(layer).__name__ for layer in folded._flatten_layers()]
    assert kinds.count("Rescaling") == 1  # it is one layer still


def called_on_two_ranks(affine):
    inputs = keras.Input((5, 5))
    return keras.Model(inputs, [affine(layers.ReLU()(inputs)), affine(layers.ReLU()(inputs)[:, 0])])


def test_an_affine_called_on_two_ranks():
    model = called_on_two_ranks(Affine(name="affine", bias_initializer="ones"))
    folded = kerasnorm.fold_norms(model)
    x = np.random.default_rng(0).normal(size=(2, 5, 5)).astype("float32")
    for expected, received in zip(model(x), folded(x), strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-6)


def test_an_affine_called_on_two_ranks_from_the_front_is_named():
    with pytest.raises(SwapError, match=r"'affine' \(its inputs differ in how many axes"):
        kerasnorm.fold_norms(called_on_two_ranks(Affine(axis=1, name="affine")))


def test_a_model_of_plain_layers_is_copied():
    model = tiny_models.dense_bn()
    folded = kerasnorm.fold_norms(model)
    assert folded is not model
    x = np.ones((2, 5), "float32")
    np.testing.assert_array_equal(folded(x), model(x))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Dense(3),
        lambda: layers.Dense(3, use_bias=False, activation="tanh"),
        lambda: layers.EinsumDense("ab,bcd->acd", (2, 3)),
        lambda: layers.EinsumDense("ab,bcd->acd", (2, 3), bias_axes="cd"),
    ],
)
def test_a_moving_mean_goes_into_the_bias(layer):
    model = wrapped(WeightNorm(layer(), mean_only="batch"), (4,))
    mean = model.layers[-1].moving_mean
    mean.assign(np.random.default_rng(2).normal(size=mean.shape))
    x = np.random.default_rng(1).normal(size=(3, 4)).astype("float32")
    for folded in (kerasnorm.fold_norms(model), fold_weight_norms(model)):
        assert type(folded.layers[-1]).__module__.startswith("keras")
        np.testing.assert_allclose(folded(x), model(x), rtol=1e-5, atol=1e-6)


def test_the_mean_of_each_sample_stays():
    model = wrapped(WeightNorm(layers.Dense(3), mean_only="layer", name="normed"), (4,))
    assert fold_weight_norms(model) is model
    with pytest.raises(SwapError, match=r"'normed' \(its mean has no place in a bias"):
        kerasnorm.fold_norms(model)


def test_what_cannot_be_folded_is_named():
    inputs = keras.Input((6, 4))
    step = kerasnorm.CosineNorm(layers.Dense(3), name="step")
    x = layers.TimeDistributed(step, name="steps")(inputs)
    x = kerasnorm.CosineNorm(layers.Dense(2), name="cosine")(x)
    with pytest.raises(SwapError, match=r"'steps/step' \(CosineNorm\).*'cosine' \(CosineNorm\)"):
        kerasnorm.fold_norms(keras.Model(inputs, x))


def test_what_code_holds_and_does_not_call_is_named():
    class Holder(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.used, self.unused = Affine(name="used"), Affine(name="unused")

        def build(self, input_shape):
            self.used.build(input_shape)
            self.unused.build(input_shape)

        def call(self, inputs):
            return self.used(inputs)

    with pytest.raises(SwapError, match=r"'holder/unused' \(Affine in holder\)"):
        kerasnorm.fold_norms(keras.Sequential([keras.Input((4,)), Holder(name="holder")]))


def test_layers_inside_time_distributed_are_folded():
    inputs = keras.Input((6, 4))
    normed = layers.TimeDistributed(WeightNorm(layers.Dense(3, name="dense")))(inputs)
    model = keras.Model(inputs, layers.TimeDistributed(Affine(bias_initializer="ones"))(normed))
    folded = kerasnorm.fold_norms(model)
    inner = [type(layer.layer).__name__ for layer in folded.layers[1:]]
    assert inner == ["Dense", "Rescaling"]
    x = np.random.default_rng(0).normal(size=(2, 6, 4)).astype("float32")
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-5, atol=1e-6)


def test_vectors_where_images_have_their_channels_first():
    """Rescaling would lay their scale out along a third axis there."""
    keras.config.set_image_data_format("channels_first")
    try:
        for shape, kind in (((4,), "EinsumDense"), ((5, 4), "Rescaling"), ((4, 5, 6), "Rescaling")):
            model = wrapped(Affine(axis=1), shape)
            folded = kerasnorm.fold_norms(model)
            assert type(folded.layers[-1]).__name__ == kind
            x = np.random.default_rng(1).normal(size=(4, *shape)).astype("float32")
            np.testing.assert_allclose(folded(x), model(x), rtol=1e-6, atol=1e-6)
    finally:
        keras.config.set_image_data_format("channels_last")


def test_bake_leaves_affine_and_brings_it_back():
    model = wrapped(WeightNorm(Affine(axis=1, name="affine")), (4, 5))
    x = np.random.default_rng(1).normal(size=(3, 4, 5)).astype("float32")
    einsum = wrapped(layers.EinsumDense("abc,b->abc", (4, 5), bias_axes="b"), (4, 5))
    for source in (model, einsum):
        folded = fold_weight_norms(source)
        assert isinstance(folded.layers[-1], Affine)
        np.testing.assert_allclose(folded(x), source(x), rtol=1e-6, atol=1e-6)
    plain = tiny_models.no_bn()
    assert fold_weight_norms(plain) is plain
    einsum = wrapped(layers.EinsumDense("ab,bc->ac", 3), (4,))
    assert fold_weight_norms(einsum) is einsum


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.Bidirectional(WeightNorm(layers.LSTM(3))),
        lambda: layers.RNN(WeightNorm(layers.LSTMCell(3))),
        lambda: layers.RNN([WeightNorm(layers.LSTMCell(3)), layers.GRUCell(2)]),
        lambda: layers.Bidirectional(layers.RNN(WeightNorm(layers.GRUCell(3)))),
    ],
    ids=["bidirectional", "cell", "one of several cells", "cell in both directions"],
)
def test_layers_in_recurrent_ones(make, tmp_path):
    """These run what they hold in their own way, which is not followed."""
    layer = make()
    model = keras.Sequential([keras.Input((6, 4)), layer, layers.BatchNormalization()])
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(variable + rng.normal(0, 0.3, variable.shape))
    before = [np.array(variable) for variable in model.variables]
    x = rng.normal(size=(5, 6, 4)).astype("float32")
    plain = kerasnorm.fold_norms(model)
    np.testing.assert_allclose(plain(x), model(x), atol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.variables, strict=True))
    names = [part.name for part in plain.layers[0]._flatten_layers(recursive=False)]
    assert len(names) == len(set(names))
    plain.save(tmp_path / "plain.keras")
    loaded = keras.models.load_model(tmp_path / "plain.keras")
    assert not any("kerasnorm" in type(part).__module__ for part in loaded._flatten_layers())
    np.testing.assert_allclose(loaded(x), plain(x), atol=1e-6)


def test_what_a_recurrent_layer_holds_that_has_no_plain_form_is_named():
    for wrapped in (lambda layer: layer, layers.Bidirectional):
        rnn = layers.RNN(kerasnorm.layers.LayerNormLSTMCell(3, name="cell"))
        model = keras.Sequential([keras.Input((6, 4)), wrapped(rnn)])
        with pytest.raises(SwapError, match=r"'cell' \(LayerNormLSTMCell in "):
            kerasnorm.fold_norms(model)
