"""`distill`: agreement gained, and nothing else changed."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import tiny_models
from helpers import assert_close
from keras import layers

import kerasnorm
from kerasnorm.distillation import losses as answers
from kerasnorm.distillation.feature_loss import FeatureLoss
from kerasnorm.distillation.features import common_features
from kerasnorm.distillation.optimizer import RelativeAdam
from kerasnorm.distillation.step_sizes import step_sizes
from kerasnorm.errors import DataError, KerasNormError, SwapError
from kerasnorm.fit.batches import batches_of
from kerasnorm.graph.model_graphs import graphs_of
from kerasnorm.graph.output_heads import Head, heads_of

pytestmark = pytest.mark.usefixtures("closed_form")

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(200, 8, 8, 3)).astype("float32")
ROWS = RNG.normal(size=(200, 5)).astype("float32")


def two_models(build=tiny_models.conv_bn_relu, x=IMAGES, to="layer"):
    keras.utils.set_random_seed(1)
    teacher = build()
    return kerasnorm.swap_norms(teacher, to, x).model, teacher


def disturbed(build=tiny_models.conv_bn_relu, x=IMAGES):
    """A student far enough from its teacher to have something to learn."""
    student, teacher = two_models(build, x)
    for variable in student.trainable_variables:
        variable.assign(variable + 0.3 * RNG.normal(size=variable.shape))
    return student, teacher


def values(model):
    return [np.array(v) for v in model.variables]


def assert_equal(received, expected):
    for a, b in zip(received, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def softmax_of_reshaped():
    x = keras.Input((8, 8, 3))
    y = layers.BatchNormalization()(layers.Conv2D(4, 3)(x))
    y = layers.Softmax()(layers.Conv2D(5, 1)(y))
    return keras.Model(x, layers.Dropout(0.5)(y))


def sigmoid_and_regression():
    x = keras.Input((5,))
    y = layers.ReLU()(layers.BatchNormalization()(layers.Dense(6)(x)))
    outputs = {"b": layers.Dense(1)(y), "a": [layers.Dense(3, activation="sigmoid")(y)]}
    return keras.Model(x, outputs)


def sequence():
    x = keras.Input((7,), dtype="int32")
    y = layers.Embedding(11, 4, mask_zero=True)(x)
    y = layers.BatchNormalization()(layers.Dense(6)(y))
    return keras.Model(x, layers.TimeDistributed(layers.Dense(3, activation="softmax"))(y))


def with_dropout_and_batch_norm():
    x = keras.Input((8, 8, 3))
    y = layers.Dropout(0.5)(layers.BatchNormalization(name="kept")(x))
    y = layers.BatchNormalization(name="swapped")(layers.Conv2D(4, 3)(y))
    return keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling2D()(y)))


@pytest.mark.parametrize(
    ("build", "x"),
    [
        (tiny_models.conv_bn_relu, IMAGES),
        (softmax_of_reshaped, IMAGES),
        (tiny_models.dense_bn, ROWS),
        (sigmoid_and_regression, ROWS),
        (sequence, RNG.integers(0, 11, (200, 7))),
        (tiny_models.subclassed, ROWS[:, :3]),
        (tiny_models.nested, None),
        (tiny_models.mixed_precision, IMAGES),
    ],
)
def test_agrees_better_than_before(build, x):
    if x is None:
        x = RNG.normal(size=(200, *build().input_shape[1:])).astype("float32")
    student, teacher = disturbed(build, x)
    given = values(teacher)
    history = kerasnorm.distill(student, teacher, x, learning_rate=1e-2, batch_size=16)
    assert history.after["loss"] < 0.9 * history.before["loss"]
    assert_equal(values(teacher), given)


@pytest.mark.parametrize(("kind", "axis"), [("softmax", -1), ("softmax", 1), ("sigmoid", -1)])
def test_loss_is_the_formula(kind, axis):
    t, s = RNG.normal(size=(2, 4, 5, 3))
    if kind == "softmax":
        p, q = (np.exp(z) / np.exp(z).sum(axis, keepdims=True) for z in (t, s))
        expected = (p * np.log(p / q)).sum(axis).mean()
    else:
        p, q = (1 / (1 + np.exp(-z)) for z in (t, s))
        expected = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    assert_close(answers.disagreement(Head(kind, axis), t)(t, s), expected)
    head = Head(kind, axis)
    again = answers.disagreement(head, t)(head.logits(p), head.logits(q))
    assert_close(again, expected)


def test_loss_of_regression_is_what_r_squared_lacks():
    t, s = RNG.normal(size=(2, 50, 3)) * 40 + 7
    expected = np.square(t - s).mean() / t.var(0).mean()
    assert_close(answers.disagreement(Head("linear"), t)(t, s), expected)
    constant = np.full((50, 3), 7.0)
    assert float(answers.disagreement(Head("linear"), constant)(constant, constant)) == 0


def test_steps_are_a_share_of_what_a_variable_holds():
    values = np.array([[3e-3, -4e-3], [5e-3, 0.0]]), np.array([[30.0, -40.0], [50.0, 0.0]])
    steps = []
    for value in values:
        variable = keras.Variable(value, dtype="float64")
        size = float(np.sqrt(np.mean(np.square(value))))
        optimizer = RelativeAdam(1e-3, sizes=[size])
        for gradient in ([[1.0, -2.0], [0.5, 1e-3]], [[2.0, -1.0], [-0.5, 1e-3]]):
            # of a loss that does not change with the unit
            optimizer.apply([keras.ops.convert_to_tensor(np.array(gradient) / size)], [variable])
        steps.append((np.array(variable) - value) / size)
    assert_close(steps[0], steps[1])
    assert_close(np.abs(steps[0][1, 1]), 2e-3)


def test_step_sizes_are_of_the_variables_and_of_what_offsets_are_added_to():
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(4, bias_initializer="ones", name="hidden")
    model = keras.Model(inputs, keras.layers.Dense(2, name="last")(hidden(inputs)))
    hidden.kernel.assign(hidden.kernel * 100)
    graphs = graphs_of(model)
    sizes = step_sizes(graphs, model.trainable_variables, [ROWS])
    y = np.asarray(hidden(ROWS), "float64")
    kernel = np.asarray(hidden.kernel, "float64")
    assert_close(sizes[0], np.sqrt(np.mean(kernel**2)))
    assert_close(sizes[1], np.sqrt(y.var(0).mean()))
    hidden.bias.assign([1e6, 0, 0, 0])
    assert_close(step_sizes(graphs, model.trainable_variables, [ROWS])[1], 5e5)


def test_goes_back_with_smaller_steps_where_they_lead_away():
    student, teacher = two_models()
    history = kerasnorm.distill(student, teacher, IMAGES, epochs=12, batch_size=16, learning_rate=1)
    losses = history.history["val_loss"]
    assert max(losses) > 1.25 * history.before["loss"]
    assert history.after["loss"] == min(losses) < history.before["loss"]
    assert len(losses) == 12


def test_never_worse_than_it_began():
    student, teacher = two_models()
    given = values(student)
    history = kerasnorm.distill(student, teacher, IMAGES, optimizer=keras.optimizers.SGD(1e4))
    assert min(history.history["val_loss"]) > history.before["loss"]
    assert history.after == history.before
    assert_equal(values(student), given)


def test_stops_where_the_loss_is_not_finite():
    student, teacher = two_models(tiny_models.dense_bn, ROWS)
    given = values(student)
    optimizer = keras.optimizers.SGD(1e30)
    history = kerasnorm.distill(student, teacher, ROWS, epochs=20, optimizer=optimizer)
    assert len(history.epoch) < 20
    assert_equal(values(student), given)


def test_goes_on_to_the_end_where_nothing_is_gained():
    student, teacher = two_models()
    optimizer = keras.optimizers.SGD(0.0)
    history = kerasnorm.distill(student, teacher, IMAGES, epochs=8, optimizer=optimizer)
    assert len(history.epoch) == 8


def test_what_it_reports_is_what_stays():
    student, teacher = disturbed()
    held_out = np.arange(4, 200, 10)
    history = kerasnorm.distill(student, teacher, IMAGES, seed=3, learning_rate=1e-2)
    p, q = (model.predict(IMAGES[held_out], verbose=0) for model in (teacher, student))
    t, s = (
        keras.Model(model.input, model.layers[-2].output)(IMAGES[held_out])
        for model in (teacher, student)
    )
    every = keras.Model(teacher.input, teacher.layers[-2].output)(IMAGES)
    at_the_pooling = np.square(t - s).mean() / np.var(every, 0).mean()
    # a difference of nearly equal logarithms
    answers = (p * np.log(p / q)).sum(-1).mean()
    assert_close(history.after["loss"], at_the_pooling + 0.1 * answers, factor=100)
    assert_close(history.after["agreement"], (p.argmax(-1) == q.argmax(-1)).mean())
    assert history.after["loss"] == min(history.history["val_loss"])


def test_the_same_seed_gives_the_same_weights():
    found = []
    for seed in (0, 0, 1):
        student, teacher = two_models()
        for variable in student.trainable_variables:  # so that there is something to learn
            variable.assign(1.2 * variable)
        keras.utils.set_random_seed(seed + 10)  # of no account
        kerasnorm.distill(student, teacher, IMAGES, seed=seed, epochs=1)
        found.append(values(student))
    assert_equal(found[0], found[1])
    assert any((a != b).any() for a, b in zip(found[0], found[2], strict=True))


def test_compile_state_and_flags_are_kept():
    student, teacher = disturbed(tiny_models.compiled)
    student.layers[1].trainable = False
    frozen = values(student.layers[1])
    optimizer, loss, flags = student.optimizer, student.loss, [v.trainable for v in student.layers]
    given = values(optimizer)
    recorded = [len(layer._inbound_nodes) for m in (student, teacher) for layer in m.layers]
    kerasnorm.distill(student, teacher, IMAGES)
    assert student.optimizer is optimizer
    assert student.loss == loss
    assert [v.trainable for v in student.layers] == flags
    assert_equal(values(optimizer), given)
    assert_equal(values(student.layers[1]), frozen)
    now = [len(layer._inbound_nodes) for m in (student, teacher) for layer in m.layers]
    assert now == recorded
    student.fit(IMAGES[:8], np.zeros(8), verbose=0)


def test_batch_norm_that_stays_and_dropout_are_at_inference():
    keras.utils.set_random_seed(0)
    teacher = with_dropout_and_batch_norm()
    sites = ["swapped"]
    student = kerasnorm.swap_norms(teacher, "layer", IMAGES, sites=sites, damping=0).model
    gamma = student.get_layer("swapped").gamma
    gamma.assign(0.8 * gamma)  # so that there is a little to learn
    given = values(student)
    states = [np.array(v) for v in student.non_trainable_variables]
    kerasnorm.distill(student, teacher, IMAGES)
    assert_equal([np.array(v) for v in student.non_trainable_variables], states)
    # that little is less than the noise of dropout
    assert any((a != b).any() for a, b in zip(values(student), given, strict=True))


def test_regularizers_do_not_count():
    student, teacher = two_models(tiny_models.regularized, ROWS)
    student.layers[1].kernel.regularizer = keras.regularizers.L2(1e4)
    assert float(sum(student.losses)) > 100
    history = kerasnorm.distill(student, teacher, ROWS, epochs=1)
    assert history.before["loss"] < 10
    assert student.losses


class Learning(layers.Layer):
    """A BatchNorm that goes by its batch, and moves its statistics, whoever calls it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.BatchNormalization()

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x):
        return self.norm(x, training=True)


def always_training():
    x = keras.Input((5,))
    y = layers.Add()([Learning()(x), layers.Dense(5)(x)])
    return keras.Model(x, layers.Dense(3)(layers.BatchNormalization()(layers.Dense(6)(y))))


def test_calls_fixed_to_training_leave_statistics():
    student, teacher = two_models(always_training, ROWS)
    given = [[np.array(v) for v in m.non_trainable_variables] for m in (student, teacher)]
    kerasnorm.distill(student, teacher, ROWS)
    for model, expected in zip((student, teacher), given, strict=True):
        assert_equal([np.array(v) for v in model.non_trainable_variables], expected)


class Watcher(keras.callbacks.Callback):
    """Looks, from a thread of its own, at a model that somebody else works on."""

    def __init__(self, look):
        super().__init__()
        self.look, self.seen = look, []

    def on_train_batch_end(self, batch, logs=None):
        thread = threading.Thread(target=lambda: self.seen.append(self.look()))
        thread.start()
        thread.join()
        self.seen.append(self.look())


def strided():
    x = keras.Input((8, 8, 3))
    y = layers.BatchNormalization()(layers.Conv2D(4, 1, strides=2)(x))
    y = layers.Add()([y, layers.BatchNormalization()(layers.Conv2D(4, 3, 2, padding="same")(x))])
    y = layers.Reshape((16, 4))(layers.ReLU()(y))
    y = layers.Conv1D(4, 1, strides=2, activation="relu")(y)
    return keras.Model(x, layers.Dense(3, activation="softmax")(layers.GlobalMaxPooling1D()(y)))


@pytest.mark.parametrize(
    ("build", "x"), [(strided, IMAGES), (always_training, ROWS), (tiny_models.subclassed, ROWS)]
)
def test_nothing_of_both_models_is_another_while_the_student_learns(build, x):
    x = x[..., :3] if build is tiny_models.subclassed else x
    student, teacher = disturbed(build, x)
    student.layers[-1].trainable = False
    own = [layer for m in (student, teacher) for layer in m._flatten_layers()]
    given = [set(vars(layer)) for layer in own]
    watched = [*student.variables, *teacher.variables]

    def look():
        with keras.StatelessScope():  # some move their statistics when they are called
            answers = [np.array(m(x[:4])).tolist() for m in (student, teacher)]
        return [
            answers,
            [type(layer) for layer in own],
            [set(vars(layer)) - names for layer, names in zip(own, given, strict=True)],
            [getattr(layer, "strides", None) for layer in own],
            [v.trainable for v in watched],
            [layer.losses for layer in own],
            *(np.array(v).tolist() for v in watched),
        ]

    before, watcher = look(), Watcher(look)
    history = kerasnorm.distill(student, teacher, x, callbacks=watcher, learning_rate=1e-2)
    assert len(watcher.seen) == 2 * 3 * 2
    for seen in watcher.seen:
        for received, expected in zip(seen, before, strict=True):
            assert received == expected
    assert history.after["loss"] < history.before["loss"]


def test_compiled_by_xla():
    student, teacher = disturbed()
    history = kerasnorm.distill(student, teacher, IMAGES, epochs=1, jit_compile=True)
    assert history.model.jit_compile
    assert history.after["loss"] < history.before["loss"]


def test_float16_is_trained_with_a_scaled_loss():
    student, teacher = two_models(tiny_models.mixed_precision)
    history = kerasnorm.distill(student, teacher, IMAGES, epochs=1)
    assert isinstance(history.model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert {v.dtype for v in student.trainable_variables} == {"float32"}


def test_callbacks_and_other_arguments_reach_fit(capsys):
    seen = []
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs))
    student, teacher = two_models()
    kerasnorm.distill(student, teacher, IMAGES, callbacks=callback, steps_per_epoch=2, verbose=2)
    assert len(seen) == 3
    assert {"loss", "val_loss", "val_agreement"} <= set(seen[0])
    assert "Epoch 3/3" in capsys.readouterr().out
    kerasnorm.distill(student, teacher, IMAGES, epochs=1)
    assert not capsys.readouterr().out


def test_an_error_leaves_the_student_as_it_was():
    def stop(batch, logs):
        raise KeyboardInterrupt

    student, teacher = two_models()
    given = values(student)
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
    with pytest.raises(KeyboardInterrupt):
        kerasnorm.distill(student, teacher, IMAGES, callbacks=[callback])
    assert_equal(values(student), given)


def test_forms_of_data():
    import tensorflow as tf

    images, found = IMAGES[:80], []
    for data in (
        images,
        iter([images[:50], images[50:]]),
        tf.data.Dataset.from_tensor_slices(images).batch(32),
        ((images[n : n + 40], None) for n in range(0, 80, 40)),
    ):
        student, teacher = two_models()
        kerasnorm.distill(student, teacher, data, epochs=1)
        found.append(values(student))
    for other in found[1:]:
        assert_equal(other, found[0])


def test_inputs_by_name():
    rows = np.arange(40)
    x = {
        "x": RNG.normal(size=(40, 6, 4)).astype("float32"),
        "mask": rows[:, None] % 5 >= np.arange(6),
    }
    student, teacher = two_models(tiny_models.a_mask_by_name, x)
    history = kerasnorm.distill(student, teacher, x)
    assert history.after["loss"] <= history.before["loss"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (IMAGES[:9], "needs at least 10 samples. Received 9"),
        (np.where(IMAGES > 2, np.nan, IMAGES), "must be finite. Received NaN"),
        (IMAGES[..., :2], r"the shape of the model's input 'image' \(None, 8, 8, 3\)"),
        ([IMAGES, IMAGES], "an array for each input of the model, 1 in all. Received 2"),
        (7, "must be arrays or an iterable of batches. Received: int"),
        (np.array(7.0), "must be arrays or an iterable of batches. Received: ndarray"),
        ("x.npy", r"Received: str. Read a file first: numpy.load\(path\)"),
        ([], "needs at least 10 samples. Received 0"),
        ([None], "must be arrays of numbers.* Received: NoneType"),
        (iter([np.array(7.0)]), r"the shape of the model's input .* Received \(n, \)"),
        (np.array([[1, 2], [3]] * 10, dtype=object), "every row as long as the next"),
        (np.full(20, "text"), "must be arrays of numbers.* Received: ndarray"),
    ],
)
def test_data_that_does_not_fit(data, message):
    with pytest.raises(DataError, match=message):
        kerasnorm.distill(*two_models(), data)


class Batches(keras.utils.PyDataset):
    """The images, in some batches or, with None, in batches without end."""

    def __init__(self, batches):
        super().__init__()
        self._batches = batches

    @property
    def num_batches(self):
        return self._batches

    def __getitem__(self, number):
        return IMAGES[number::3], None


def test_data_without_end_is_refused():
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(IMAGES).batch(32).repeat()
    for endless in (dataset, Batches(None), itertools.cycle([IMAGES])):
        with pytest.raises(DataError, match=r"must end.* for ever\. Give .*`data\.take\(n\)`"):
            next(batches_of(endless, 32))
    for ending in (dataset.take(3), Batches(3), itertools.islice(dataset, 3)):
        assert len(list(batches_of(ending, 32))) == 3


def test_batches_of_different_shapes_are_refused():
    def build():
        x = keras.Input((None, 3))
        return keras.Model(x, layers.BatchNormalization()(layers.Dense(4)(x)))

    batches = [np.ones((10, n, 3), "float32") for n in (4, 5)]
    with pytest.raises(DataError, match=r"Received \(4, 3\) and \(5, 3\). Pad or resize"):
        kerasnorm.distill(*two_models(build, RNG.normal(size=(20, 4, 3))), iter(batches))


@pytest.mark.parametrize("name", ["y", "validation_data", "validation_split", "shuffle", "x"])
def test_arguments_that_are_set_here(name):
    with pytest.raises(KerasNormError, match=rf"Received: {name}=…. Leave it out"):
        kerasnorm.distill(*two_models(), IMAGES, **{name: 1})


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("epochs", 0, 1), ("epochs", 1.5, 1), ("batch_size", None, 1), ("seed", -1, 0)],
)
def test_numbers_that_are_not_whole_or_too_small(name, value, least):
    message = f"`{name}` must be a whole number, {least} at least. Received: {name}={value}"
    with pytest.raises(KerasNormError, match=message):
        kerasnorm.distill(*two_models(), IMAGES, **{name: value})


@pytest.mark.parametrize("rate", [0, -0.1, float("inf"), float("nan"), "0.1"])
def test_learning_rates_that_are_none(rate):
    with pytest.raises(KerasNormError, match="`learning_rate` must be a number above 0"):
        kerasnorm.distill(*two_models(), IMAGES, learning_rate=rate)


def test_models_that_do_not_belong_together():
    student, teacher = two_models()
    with pytest.raises(SwapError, match=r"have the same inputs\. Received"):
        kerasnorm.distill(student, tiny_models.dense_bn(), IMAGES)
    other = keras.Model(teacher.input, {"y": teacher.output})
    with pytest.raises(SwapError, match=r"the same outputs\. Received .* and {'y': .*Distill a"):
        kerasnorm.distill(student, other, IMAGES)
    logits = keras.models.clone_model(teacher)
    logits.layers[-1].activation = keras.activations.linear
    with pytest.raises(SwapError, match=r"Received softmax and linear at output 0\. Give both"):
        kerasnorm.distill(student, logits, IMAGES)
    with pytest.raises(SwapError, match=r"no variable in common. Received models that share \d"):
        kerasnorm.distill(teacher, teacher, IMAGES)
    student.trainable = False
    with pytest.raises(SwapError, match=r"without trainable weights\. Set `trainable = True`"):
        kerasnorm.distill(student, teacher, IMAGES)


def test_a_teacher_whose_answers_are_not_finite():
    student, teacher = two_models(tiny_models.dense_bn, ROWS)
    teacher.layers[-1].bias.assign([np.nan] * 3)
    with pytest.raises(SwapError, match=r"answers must be finite\. Received NaN"):
        kerasnorm.distill(student, teacher, ROWS)


@pytest.mark.slow
def test_on_several_replicas():
    code = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, kerasnorm, numpy as np, tiny_models
x = np.random.default_rng(0).normal(size=(200, 8, 8, 3)).astype("float32")
teacher = tiny_models.conv_bn_relu()
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    student = kerasnorm.swap_norms(teacher, "layer", x).model
conv = student.get_layer("conv").kernel
conv.assign_add(0.2 * np.random.default_rng(1).normal(size=conv.shape))
history = kerasnorm.distill(student, teacher, x, learning_rate=0.01)
assert history.model.distribute_strategy.num_replicas_in_sync == 2
assert history.after["loss"] < 0.9 * history.before["loss"]
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_a_swap_on_several_replicas_is_that_on_one():
    code = """
import contextlib
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, kerasnorm, numpy as np, fidelity, tiny_models
from kerasnorm.swap import calibrate
calibrate._NEAR_ENOUGH = -1.0  # train however near the fits bring the answers
x = np.random.default_rng(0).normal(size=(300, 8, 8, 3)).astype("float32")
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
swaps = []
for scope in (contextlib.nullcontext(), strategy.scope(), strategy.scope()):
    with scope:
        keras.utils.set_random_seed(0)
        source = tiny_models.residual()
        fidelity.randomize(source, x)
        inside = kerasnorm.swap_norms(source, "layer", x) if len(swaps) == 2 else None
    swaps.append(inside or kerasnorm.swap_norms(source, "layer", x))
one, two, inside = swaps
for other in (two, inside):
    assert other.model.distribute_strategy is strategy
    assert [n for n in one.report.notes if "trained for" in n]
    assert other.report.trained == one.report.trained
    np.testing.assert_allclose(other.model(x), one.model(x), rtol=0, atol=2e-3)
    assert abs(other.report.agreement.fit - one.report.agreement.fit) < 1e-3
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def pooled_before_its_norm():
    x = keras.Input((8, 8, 3))
    y = layers.AveragePooling2D(2)(layers.Conv2D(6, 3, name="conv")(x))
    y = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(y)))
    return keras.Model(x, layers.Dense(3, activation="softmax")(y))


class Scaled(layers.Layer):
    """More than its activation."""

    activation = staticmethod(keras.activations.sigmoid)

    def call(self, x):
        return 10 * x * self.activation(x)


class Softmax(layers.Layer):
    """Keras's in name only."""

    axis = -1

    def call(self, x):
        return x


@pytest.mark.parametrize("last", [Scaled, Softmax])
def test_a_layer_of_the_users_own_is_read_as_it_is(last):
    x = keras.Input((5,))
    model = keras.Model(x, last()(layers.Dense(3)(x)))
    assert heads_of(graphs_of(model)) == [Head("linear")]


def test_other_backends_are_refused(monkeypatch):
    student, teacher = two_models()
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(KerasNormError, match=r"TensorFlow backend\. Received: jax"):
        kerasnorm.distill(student, teacher, IMAGES)


def test_offsets_behind_a_pooling_stay():
    student, teacher = disturbed(pooled_before_its_norm)
    bias = np.array(student.get_layer("conv").bias)
    kerasnorm.distill(student, teacher, IMAGES, learning_rate=1e-2)
    np.testing.assert_array_equal(student.get_layer("conv").bias, bias)


def test_masked_places_do_not_count_at_the_ends_of_blocks():
    def build():
        x = keras.Input((7, 4))
        y = layers.Masking()(x)
        y = layers.Add(name="end")([layers.Dense(6)(y), layers.Dense(6, name="other")(y)])
        return keras.Model(x, layers.BatchNormalization()(layers.Dense(3)(y)))

    x = RNG.normal(size=(100, 7, 4)).astype("float32")
    x[:, -5:] = 0
    student, teacher = two_models(build, x)
    # at the masked places, which are zeros, only the bias tells
    student.get_layer("other").bias.assign(RNG.normal(size=6))
    student.get_layer("other").kernel.assign_add(RNG.normal(size=(4, 6)))
    graphs = graphs_of(student), graphs_of(teacher)
    end = teacher.get_layer("end").output
    features = [f for f in common_features(*graphs) if f.teacher is end]
    loss = FeatureLoss(features, graphs[0].root, graphs[1].root, [x])
    expected = np.asarray(keras.Model(teacher.input, end)(x))
    received = np.asarray(keras.Model(student.input, student.get_layer("end").output)(x))
    kept = np.square(received - expected)[:, :-5].mean()
    assert kept != np.square(received - expected).mean()
    assert_close(loss(x)[1], kept / expected.reshape(-1, 6).var(0).mean(), factor=10)


def test_offsets_in_front_of_layer_norms_stay():
    student, teacher = disturbed()
    conv = student.get_layer("conv")
    kernel, bias = np.array(conv.kernel), np.array(conv.bias)
    kerasnorm.distill(student, teacher, IMAGES, epochs=2, learning_rate=1e-2)
    assert (np.array(conv.kernel) != kernel).any()
    np.testing.assert_array_equal(conv.bias, bias)
    assert conv.bias.trainable
