"""Data that the model was not trained on is told by what its first BatchNorm remembers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tiny_models

import kerasnorm
from kerasnorm.errors import DataError


@pytest.fixture(scope="module")
def model():
    """A model whose statistics are those of standard normal images."""
    keras.utils.set_random_seed(0)
    model = tiny_models.conv_bn_relu()
    kerasnorm.estimate_statistics(model, images(400))
    return model


def images(count=100, seed=0):
    shape = tiny_models.conv_bn_relu().input_shape[1:]
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


def warnings_of(model, data, target="layer", **options):
    found = kerasnorm.swap_norms(model, target, data, **options).report.warnings
    return [warning for warning in found if "unlike" in warning]


OTHERS = pytest.mark.parametrize(
    "change",
    [lambda x: 10 * x, lambda x: x + 10, lambda x: 0.1 * x],
    ids=["too large", "shifted", "too small"],
)
FAR = pytest.mark.parametrize(
    "change",
    [lambda x: 120 * x, lambda x: 0 * x, lambda x: x + 200, lambda x: 0.02 * x],
    ids=["too large", "empty", "shifted", "too small"],
)


@OTHERS
def test_data_of_another_scale_is_warned_of(change, model, closed_form):
    swap = kerasnorm.swap_norms(model, "layer", change(images()))
    [warning] = [warning for warning in swap.report.warnings if "unlike" in warning]
    [site] = kerasnorm.inspect_norms(model).sites[:1]
    assert f"at '{site.name}'" in warning
    assert "Scale them as for training" in warning
    assert swap.report.unlike_data in warning
    assert swap.report.to_dict()["unlike_data"] == swap.report.unlike_data


@OTHERS
def test_it_is_an_error_where_warnings_are(change, model):
    with pytest.raises(DataError, match=r"deviation is .* times the stored one"):
        kerasnorm.swap_norms(model, "layer", change(images()), strict=True)


@FAR
@pytest.mark.parametrize("target", ["layer", "group", "cosine"])
def test_data_far_from_that_of_the_training_is_refused(change, target, model, closed_form):
    with pytest.raises(DataError, match=r"Scale it as for training.*allow_unlike_data=True"):
        kerasnorm.swap_norms(model, target, change(images()))


@FAR
def test_the_advice_works(change, model, closed_form):
    assert warnings_of(model, images()) == []
    [_] = warnings_of(model, change(images()), allow_unlike_data=True)


def test_it_is_not_asked_of_what_needs_no_data(model):
    assert warnings_of(model, 120 * images(), "weight") == []


def test_a_nested_model_tells_too(closed_form):
    backbone = tiny_models.conv_bn_relu()
    inputs = keras.Input(backbone.input_shape[1:])
    nested = keras.Model(inputs, keras.layers.Dense(3)(backbone(inputs)))
    kerasnorm.estimate_statistics(nested, images(400))
    assert warnings_of(nested, images()) == []
    with pytest.raises(DataError, match="must be like that of the training"):
        kerasnorm.swap_norms(nested, "layer", 255 * images())


def test_statistics_that_were_never_trained_tell_nothing(closed_form):
    assert warnings_of(tiny_models.conv_bn_relu(), 255 * images()) == []


@pytest.mark.parametrize(
    "change", [lambda x: x, lambda x: 0.5 * x + 0.2, lambda x: 2 * x], ids=["same", "dim", "bright"]
)
def test_other_data_of_the_same_kind_is_not(change, model, closed_form):
    assert warnings_of(model, change(images(seed=1))) == []


def test_data_that_nothing_is_fitted_to_is_said(model):
    notes = kerasnorm.swap_norms(model, "weight", images()).report.notes
    assert "the data is not used: nothing here is fitted" in notes


def test_a_file_name_is_no_model():
    for function in (kerasnorm.inspect_norms, lambda m: kerasnorm.swap_norms(m, "weight")):
        with pytest.raises(kerasnorm.SwapError, match=r"kerasnorm.load_model\(path\)"):
            function("model.keras")


def test_batches_of_one_and_batches_of_a_fixed_size(closed_form):
    x = np.random.default_rng(0).normal(size=(96, 6)).astype("float32")
    for size in (None, 96):
        inputs = keras.Input(batch_shape=(size, 6))
        outputs = keras.layers.BatchNormalization()(keras.layers.Dense(4)(inputs))
        model = keras.Model(inputs, outputs)
        kerasnorm.estimate_statistics(model, iter([x]))
        report = kerasnorm.swap_norms(model, "layer", x, batch_size=size or 1).report
        assert not any("unlike" in warning for warning in report.warnings), report.warnings


def test_samples_one_by_one(closed_form):
    x = np.random.default_rng(0).normal(size=(96, 6)).astype("float32")
    inputs = keras.Input(batch_shape=(1, 6))
    outputs = keras.layers.BatchNormalization()(keras.layers.Dense(4)(inputs))
    model = keras.Model(inputs, outputs)
    norm = model.layers[-1]
    seen = x @ model.layers[1].kernel.numpy()
    norm.moving_mean.assign(seen.mean(0))
    norm.moving_variance.assign(seen.var(0))
    assert warnings_of(model, x) == []
    with pytest.raises(DataError, match="must be like that of the training"):
        kerasnorm.swap_norms(model, "layer", 255 * x)


def test_images_of_many_sizes_one_by_one(closed_form):
    inputs = keras.Input((None, None, 4))
    norm = keras.layers.BatchNormalization()
    conv = keras.layers.Conv2D(4, 1)
    model = keras.Model(inputs, keras.layers.Conv2D(4, 1)(norm(conv(inputs))))
    conv.kernel.assign(np.eye(4)[None, None])
    norm.moving_mean.assign([0.5] * 4)
    norm.moving_variance.assign([0.1] * 4)
    levels = np.random.default_rng(0).normal(0.5, 0.3, size=30)
    plain = [np.full((1, 4, 4 + n, 4), level, "float32") for n, level in enumerate(levels)]
    assert warnings_of(model, iter(plain)) == []


def test_channels_that_are_dead_tell_nothing(closed_form):
    x = np.random.default_rng(0).normal(size=(96, 6)).astype("float32")
    hidden, norm = keras.layers.Dense(16, activation="relu"), keras.layers.BatchNormalization()
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(3)(norm(hidden(inputs))))
    hidden.bias.assign([-100.0] * 10 + [0.0] * 6)
    kerasnorm.estimate_statistics(model, x)
    norm.moving_variance.assign(np.maximum(norm.moving_variance.numpy(), 1e-6))  # after 0.99ⁿ
    assert warnings_of(model, x) == []
    with pytest.raises(DataError, match="must be like that of the training"):
        kerasnorm.swap_norms(model, "layer", 255 * x)


@pytest.mark.parametrize("rate", [0.003, 0.0005])
def test_features_that_few_samples_have_do_not(rate, closed_form):
    words = (np.random.default_rng(0).random((2000, 300)) < rate).astype("float32")
    inputs, norms = keras.Input((300,)), keras.layers.BatchNormalization
    hidden = keras.layers.Dense(8)(norms()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(norms()(hidden)))
    kerasnorm.estimate_statistics(model, words)
    assert warnings_of(model, words[:200]) == []
    with pytest.raises(DataError, match="must be like that of the training"):
        kerasnorm.swap_norms(model, "layer", 255 * words[:200])


def test_one_channel_of_outliers_does_not_outweigh_the_others(closed_form):
    x = np.random.default_rng(0).normal(size=(400, 6)).astype("float32")
    x[300, 0] = 1e5
    inputs, norm = keras.Input((6,)), keras.layers.BatchNormalization()
    model = keras.Model(inputs, keras.layers.Dense(3)(norm(inputs)))
    kerasnorm.estimate_statistics(model, x)
    assert warnings_of(model, x[:200]) == []


def test_padding_does_not_count(closed_form):
    random = np.random.default_rng(0)
    tokens = np.zeros((100, 400), "int32")
    tokens[:, :2] = random.integers(1, 20, size=(100, 2))
    inputs, norm = keras.Input((400,), dtype="int32"), keras.layers.BatchNormalization()
    vectors = keras.layers.Embedding(20, 4, mask_zero=True)
    hidden = keras.layers.GlobalAveragePooling1D()(norm(vectors(inputs)))
    model = keras.Model(inputs, keras.layers.Dense(3)(hidden))
    vectors.embeddings.assign(random.normal(size=(20, 4)) * (np.arange(20) > 0)[:, None])
    kerasnorm.estimate_statistics(model, tokens)
    assert warnings_of(model, tokens, "layer") == []


def test_statistics_that_have_not_settled_tell_nothing(closed_form):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    norm = keras.layers.BatchNormalization(momentum=0.99)
    model = keras.Model(inputs, keras.layers.ReLU()(norm(keras.layers.Conv2D(8, 3)(inputs))))
    x = 0.02 * images(200)[:, :8, :8]
    for start in range(0, 200, 20):  # which leave nine tenths of the initial variance
        model(x[start : start + 20], training=True)
    assert warnings_of(model, x) == []
    kerasnorm.estimate_statistics(model, x)
    assert warnings_of(model, x) == []
    with pytest.raises(DataError, match="must be like that of the training"):
        kerasnorm.swap_norms(model, "layer", 255 * x)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_inputs_that_overflow_on_the_way_are_said_to_be_not_finite():
    x = keras.Input((8,))
    y = keras.layers.Dense(32, kernel_initializer="ones")(x)
    y = keras.layers.Dense(32)(keras.layers.Dense(32)(y))
    y = keras.layers.ReLU()(keras.layers.BatchNormalization(name="bn")(y))
    model = keras.Model(x, keras.layers.Dense(2)(y))
    draw = np.random.default_rng(0)
    kerasnorm.estimate_statistics(model, draw.normal(size=(400, 8)).astype("float32"))
    data = 1e38 * draw.normal(size=(100, 8)).clip(-1, 1).astype("float32")
    with pytest.raises(DataError, match=r"at 'bn' they are not finite \(NaN") as caught:
        kerasnorm.swap_norms(model, "layer", data)
    assert "times" not in str(caught.value)
    assert "nan" not in str(caught.value)
