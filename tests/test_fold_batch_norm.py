"""`fold_norms` on a model with BatchNorm as it is: exact, in keras.layers, at every place."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tiny_models
from fidelity import all_layers, assert_no_batch_norm, randomize, to_float64
from helpers import has_channels_first
from keras import layers

import kerasnorm
from kerasnorm import SwapError
from kerasnorm.graph.sites import is_batch_norm
from kerasnorm.swap import fold as folds
from kerasnorm.swap.fold import fold

BN = layers.BatchNormalization
# Of a tensor's spread, in float64: what is wrong in the algebra is off by far more.
EXACT = 1e-9


def built(build, *shapes, dtype="float64", **inputs):
    """The functional model of a function, BatchNorm with statistics of its inputs, and a batch."""
    keras.config.set_dtype_policy(dtype)
    try:
        tensors = [keras.Input(shape, **inputs) for shape in shapes]
        model = keras.Model(tensors[0] if len(tensors) == 1 else tensors, build(*tensors))
    finally:
        keras.config.set_dtype_policy("float32")
    return model, filled(model)


def filled(model):
    """Random weights for a model, and a batch of inputs."""
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if variable.path.endswith("bias"):
            variable.assign(rng.normal(size=variable.shape))
    shapes = [[6 if size is None else size for size in x.shape[1:]] for x in model.inputs]
    arrays = [rng.normal(size=(8, *shape)) for shape in shapes]
    for array in arrays:
        if array.ndim == 3:
            array[2:5, -2:] = 0  # what Masking leaves out
    x = arrays[0] if len(arrays) == 1 else arrays
    randomize(model, x)
    return x


def off(model, other, x) -> float:
    """max|Δ| over the spread, of the worst output."""
    return max(
        np.abs(to_float64(a) - to_float64(b)).max() / to_float64(a).std()
        for a, b in zip(keras.tree.flatten(model(x)), keras.tree.flatten(other(x)), strict=True)
    )


def folded(built_model, tolerance=EXACT):
    """The result of folding, checked: exact, no BatchNorm, nothing but keras.layers."""
    model, x = built_model
    before = model.get_weights()
    result = fold(model)
    assert off(model, result.model, x) <= tolerance
    assert_no_batch_norm(result.model)
    assert_plain(result.model)
    assert all(record.verdict == "exact" for record in result.report.sites)
    assert result.report.sites, "a test without a BatchNorm says nothing"
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert result.model.output_names == model.output_names
    return result


def assert_plain(model):
    own = [layer.name for layer in all_layers(model) if not is_plain(layer)]
    assert not own, own


def is_plain(layer) -> bool:
    own = type(layer) in (keras.Model, keras.Sequential) or type(layer).__name__ == "Functional"
    return own or getattr(keras.layers, type(layer).__name__, None) is type(layer)


def becomes(result) -> list[tuple[str, str, str | None]]:
    return [(site.rule, site.becomes, site.partner) for site in result.report.sites]


def kinds(model) -> list[str]:
    return [type(layer).__name__ for layer in model.layers[1:]]


IN_FRONT = [
    (lambda: layers.Dense(3), (5,)),
    (lambda: layers.Dense(3, use_bias=False), (6, 5)),
    (lambda: layers.EinsumDense("abc,cd->abd", (6, 3), bias_axes="d"), (6, 5)),
    (lambda: layers.EinsumDense("ab,bcd->acd", (2, 3)), (5,)),
    (lambda: layers.Conv1D(3, 2, padding="causal"), (6, 5)),
    (lambda: layers.Conv2D(4, 3, strides=2, padding="same"), (7, 6, 3)),
    (lambda: layers.Conv2D(4, 2, groups=2, use_bias=False), (7, 6, 4)),
    (lambda: layers.Conv3D(2, 2), (4, 4, 4, 3)),
    (lambda: layers.DepthwiseConv1D(2, depth_multiplier=2), (6, 5)),
    (lambda: layers.DepthwiseConv2D(3, padding="same"), (7, 6, 3)),
    (lambda: layers.SeparableConv1D(3, 2), (6, 5)),
    (lambda: layers.SeparableConv2D(4, 2, padding="same", use_bias=False), (7, 6, 3)),
    (lambda: layers.Conv1DTranspose(3, 2, strides=2), (6, 5)),
    (lambda: layers.Conv2DTranspose(3, 3, strides=2, padding="same"), (4, 5, 3)),
]


@pytest.mark.parametrize(("linear", "shape"), IN_FRONT)
def test_into_the_linear_layer_in_front(linear, shape):
    names = {}

    def build(x):
        layer = linear()
        names["layer"], names["kind"] = layer.name, type(layer).__name__
        return layers.Activation("tanh")(BN(name="bn")(layer(x)))

    # depthwise convolutions of TensorFlow compute in float32 on the inside
    result = folded(built(build, shape), 1e-5 if "Sep" in str(linear) else EXACT)
    assert becomes(result) == [("fold 1", names["kind"], names["layer"])]
    assert kinds(result.model) == [names["kind"], "Activation"]


@pytest.mark.parametrize("kind", [layers.AveragePooling2D, layers.MaxPooling2D])
def test_across_what_commutes(kind):
    def build(x):
        x = kind(2)(layers.Dropout(0.5, name="drop")(layers.Conv2D(4, 2, name="conv")(x)))
        return BN(name="bn", gamma_constraint="non_neg", scale=False)(x)

    result = folded(built(build, (7, 6, 3)))
    (record,) = result.report.sites
    assert (record.becomes, record.partner, record.across[-1]) == ("Conv2D", "conv", "drop")
    assert kinds(result.model) == ["Conv2D", "Dropout", kind.__name__, "Identity"]  # an output


BEHIND = [
    (lambda: layers.Dense(3), (5,)),
    (lambda: layers.Conv2D(3, 2), (7, 6, 4)),
    (lambda: layers.Conv2D(3, 1, padding="same", use_bias=False), (7, 6, 4)),
    (lambda: layers.EinsumDense("abc,cd->abd", (6, 3)), (6, 5)),
]


@pytest.mark.parametrize(("linear", "shape"), BEHIND)
@pytest.mark.parametrize("before", ["relu", "input", "add", "concatenate"])
def test_into_the_linear_layers_behind(linear, shape, before):
    def build(x):
        y = layers.Activation("relu")(x)
        y = {
            "relu": lambda: y,
            "input": lambda: x,
            "add": lambda: layers.Add()([x, y]),
            "concatenate": lambda: layers.Concatenate()([x, y]),
        }[before]()
        return linear()(BN(name="bn")(y))

    result = folded(built(build, shape))
    ((rule, kind, partner),) = becomes(result)
    assert (rule, partner) == ("fold 2", result.model.layers[-1].name)
    assert kind == type(result.model.layers[-1]).__name__
    assert "behind it" in result.report.sites[0].reason


def test_into_all_of_the_layers_behind():
    def build(x):
        x = BN(name="bn")(layers.ReLU()(x))
        return [layers.Dense(3)(x), layers.Conv1D(2, 2)(x)]

    result = folded(built(build, (6, 5)))
    assert becomes(result)[0][:2] == ("fold 2", "Dense, Conv1D")


def test_from_both_sides_into_one():
    """The layer in the middle takes in one from behind and one from the front."""

    def build(x):
        x = layers.Dense(4, name="dense")(BN(name="one")(layers.ReLU()(x)))
        return layers.ReLU()(BN(name="two")(x))

    result = folded(built(build, (5,)))
    assert becomes(result) == [("fold 2", "Dense", "dense"), ("fold 1", "Dense", "dense")]
    assert kinds(result.model) == ["ReLU", "Dense", "ReLU"]


def test_in_a_row():
    def build(x):
        return BN(name="three")(BN(name="two")(BN(name="one")(layers.ReLU()(x))))

    result = folded(built(build, (6, 5)))
    assert kinds(result.model) == ["ReLU", "Rescaling"]
    assert [record.becomes for record in result.report.sites] == ["Rescaling"] * 3
    result = folded(built(lambda x: layers.Dense(3, name="dense")(build(x)), (6, 5)))
    assert kinds(result.model) == ["ReLU", "Dense"]
    assert {record.partner for record in result.report.sites} == {"dense"}


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
@pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False}])
def test_what_is_left_is_a_rescaling_along_any_axis(rank, options):
    shape = (3, 3, 3, 3)[: rank - 1]  # of equal sizes: a wrong axis would fit too
    for axis in range(1, rank):
        result = folded(built(lambda x, axis=axis: BN(axis=axis, **options)(x), shape))
        assert kinds(result.model) == ["Rescaling"]
        assert becomes(result) == [("fold 3", "Rescaling", None)]
    assert "normalizes an input of the model" in result.report.sites[0].reason


def test_sizes_that_are_not_known():
    result = folded(built(lambda x: layers.ReLU()(BN()(x)), (None, None, 3)))
    assert result.model.input_shape == (None, None, None, 3)
    for size in (2, 9):
        assert result.model(np.ones((1, size, 4, 3))).shape == (1, size, 4, 3)


@pytest.mark.skipif(
    not has_channels_first("float32"), reason="this CPU has no convolution with channels first"
)
def test_channels_first():
    first = {"data_format": "channels_first"}

    def build(x):
        x = layers.ReLU()(BN(axis=1, name="one")(layers.Conv2D(4, 3, padding="same", **first)(x)))
        x = layers.Conv2D(4, 2, **first)(BN(axis=1, name="two")(x))
        return layers.ReLU()(BN(axis=1, name="three")(layers.ReLU()(x)))

    result = folded(built(build, (3, 6, 6), dtype="float32"), 1e-4)
    assert [record.rule for record in result.report.sites] == ["fold 1", "fold 2", "fold 3"]


def test_a_mask_passes():
    """A wrong mask would give other states: the last steps of some samples are masked."""

    def build(x):
        x = BN(name="one")(layers.Masking()(x))
        return layers.LSTM(3)(BN(name="two")(layers.ReLU()(x)))

    model, x = built(build, (6, 5))
    result = folded((model, x))
    assert kinds(result.model) == ["Masking", "Rescaling", "ReLU", "Rescaling", "LSTM"]
    inputs = y = keras.Input((6, 5), dtype="float64")
    for layer in result.model.layers[2:]:  # without the Masking
        y = layer(y)
    unmasked = keras.Model(inputs, y)
    assert off(model, unmasked, x) > 0.01, "the mask makes no difference"


def test_a_mask_passes_in_a_copy():
    """Which names the masks that travel, computed once more."""

    def build(x):
        x = BN(name="one")(layers.Masking()(x))
        return layers.LSTM(3)(BN(name="two")(layers.ReLU()(x)))

    model, x = built(build, (6, 5))
    swapped = kerasnorm.swap_norms(model, "weight").model
    plain = kerasnorm.fold_norms(swapped)
    assert kinds(plain) == ["Masking", "Rescaling", "ReLU", "Rescaling", "LSTM"]
    assert off(model, plain, x) <= EXACT


def test_the_mask_of_an_embedding_passes():
    words = keras.Input((6,), dtype="int32")
    x = layers.Embedding(7, 4, mask_zero=True)(words)
    x = layers.LSTM(3)(BN()(x))
    model = keras.Model(words, layers.Dense(2)(x))
    batch = np.random.default_rng(0).integers(0, 3, (8, 6))
    batch[:, 4:] = 0
    randomize(model, batch)
    result = folded((model, batch), 1e-5)
    assert "Rescaling" in kinds(result.model)
    assert "TimeDistributed" not in kinds(result.model)
    other = np.where(batch == 0, 5, batch)  # so that nothing is masked
    assert off(model, result.model, other) <= 1e-5
    assert np.abs(to_float64(model(other)) - to_float64(model(batch))).max() > 0.01


def test_a_mask_of_its_own_passes():
    model = tiny_models.a_mask_by_name()
    rng = np.random.default_rng(0)
    x = {"x": rng.normal(size=(8, 6, 4)).astype("float32"), "mask": rng.random((8, 6)) < 0.6}
    randomize(model, x)
    result = folded((model, x), 1e-5)
    assert "TimeDistributed" in kinds(result.model)
    flipped = {**x, "mask": ~x["mask"]}
    assert np.abs(to_float64(result.model(flipped)) - to_float64(model(x))).max() > 0.01


def test_each_call_of_a_shared_batch_norm_goes_its_own_way():
    def build(a, b, c):
        norm = BN(name="bn")
        x = layers.ReLU()(norm(layers.Dense(4, name="one")(a)))
        y = layers.Dense(2, name="two")(norm(layers.ReLU()(b)))
        return [x, y, layers.ReLU()(norm(c))]

    result = folded(built(build, (5,), (4,), (4,)))
    assert [record.name for record in result.report.sites] == ["bn", "bn#2", "bn#3"]
    assert sorted(rule for rule, *_ in becomes(result)) == ["fold 1", "fold 2", "fold 3"]


def test_a_shared_linear_layer():
    def build(a, b):
        dense = layers.Dense(4)
        return [layers.ReLU()(BN()(dense(a))), layers.ReLU()(BN()(dense(b)))]

    result = folded(built(build, (5,), (5,)))
    assert kinds(result.model).count("Rescaling") == 2


def test_nested_models():
    def build(x):
        inner = keras.Sequential(
            [keras.Input((5,)), layers.Dense(4, name="dense"), BN(name="bn")], name="inner"
        )
        y = keras.Input((4,))
        other = keras.Model(y, BN(name="bn")(layers.ReLU()(y)), name="other")
        x = other(inner(x))
        return other(layers.ReLU()(x))

    result = folded(built(build, (5,)))
    assert becomes(result) == [
        ("fold 1", "Dense", "inner/dense"),
        ("fold 3", "Rescaling", None),
    ]
    assert result.report.layers["inner/bn"] == "inner/dense"


def test_inside_time_distributed():
    def build(x):
        stack = keras.Sequential([layers.Dense(4, name="dense"), BN(name="one")], name="stack")
        x = layers.TimeDistributed(stack, name="steps")(x)
        return layers.TimeDistributed(BN(name="two"), name="norm")(layers.ReLU()(x))

    result = folded(built(build, (6, 5)))
    assert [record.becomes for record in result.report.sites] == ["Dense", "Rescaling"]
    assert kinds(result.model) == ["TimeDistributed", "ReLU", "TimeDistributed"]


@pytest.mark.parametrize("wrapper", [lambda x: x, layers.TimeDistributed])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_sixteen_bits(policy, wrapper):
    def build(x):
        x = BN(name="one")(layers.Dense(4)(x))
        return wrapper(BN(name="two"))(layers.ReLU()(x))

    model, x = built(build, (6, 5), dtype=policy)
    gamma = model.layers[-1]
    gamma = getattr(gamma, "layer", gamma).gamma
    gamma.assign(1e3 * gamma)
    # what the Dense layer gives is rounded to 11 or 8 bits in both, at another place
    result = folded((model, x), 0.05 if policy == "mixed_float16" else 0.3)
    assert result.model.output.dtype == model.output.dtype == policy.removeprefix("mixed_")
    maps = [layer for layer in all_layers(result.model) if type(layer) is layers.Rescaling]
    assert [layer.compute_dtype for layer in maps] == ["float32"]


def test_gains_that_float16_does_not_hold():
    model, x = built(lambda x: BN()(x), (5,), dtype="mixed_float16")
    norm = model.layers[-1]
    norm.moving_variance.assign(np.full(5, 1e-10))
    norm.epsilon = 0.0
    norm.gamma.assign(np.ones(5))
    norm.moving_mean.assign(np.zeros(5))
    x = 1e-4 * x
    received = to_float64(kerasnorm.fold_norms(model)(x))
    assert np.isfinite(received).all()
    np.testing.assert_allclose(received, to_float64(model(x)), rtol=1e-2, atol=1e-2)


def test_frozen_batch_norm_is_folded_in_training_too():
    def build(x):
        return layers.ReLU()(
            BN(trainable=False)(layers.Dense(4, trainable=False)(x), training=True)
        )

    result = folded(built(build, (5,)))
    assert not result.model.get_layer(result.report.sites[0].partner).trainable


def test_what_its_batch_decides_stays_with_a_reason():
    def build(x):
        x = BN(name="stored")(layers.Dense(4)(x))
        x = BN(name="live")(layers.ReLU()(x), training=True)
        return kerasnorm.BatchNorm(name="ours")(layers.ReLU()(x), training=True)

    model, x = built(build, (5,))
    result = fold(model)
    (refused, ours) = result.report.refused
    assert (refused.name, ours.name) == ("live", "ours")
    assert refused.reason.startswith(
        "it is called with training=True: its batch decides in `model(x)`"
    )
    left = [layer for layer in all_layers(result.model) if is_batch_norm(layer)]
    assert [type(layer) for layer in left] == [BN, BN]  # ours is Keras's now
    assert off(model, result.model, x) <= EXACT


def test_what_cannot_be_seen_stays_with_a_reason():
    @keras.saving.register_keras_serializable("tests")
    class Cell(layers.SimpleRNNCell):
        def build(self, input_shape):
            super().build(input_shape)
            self.norm = BN(name="inside")
            self.norm.build(input_shape)

        def call(self, inputs, states, training=False):
            return super().call(self.norm(inputs, training=False), states)

    def build(x):
        return layers.Bidirectional(layers.RNN(Cell(3)), name="both")(BN(name="bn")(x))

    model, x = built(build, (6, 5), dtype="float32")
    result = fold(model)
    assert result.report.sites[0].becomes == "Rescaling"
    assert {record.verdict for record in result.report.sites[1:]} == {"refused"}
    assert len(result.report.sites) > 1
    assert off(model, result.model, x) <= 1e-5


def test_around_bidirectional_layers():
    def build(x):
        x = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(BN(name="one")(x))
        return layers.Dense(2)(BN(name="two")(x))

    result = folded(built(build, (6, 5)))
    assert [record.becomes for record in result.report.sites] == ["Rescaling", "Dense"]


def test_penalties_of_outputs_stay_and_those_of_weights_go():
    def build(x):
        penalties = {"gamma_regularizer": "l2", "activity_regularizer": keras.regularizers.L2(0.5)}
        x = BN(name="one", **penalties)(layers.ReLU()(x))
        return BN(name="two", beta_constraint="non_neg")(
            layers.Dense(4, kernel_regularizer="l2")(x)
        )

    model, x = built(build, (5,), dtype="float32")
    result = folded((model, x), 1e-5)
    rescaling = result.model.layers[2]
    assert float(rescaling.activity_regularizer(keras.ops.ones((2, 2)))) == 2.0
    assert result.model.layers[-1].kernel_regularizer is None
    said = [n for n in result.report.notes if "is gone" in n]
    assert said == [
        "'one': the regularizer of gamma is gone with them",
        "'two': the constraint of beta is gone with them",
    ]


def test_subclasses_with_a_call_of_their_own_stay():
    result = fold(tiny_models.subclasses_of_bn())
    assert [record.verdict for record in result.report.sites] == ["exact", "refused"]
    assert result.report.refused[0].reason == "Doubled computes in its own way"


def test_onnx_is_equal(tmp_path):
    import onnxruntime

    def build(x):
        x = layers.ReLU()(BN()(layers.Conv2D(4, 3, padding="same")(x)))
        y = layers.Add()([x, layers.ReLU()(BN()(x))])
        return layers.Dense(3)(BN()(layers.GlobalAveragePooling2D()(y)))

    model, x = built(build, (6, 7, 3), dtype="float32")
    x = x.astype("float32")
    plain = folded((model, x), 1e-4).model
    export = kerasnorm.export_onnx(plain, tmp_path / "plain.onnx")
    session = onnxruntime.InferenceSession(str(export.path), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: x})
    expected = to_float64(model(x))
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5 * expected.std())
    assert not {"BatchNormalization", "Einsum"} & set(export.op_counts)


def test_a_wrong_map_is_found_behind_a_softmax_that_hides_it(monkeypatch):
    """The calls themselves are compared, and not what the model ends in alone."""

    def build(x):
        x = layers.ReLU()(BN(name="first")(layers.Dense(6)(x)))
        return layers.Dense(4, activation="softmax", name="head")(BN(name="second")(x))

    model, _ = built(build, (5,), dtype="float32")
    head = model.get_layer("head")
    head.kernel.assign(0 * head.kernel)
    fold(model)
    real = folds.Rebuilds.apply

    def wrong(steps, edits):
        rebuilt = real(steps, edits)
        dense = rebuilt.model.layers[1]
        dense.bias.assign(dense.bias + 0.01)
        return rebuilt

    monkeypatch.setattr(folds.Rebuilds, "apply", wrong)
    with pytest.raises(SwapError, match="differs from its source at 'first'"):
        fold(model)


def test_a_map_moved_behind_is_compared_at_what_takes_it_in(monkeypatch):
    def build(x):
        x = layers.Dense(3, name="reader")(BN(name="bn")(layers.ReLU()(x)))
        return layers.Dense(2, activation="softmax", name="head")(layers.ReLU()(x))

    model, _ = built(build, (5,), dtype="float32")
    head = model.get_layer("head")
    head.kernel.assign(0 * head.kernel)
    real = folds.Rebuilds.apply

    def wrong(steps, edits):
        rebuilt = real(steps, edits)
        reader = rebuilt.model.get_layer("reader")
        reader.bias.assign(reader.bias + 0.01)
        return rebuilt

    assert set(fold(model).differences) == {"reader", "output 0"}
    monkeypatch.setattr(folds.Rebuilds, "apply", wrong)
    with pytest.raises(SwapError, match="differs from its source at 'reader'"):
        fold(model)
