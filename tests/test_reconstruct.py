"""The short training after the closed-form fits: what it compares, when it runs, what it brings."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tiny_models
from fidelity import all_layers, every_site, randomize
from helpers import assert_close
from keras import layers

import kerasnorm
from kerasnorm import CosineNorm, WeightNorm
from kerasnorm.distillation import reconstruct
from kerasnorm.distillation.features import common_features
from kerasnorm.distillation.reconstruct import Reconstruction, multiplications
from kerasnorm.distillation.strided_pointwise import stride_before_pointwise
from kerasnorm.graph.model_graphs import graphs_of
from kerasnorm.swap import calibrate

BN = layers.BatchNormalization


@pytest.fixture(autouse=True)
def however_near(monkeypatch):
    """Training follows the fits however near these bring the answers, and is short."""
    monkeypatch.setattr(calibrate, "_NEAR_ENOUGH", -1.0)
    monkeypatch.setattr(reconstruct, "_EPOCHS", 4)


@pytest.fixture
def training_stays(monkeypatch):
    """Nothing chooses by the answers, which a short training of a random model may harm."""
    monkeypatch.setattr(calibrate, "_answer_loss", lambda *_: None)
    monkeypatch.setattr(reconstruct, "_EPOCHS", 2)


def images(rows=200, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(rows, 4, 4, 3)).repeat(2, 1).repeat(2, 2)
    return (coarse + 0.3 * rng.normal(size=(rows, 8, 8, 3))).astype("float32")


def one_site():
    return as_trained(tiny_models.conv_bn_relu())


def residual():
    return as_trained(tiny_models.residual())


def as_trained(source):
    randomize(source, images())
    for layer in source.layers:  # gains near 1, as trained ones are
        if isinstance(layer, BN):
            layer.gamma.assign(1.0 + 0.2 * layer.gamma)
    return source


@pytest.mark.parametrize("target", [pytest.param("layer", marks=pytest.mark.slow), "cosine"])
def test_it_brings_the_model_nearer_on_samples_that_it_never_saw(
    target, training_stays, monkeypatch
):
    monkeypatch.setattr(reconstruct, "_EPOCHS", 10)
    source, data, x = residual(), images(300), images(seed=9)
    trained = kerasnorm.swap_norms(source, target, data, sites=every_site)
    monkeypatch.setattr(Reconstruction, "run", lambda *_: False)
    fitted = kerasnorm.swap_norms(source, target, data, sites=every_site)
    assert trained.report.trained
    assert not fitted.report.trained
    lost = []
    for swap in (fitted, trained):
        features = common_features(graphs_of(swap.model), graphs_of(source))
        ends = keras.Model(source.input, [f.teacher for f in features])(x)
        received = keras.Model(swap.model.input, [f.student for f in features])(x)
        lost.append(np.mean([1 - r_squared_of(*p) for p in zip(ends, received, strict=True)]))
    assert lost[1] < 0.95 * lost[0]


def r_squared_of(expected, received):
    expected, received = (np.asarray(y, "float64") for y in (expected, received))
    channels = tuple(range(expected.ndim - 1))
    spread = np.square(expected - expected.mean(channels)).sum()
    return 1 - np.square(expected - received).sum() / spread


def test_answers_that_are_near_enough_are_not_trained_on(monkeypatch):
    source, data = one_site(), images()
    monkeypatch.setattr(reconstruct, "_EPOCHS", 1)
    monkeypatch.setattr(calibrate, "_NEAR_ENOUGH", 10.0)
    near = kerasnorm.swap_norms(source, "layer", data).report
    (note,) = (note for note in near.notes if "trained" in note)
    assert note.startswith("not trained after the fits, which bring the answers near enough (loss ")
    assert not near.trained
    loss = float(note.split("loss ")[1].split(",")[0])
    monkeypatch.setattr(calibrate, "_NEAR_ENOUGH", 0.5 * loss)
    far = kerasnorm.swap_norms(source, "layer", data).report
    assert any("trained for 1 epoch" in text for text in [*far.notes, *far.doubts])


def test_the_same_seed_and_data_give_the_same_weights(training_stays):
    source, data = one_site(), images(100)
    weights = []
    for seed in (3, 3, 4):
        keras.utils.set_random_seed(seed + 10)  # of no account
        weights.append(
            kerasnorm.swap_norms(
                source, "layer", data, seed=seed, sites=every_site
            ).model.get_weights()
        )
    assert all(np.array_equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert any((a != b).any() for a, b in zip(weights[0], weights[2], strict=True))


@pytest.mark.parametrize(
    ("target", "unit"),
    [
        ("layer", 1 / 255),
        pytest.param("layer", 1000.0, marks=pytest.mark.slow),
        pytest.param("cosine", 1 / 255, marks=pytest.mark.slow),
        pytest.param("cosine", 1000.0, marks=pytest.mark.slow),
    ],
)
def test_a_twin_in_other_units_is_trained_alike(target, unit, training_stays, monkeypatch):
    monkeypatch.setattr(reconstruct, "_EPOCHS", 4)
    source, data, x = residual(), images(200), images(seed=9)
    twin = keras.models.clone_model(source)
    twin.set_weights(source.get_weights())
    for layer in twin.layers:
        if isinstance(layer, layers.Conv2D) and layer.input is twin.input:
            layer.kernel.assign(layer.kernel * unit)
    swaps = [
        kerasnorm.swap_norms(source, target, data, sites=every_site),
        kerasnorm.swap_norms(twin, target, (data / unit).astype("float32"), sites=every_site),
    ]
    assert all(swap.report.trained for swap in swaps)
    inputs = x, (x / unit).astype("float32")
    answers = [np.asarray(swap.model(x)) for swap, x in zip(swaps, inputs, strict=True)]
    apart = answers[0] - answers[1]
    # rounding in float32, which the steps of training carry on
    assert np.abs(apart).max() < 2e-3 * np.asarray(source(x)).std()


@pytest.mark.parametrize(
    "target", ["layer", "cosine", pytest.param("group", marks=pytest.mark.slow)]
)
def test_data_in_which_nothing_varies_ends_well(target):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    source = keras.Model(inputs, BN()(layers.Conv2D(4, 3)(inputs)))
    with pytest.warns(kerasnorm.errors.FidelityWarning):
        swap = kerasnorm.swap_norms(source, target, np.zeros((120, 8, 8, 1), "float32"))
    assert np.isfinite(np.asarray(swap.model(np.zeros((2, 8, 8, 1), "float32")))).all()


def test_two_threads_give_what_one_gives(monkeypatch):
    monkeypatch.setattr(reconstruct, "_EPOCHS", 1)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((100, 4))
    source = keras.Model(inputs, layers.Dense(3)(BN()(layers.Dense(6)(inputs))))
    # more positions than a fit takes, so that they are drawn
    data = np.random.default_rng(0).normal(size=(240, 100, 4)).astype("float32")
    together = threading.Barrier(2, timeout=60)

    def weights_of(target, at_once=False):
        def batches():
            yield from np.split(data, 8)
            if at_once:
                together.wait()

        swap = kerasnorm.swap_norms(source, target, batches(), seed=len(target))
        return swap.model.get_weights()

    targets = ["layer", "cosine"]
    expected = [weights_of(target) for target in targets]
    with ThreadPoolExecutor(2) as threads:
        received = list(threads.map(weights_of, targets, [True, True]))
    for one, two in zip(expected, received, strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("target", ["layer", pytest.param("cosine", marks=pytest.mark.slow)])
def test_the_report_is_of_the_trained_model_on_held_out_samples(target):
    source, data = residual(), images()
    swap = kerasnorm.swap_norms(source, target, data, sites=every_site)
    held_out = data[9::10]
    for site in swap.report.sites:
        place = swap.report.layers[site.name]
        expected, received = (
            keras.Model(model.input, model.get_layer(name).output)(held_out)
            for model, name in ((source, site.name), (swap.model, place))
        )
        # both models run in other batches here, and 1 − R² is a difference of what they round
        assert_close(site.fit, r_squared_of(expected, received), factor=100)
    said = swap.report.agreement
    answers = [np.asarray(model(held_out), "float64") for model in (source, swap.model)]
    same = np.mean(answers[0].argmax(-1) == answers[1].argmax(-1))
    assert said.samples == 20
    assert said.same_answers == same
    # as above
    assert_close(said.fit, r_squared_of(*answers), factor=100)
    assert f"20 samples held out: {same:.1%} same answers" in str(swap.report)
    assert swap.report.to_dict()["agreement"]["samples"] == 20


def test_a_site_that_fits_badly_is_warned_of():
    x = np.random.default_rng(0).normal(size=(200, 8, 8, 3))
    # patches of one length or another, which is all that the source's answer is about
    x = (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype("float32")
    x *= np.random.default_rng(1).uniform(0.1, 10, (200, 1, 1, 1)).astype("float32")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 1, kernel_initializer="ones", name="sum")(layers.ReLU()(inputs))
    source = keras.Model(inputs, BN(name="bn")(y))
    randomize(source, x)
    report = kerasnorm.swap_norms(source, "cosine", x, damping=0).report
    assert report.poor == list(report.sites)
    assert "warning: 1 site keeps less than half" in str(report)


def test_large_models_are_not_trained(monkeypatch):
    source, data = residual(), images(100)
    each = multiplications(graphs_of(source), [data])
    # a 3x3 and a 1x1 of 3 channels; two 3x3 of 8 in the first block less one, two in the second
    by_hand = 64 * (3 * 8 * 9 + 8 * 8 * 9 + 3 * 8 + 2 * 8 * 8 * 9 + 8 * 8) + 8 * 5
    assert each == by_hand
    monkeypatch.setattr(reconstruct, "_EPOCHS", 20)
    of_all = each * 100
    for work, expected in ((20 * of_all, 20), (5 * of_all, 5), (4 * of_all, 0), (each * 99, 0)):
        monkeypatch.setattr(reconstruct, "_WORK", work)
        reconstruction = Reconstruction(graphs_of(source), 2**31)
        assert len(list(reconstruction.collect([[data[:50]], [data[50:]]]))) == 2
        assert reconstruction.epochs == expected
    monkeypatch.setattr(reconstruct, "_WORK", 1)
    report = kerasnorm.swap_norms(source, "layer", data).report
    assert not report.trained
    assert [
        note for note in report.notes if "not trained after the fits: the model is large" in note
    ]
    assert report.agreement.samples == 10


def test_samples_are_held_within_a_quarter_of_the_budget():
    data = images(100)
    reconstruction = Reconstruction(graphs_of(residual()), 4 * data.nbytes - 4)
    list(reconstruction.collect([[data]]))
    assert reconstruction.epochs == 0
    assert not reconstruction.run(residual(), [], 0)
    [note] = reconstruction.notes
    assert "at least 100 samples of one shape and within the memory budget, and there are 0" in note


def test_other_backends_and_frozen_models_are_not_trained(monkeypatch):
    source = residual()
    source.trainable = False
    report = kerasnorm.swap_norms(source, "layer", images(100)).report
    assert not report.trained
    assert "not trained after the fits: no layer that was fitted is trainable" in report.notes
    reconstruction = Reconstruction(graphs_of(source), 2**31)
    list(reconstruction.collect([[images(100)]]))
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert reconstruction.epochs == 0
    assert not reconstruction.run(source, [], 0)
    assert reconstruction.notes == [
        "not trained after the fits: it needs Keras on the TensorFlow backend, and this is jax"
    ]


def test_training_that_brings_nothing_is_said(monkeypatch):
    source, data = one_site(), images(100)
    monkeypatch.setattr("kerasnorm.distillation.training.LEARNING_RATE", 1e9)
    monkeypatch.setattr(reconstruct, "_EPOCHS", 1)
    trained = kerasnorm.swap_norms(source, "layer", data)
    assert not trained.report.trained
    (warning,) = (text for text in trained.report.warnings if "trained" in text)
    assert warning.startswith("trained for 1 epoch after the fits, which brought nothing (loss ")
    assert warning.endswith("): it is left out")
    monkeypatch.setattr(Reconstruction, "run", lambda *_: False)
    fitted = kerasnorm.swap_norms(source, "layer", data).model.get_weights()
    for a, b in zip(trained.model.get_weights(), fitted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_work_is_counted_in_wrappers_and_at_the_size_of_the_data():
    inputs = keras.Input((5, None, None, 3))
    conv = layers.TimeDistributed(layers.Conv2D(4, 3, padding="same"))
    model = keras.Model(inputs, BN()(conv(inputs)))
    data = [np.zeros((2, 5, 16, 16, 3), "float32")]
    # as if each weight met every place of the input, the steps in time included
    assert multiplications(graphs_of(model), data) == 5 * 16 * 16 * (3 * 3 * 3 * 4)


def test_few_samples_are_fitted_and_no_more():
    swap = kerasnorm.swap_norms(residual(), "layer", images(12), sites=every_site)
    assert not swap.report.trained
    assert "it needs at least 100 samples, and there are 12" in str(swap.report)
    assert swap.report.agreement is None
    assert all(site.fit > 0.5 for site in swap.report.sites)


def test_what_was_not_fitted_is_not_trained():
    source = residual()
    to = {"bn_1": "weight", "bn_2": "layer", "bn_2_end": "cosine"}
    swap = kerasnorm.swap_norms(source, to, images())
    assert swap.report.trained
    bare = kerasnorm.swap_norms(source, {"bn_1": "weight"}).model
    left = ["conv_1", "bn_1_end", "bn_1_short", "bn_2_short"]
    for name in left:  # sites left alone, exact ones, and what is in front of the first fitted one
        for old, new in zip(
            bare.get_layer(name).weights, swap.model.get_layer(name).weights, strict=True
        ):
            np.testing.assert_array_equal(new, old, err_msg=name)
    differences = swap.compare(images(seed=3))
    assert max(differences[name] for name in ("bn_1", "bn_1_end", "bn_1_short")) < 1e-4


def test_models_by_code_are_trained_on_their_answers():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = layers.Conv2D(6, 3, use_bias=False), BN(name="bn")
            self.head = layers.Dense(3, activation="softmax")

        def call(self, x):
            return self.head(keras.ops.mean(keras.ops.relu(self.norm(self.conv(x))), (1, 2)))

    keras.utils.set_random_seed(0)
    source = Net()
    source(images(2))
    randomize(source, images())
    swap = kerasnorm.swap_norms(source, "layer", images(200))
    assert not common_features(graphs_of(swap.model), graphs_of(source))
    assert swap.report.trained
    assert swap.report.agreement.fit > 0.8


@pytest.mark.parametrize("lengths", [(5, 6, 7), (5,)])
def test_batches_of_several_lengths(lengths):
    inputs = keras.Input((None, 4))
    source = keras.Model(inputs, BN(name="bn")(layers.Dense(6)(inputs)))
    rng = np.random.default_rng(0)
    batches = [
        rng.normal(size=(40, lengths[n % len(lengths)], 4)).astype("float32") for n in range(9)
    ]
    report = kerasnorm.swap_norms(source, "layer", iter(batches)).report
    assert report.agreement.samples == (36 if len(lengths) == 1 else 12)


def test_models_of_one_batch_size_are_fitted_and_no_more():
    inputs = keras.Input(batch_shape=(4, 6, 4))
    source = keras.Model(inputs, BN(name="bn")(layers.Dense(6)(inputs)))
    x = np.random.default_rng(0).normal(size=(200, 6, 4)).astype("float32")
    report = kerasnorm.swap_norms(source, "layer", x, batch_size=4).report
    assert not report.trained
    assert "the model takes batches of one size only" in str(report)
    assert report.agreement.samples == 20
    assert report.sites[0].fit > 0


def test_answers_are_along_the_axis_of_the_classes():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 7, 3))
    y = layers.Softmax(axis=1)(BN(name="bn")(layers.Conv2D(4, 1)(inputs)))
    source = keras.Model(inputs, y)
    x = np.random.default_rng(0).normal(size=(200, 6, 7, 3)).astype("float32")
    swap = kerasnorm.swap_norms(source, "layer", x, sites=["bn"])
    same = [np.asarray(model(x[9::10])).argmax(1) for model in (source, swap.model)]
    assert_close(swap.report.agreement.same_answers, np.mean(same[0] == same[1]))
    inputs = keras.Input((5,))
    source = keras.Model(inputs, BN()(layers.Dense(4)(inputs)))
    swap = kerasnorm.swap_norms(source, "layer", np.random.default_rng(0).normal(size=(200, 5)))
    assert swap.report.agreement.same_answers is None


def test_compared_are_the_ends_of_blocks():
    source = tiny_models.residual()
    for target in ("weight", "layer", "group", "cosine"):
        data = images(12) if target == "cosine" else None
        model = kerasnorm.swap_norms(source, target, data).model
        features = common_features(graphs_of(model), graphs_of(source))
        by_layer = {id(layer.output): layer.name for layer in source.layers}
        pooling = source.layers[-2].name
        assert [by_layer[id(f.teacher)] for f in features] == [
            "bn_1_end", "bn_1_short", "add_1", "bn_2_end", "bn_2_short", "add_2",
            pooling,
        ]  # fmt: skip


class Padded(layers.Wrapper):
    """A wrapper that does something before it calls its layer."""

    def call(self, x):
        return self.layer(keras.ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))


def test_training_uses_the_other_form(monkeypatch):
    """On a copy of the student: its own layers keep the methods of their classes."""
    seen = []
    monkeypatch.setattr(
        "kerasnorm.distillation.student_copy.stride_before_pointwise", lambda own: seen.append(own)
    )
    source = keras.Sequential([keras.Input((4,)), layers.Dense(3), BN()])
    x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    student = kerasnorm.swap_norms(source, "weight").model
    kerasnorm.distill(student, source, x, epochs=1)
    [trained] = seen
    assert [type(layer) for layer in trained] == [type(layer) for layer in all_layers(student)]
    assert not set(map(id, trained)) & set(map(id, all_layers(student)))


def directly_and_wrapped():
    conv = layers.Conv2D(4, 1, strides=2)
    inputs = keras.Input((9, 8, 3))
    direct = conv(inputs)
    return keras.Model(inputs, [direct, CosineNorm(conv)(inputs)])


def by_keyword():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = layers.Conv2D(4, 1, strides=2)

        def call(self, x):
            return self.conv(inputs=x)

    return Net()


def _one(make):
    return lambda: keras.Sequential([keras.Input((9, 8, 3)), make()])


@pytest.mark.parametrize(
    "make",
    [
        _one(lambda: layers.Conv2D(4, 1, strides=(2, 3), padding="same")),
        _one(lambda: CosineNorm(layers.Conv2D(4, 1, strides=(2, 3)))),
        _one(lambda: WeightNorm(layers.Conv2D(4, 1, strides=2))),
        _one(lambda: WeightNorm(layers.Conv2D(4, 1, strides=2), mean_only="layer")),
        _one(lambda: Padded(layers.Conv2D(4, 1, strides=2))),
        _one(lambda: layers.Conv2D(4, 1, strides=2, data_format="channels_first")),
        directly_and_wrapped,
        by_keyword,
        lambda: keras.Sequential(
            [
                keras.Input((9, 8, 3)),
                layers.Reshape((72, 3)),
                layers.Conv1D(4, 1, strides=2, activation="relu"),
                CosineNorm(layers.Conv1D(4, 1, strides=2, padding="causal")),
            ]
        ),
    ],
)
def test_strided_points_are_the_same_function_without_strides(make):
    model = make()
    x = np.random.default_rng(0).normal(size=(2, 9, 8, 3)).astype("float32")
    expected = keras.tree.map_structure(np.asarray, model(x))
    inside = model._flatten_layers(include_self=False)
    convs = [c for c in inside if isinstance(c, (layers.Conv1D, layers.Conv2D))]
    assert convs
    stride_before_pointwise(model._flatten_layers(include_self=False))
    assert all("convolution_op" in vars(conv) for conv in convs)
    for a, b in zip(keras.tree.flatten(model(x)), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
