"""What training would find of regularizers and constraints in a swapped model."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tiny_code
import tiny_models
from fidelity import all_layers, randomize
from keras import layers

import kerasnorm
from kerasnorm import Affine, SwapError, WeightNorm
from kerasnorm.layers.rescaled import RescaledConstraint, RescaledRegularizer

BN = layers.BatchNormalization
TARGETS = ("weight", "layer", "group")
# A penalty is a sum of some dozens of squares in float32, divided and multiplied by one scale.
ROUNDING = 1e-5


def penalty(model) -> float:
    return float(sum(keras.ops.convert_to_numpy(loss) for loss in model.losses))


def largest_entry(w):
    return keras.ops.max(keras.ops.abs(w))


def prefix_of(kind: str) -> str:
    name = kind.split(",")[0]
    return {"Depthwise": "depthwise", "Separable": "pointwise"}.get(name[:9], "kernel")


def behind(kind: str, **arguments):
    model = tiny_models.behind_linear(kind, bias_initializer="normal", **arguments)
    randomize(model, np.random.default_rng(0).normal(size=(32, *model.input_shape[1:])))
    gamma = model.get_layer("bn").gamma
    gamma.assign(np.where(np.array(gamma) == 0, -0.7, gamma))  # which would erase a unit
    return model


def data_for(model, rows=64):
    shape = [size or 6 for size in model.input_shape[1:]]
    return np.random.default_rng(1).normal(size=(rows, *shape)).astype("float32")


@pytest.mark.parametrize("kind", [kind for kind in tiny_models.LINEAR if kind != "Affine"])
@pytest.mark.parametrize("regularizer", ["l1", "l2"])
def test_the_penalty_of_a_kernel_is_what_it_was(kind, regularizer):
    source = behind(kind, **{f"{prefix_of(kind)}_regularizer": regularizer})
    assert penalty(source) > 0
    for to in TARGETS:
        swapped = kerasnorm.swap_norms(source, to).model
        assert penalty(swapped) == pytest.approx(penalty(source), rel=ROUNDING), to


@pytest.mark.parametrize("kind", ["Dense", "Conv2D", "EinsumDense"])
def test_the_penalty_of_a_bias_is_what_it_was(kind):
    source = behind(kind, bias_regularizer="l2")
    for to in TARGETS:
        swapped = kerasnorm.swap_norms(source, to).model
        assert penalty(swapped) == pytest.approx(penalty(source), rel=ROUNDING), to


def test_a_bias_that_was_not_there_is_not_penalized():
    source = behind("Dense", use_bias=False, bias_regularizer="l2", bias_constraint="max_norm")
    for to in TARGETS:
        swapped = kerasnorm.swap_norms(source, to).model
        assert penalty(swapped) == 0, to
        assert all(variable.constraint is None for variable in swapped.variables)


@pytest.mark.parametrize(
    "regularizer",
    [
        keras.regularizers.OrthogonalRegularizer(0.1, mode="columns"),
        keras.regularizers.L1L2(0.01, 0.02),
        largest_entry,
    ],
    ids=["orthogonal", "both", "function"],
)
def test_any_regularizer_means_the_kernel_before_the_fold(regularizer):
    source = behind("Dense", kernel_regularizer=regularizer)
    swapped = kerasnorm.swap_norms(source, "layer").model
    assert penalty(swapped) == pytest.approx(penalty(source), rel=ROUNDING)


def test_units_with_a_gain_of_zero_are_not_penalized():
    source = behind("Dense", kernel_regularizer="l2")
    gamma = source.get_layer("bn").gamma
    gamma.assign(gamma * [1, 0, 1, 1])
    kernel = np.array(source.get_layer("linear").kernel)
    swap = kerasnorm.swap_norms(source, "layer")
    swapped = swap.model
    assert swap.report.notes == [
        "'linear': its kernel_regularizer leaves out 1 unit that gamma=0 erases"
    ]
    expected = 0.01 * np.square(np.delete(kernel, 1, axis=1)).sum()
    assert penalty(swapped) == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("model", [tiny_models.bn_on_input, tiny_models.bn_after_activation])
def test_the_penalty_of_gamma_stays_where_an_affine_takes_its_place(model):
    source = model()
    for layer in source.layers:
        if isinstance(layer, BN):
            layer.gamma.regularizer = layer.gamma_regularizer = keras.regularizers.L2(0.1)
    randomize(source, data_for(source))
    swapped = kerasnorm.swap_norms(source, "layer").model
    assert penalty(swapped) == pytest.approx(penalty(source), rel=ROUNDING)


def test_the_constraint_of_a_kernel_is_what_it_was():
    """After a step that goes beyond it, both models have the same function."""
    source = behind("Dense", kernel_constraint=keras.constraints.MaxNorm(0.5))
    swapped = kerasnorm.swap_norms(source, "layer").model
    linear, folded = source.get_layer("linear"), swapped.get_layer("linear")
    signs = np.sign(swapped.get_layer("bn").gamma)
    a = (
        signs
        * np.array(source.get_layer("bn").gamma)
        / np.sqrt(np.array(source.get_layer("bn").moving_variance) + source.get_layer("bn").epsilon)
    )
    np.testing.assert_allclose(folded.kernel, a * np.array(linear.kernel), rtol=1e-6)
    before = np.array(linear.kernel)
    assert np.linalg.norm(before, axis=0).max() > 0.5  # else the constraint has nothing to do
    expected = a * np.array(linear.kernel.constraint(linear.kernel.value))
    np.testing.assert_allclose(
        folded.kernel.constraint(folded.kernel.value), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["regularizer", "constraint"])
@pytest.mark.parametrize("to", ["weight", "cosine"])
def test_what_acts_on_a_direction_is_said(to, kind):
    source = behind("Dense", **{f"kernel_{kind}": "l2" if kind == "regularizer" else "max_norm"})
    data = data_for(source) if to == "cosine" else None
    notes = kerasnorm.swap_norms(source, to, data).report.notes
    assert any(f"'linear': its kernel_{kind} acts on the direction" in note for note in notes)


@pytest.mark.parametrize("to", ["weight", "layer", "group", "cosine"])
def test_what_goes_with_gamma_and_beta_is_said(to):
    source = behind("Dense")
    norm = source.get_layer("bn")
    norm.gamma_regularizer = norm.beta_constraint = None
    assert not any("gone with them" in n for n in kerasnorm.inspect_norms(source).notes)
    norm.gamma_regularizer = keras.regularizers.L2(0.1)
    norm.beta_constraint = keras.constraints.NonNeg()
    notes = kerasnorm.swap_norms(source, to, data_for(source)).report.notes
    assert "'bn': the regularizer of gamma is gone with them" in notes
    assert "'bn': the constraint of beta is gone with them" in notes


def test_nothing_is_said_where_nothing_is_lost():
    assert not kerasnorm.swap_norms(behind("Dense"), "weight").report.notes


def test_penalties_are_saved_and_loaded(tmp_path):
    source = behind("Conv2D", kernel_regularizer="l2", bias_regularizer="l1")
    source = kerasnorm.swap_norms(source, "layer").model
    source.save(tmp_path / "model.keras")
    loaded = kerasnorm.load_model(tmp_path / "model.keras")
    assert penalty(loaded) == pytest.approx(penalty(source), rel=ROUNDING)
    clone = keras.models.clone_model(source)
    clone.set_weights(source.get_weights())
    assert penalty(clone) == pytest.approx(penalty(source), rel=ROUNDING)


@pytest.mark.parametrize("to", ["weight", "layer", "group"])
def test_a_folded_model_has_none_that_only_this_package_knows(to):
    source = behind(
        "Conv2D", kernel_regularizer="l2", bias_regularizer="l1", kernel_constraint="max_norm"
    )
    folded = kerasnorm.fold_norms(kerasnorm.swap_norms(source, to).model)
    own = (RescaledRegularizer, RescaledConstraint)
    for layer in all_layers(folded):
        assert not any(isinstance(value, own) for value in vars(layer).values())
        assert "kerasnorm" not in str(layer.get_config())
    assert not any(
        isinstance(value, own) for v in folded.variables for value in (v.regularizer, v.constraint)
    )


RESTRICTED = {"regularizer": keras.regularizers.L2(0.1), "constraint": keras.constraints.NonNeg()}


@pytest.mark.parametrize("kind", RESTRICTED)
@pytest.mark.parametrize(
    ("last", "gone", "kept"),
    [
        (lambda **k: [WeightNorm(layers.Dense(4, **k))], ["kernel"], ["bias"]),
        (
            lambda **k: [WeightNorm(layers.SeparableConv1D(4, 2, **k))],
            ["depthwise", "pointwise"],
            ["bias"],
        ),
        (lambda **k: [WeightNorm(layers.LSTM(4, **k))], ["kernel", "recurrent"], ["bias"]),
        (
            lambda **k: [WeightNorm(layers.Dense(4, **k), mean_only="batch")],
            ["kernel", "bias"],
            [],
        ),
        (lambda **k: [Affine(), layers.Conv1D(4, 2, **k)], ["kernel", "bias"], []),
        (lambda **k: [Affine(use_bias=False), layers.Conv1D(4, 2, **k)], ["kernel"], ["bias"]),
        (
            lambda **k: [Affine(), layers.SeparableConv1D(4, 2, **k)],
            ["depthwise", "bias"],
            ["pointwise"],
        ),
    ],
)
def test_what_restricts_a_weight_that_a_fold_changes_is_left_out(last, gone, kept, kind):
    arguments = {f"{weight}_{kind}": RESTRICTED[kind] for weight in gone + kept}
    source = keras.Sequential([keras.Input((5, 4)), layers.ReLU(), *last(**arguments)])
    for variable in source.variables:
        variable.assign(np.random.default_rng(0).normal(size=variable.shape))
    folded = kerasnorm.fold_norms(source).layers[-1]
    assert [w for w in gone + kept if getattr(folded, f"{w}_{kind}") is not None] == kept


def test_a_step_of_training_does_not_move_a_folded_model():
    source = behind("Dense", kernel_constraint="non_neg")
    folded = kerasnorm.fold_norms(kerasnorm.swap_norms(source, "weight").model)
    x = data_for(source)
    before = folded.predict(x, verbose=0)
    folded.compile(keras.optimizers.SGD(1e-9), "mse", jit_compile=False)
    folded.fit(x, before, verbose=0)
    np.testing.assert_allclose(folded.predict(x, verbose=0), before, rtol=1e-4, atol=1e-4)


def penalizing(layer):
    """A model with this layer between others that cannot take it in."""
    inputs = keras.Input((6, 4))
    x = layers.ReLU()(layers.Dense(4)(layers.ReLU()(inputs)))
    return keras.Model(inputs, layers.ReLU()(layer(x)))


@pytest.mark.parametrize(
    "layer",
    [
        lambda **k: WeightNorm(layers.Dense(3), **k),
        lambda **k: WeightNorm(layers.Dense(3, **k)),
        lambda **k: WeightNorm(layers.Dense(3, **k), mean_only="batch"),
        lambda **k: WeightNorm(layers.LSTM(3), **k),
        lambda **k: WeightNorm(Affine(), **k),
        lambda **k: WeightNorm(Affine(**k)),
        Affine,
        kerasnorm.BatchNorm,
        kerasnorm.LayerNorm,
        lambda **k: kerasnorm.LayerNorm(axis="sample", **k),
    ],
)
def test_the_penalty_of_outputs_stays_where_a_layer_is_folded(layer):
    source = penalizing(layer(activity_regularizer=keras.regularizers.L2(0.3)))
    folded = kerasnorm.fold_norms(source)
    assert not any(isinstance(la, WeightNorm) for la in all_layers(folded))
    x = data_for(source, rows=5)
    expected, received = [[model(x), penalty(model)][1] for model in (source, folded)]
    assert received == pytest.approx(expected, rel=ROUNDING)
    assert received > 0


def test_two_penalties_of_one_output_are_not_folded():
    inner = layers.Dense(3, activity_regularizer="l2")
    source = penalizing(WeightNorm(inner, activity_regularizer="l1", name="normed"))
    with pytest.raises(SwapError, match=r"'normed' \(it penalizes its output, and the"):
        kerasnorm.fold_norms(source)


@pytest.mark.parametrize("to", ["weight", "layer", "group"])
def test_a_frozen_batch_norm_runs_on_stored_statistics_in_training_too(to):
    """`training=True` changes nothing of a BatchNorm that is frozen, so it is swapped."""
    inputs = keras.Input((5,))
    norm = BN(name="bn", trainable=False)
    outputs = norm(layers.Dense(4, name="dense")(inputs), training=True)
    source = keras.Model(inputs, outputs)
    randomize(source, np.random.default_rng(0).normal(size=(32, 5)))
    x = np.random.default_rng(1).normal(size=(16, 5)).astype("float32")
    expected = np.array(source(x))
    swap = kerasnorm.swap_norms(source, to)
    assert not swap.report.refused
    if to == "weight":
        np.testing.assert_allclose(swap.model(x), expected, rtol=1e-5, atol=1e-5)
    norm.trainable = True
    assert "training=True" in kerasnorm.swap_norms(source, to).report.refused[0].reason


@pytest.mark.parametrize(
    "between",
    [
        lambda **penalty: layers.Activation("linear", **penalty),
        lambda **penalty: layers.TimeDistributed(layers.Dense(3), **penalty),
        lambda **penalty: layers.TimeDistributed(tiny_code.Block(3), **penalty),
    ],
    ids=["a layer that is crossed", "a wrapper", "a wrapper of code"],
)
@pytest.mark.parametrize("to", TARGETS)
def test_the_penalty_of_outputs_in_front_of_a_batch_norm_is_what_it_was(between, to):
    inputs = keras.Input((5, 4))
    x = between(activity_regularizer="l2")(layers.Dense(3)(inputs))
    source = keras.Model(inputs, BN(name="bn")(x))
    x = data_for(source)
    randomize(source, x)
    swapped = kerasnorm.swap_norms(source, to, sites=["bn"]).model
    for model in (source, swapped):
        model(x)
    assert penalty(swapped) == pytest.approx(penalty(source), rel=ROUNDING)


@pytest.mark.parametrize("to", [*TARGETS, "cosine"])
def test_penalties_are_no_object_of_the_source(to):
    def penalties():
        kinds = {
            "regularizer": keras.regularizers.L2(0.1),
            "constraint": keras.constraints.MaxNorm(),
        }
        return {f"gamma_{kind}": penalty for kind, penalty in kinds.items()}

    inputs = keras.Input((4,))
    x = layers.Dense(4, kernel_regularizer="l2", kernel_constraint="max_norm")(inputs)
    x = BN(activity_regularizer="l2")(x)
    source = keras.Model(inputs, BN(activity_regularizer="l2", **penalties())(layers.ReLU()(x)))
    data = data_for(source) if to == "cosine" else None
    models = [source, kerasnorm.swap_norms(source, to, data).model]
    if to == "weight":
        models.append(kerasnorm.fold_norms(models[-1]))
    seen = set()
    for model in models:
        own = [
            value
            for part in (*all_layers(model), *model.variables)
            for name, value in vars(part).items()
            if name.endswith(("regularizer", "constraint")) and value is not None
        ]
        own += [x for p in own for x in vars(p).values() if hasattr(x, "get_config")]
        assert own
        assert seen.isdisjoint(map(id, own))
        seen |= {id(penalty) for penalty in own}


@keras.saving.register_keras_serializable("test_penalties")
class Growing(keras.regularizers.Regularizer):
    """A penalty whose strength changes in training."""

    def __init__(self, beta=1.0):
        self.start, self.steps = beta, 0
        self.beta = keras.Variable(beta, trainable=False)

    def grow(self):
        self.beta.assign(7.0)
        self.steps += 1

    def __call__(self, x):
        return self.beta * keras.ops.sum(keras.ops.square(x))

    def get_config(self):
        return {"beta": self.start}


@pytest.mark.parametrize("wrap", [lambda layer: layer, layers.TimeDistributed])
def test_the_present_strength_of_a_penalty_is_carried(wrap):
    inputs = keras.Input((5, 3))
    kept = layers.Dense(4, kernel_regularizer=Growing(), activation="relu")
    folded = layers.Dense(4, kernel_regularizer=Growing())
    source = keras.Model(inputs, BN()(folded(wrap(kept)(inputs))))
    for layer in (kept, folded):
        layer.kernel_regularizer.grow()
    swapped = kerasnorm.swap_norms(source, "weight").model
    assert penalty(swapped) == pytest.approx(penalty(source), rel=ROUNDING)
    copy = next(layer for layer in all_layers(swapped) if layer.name == kept.name)
    assert copy.kernel_regularizer.steps == 1
    assert copy.kernel_regularizer.beta is not kept.kernel_regularizer.beta


def test_the_penalty_of_gamma_in_code_means_gamma_still():
    """Its gain is γ/s times the deviation of what is normalized."""

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            penalties = {"gamma_regularizer": "l2", "gamma_constraint": "non_neg"}
            self.norm = BN(name="bn", **penalties)

        def call(self, x):
            return keras.ops.tanh(self.norm(keras.ops.relu(x)))

    source, x = Net(), np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    source(x)
    randomize(source, x)
    swapped = kerasnorm.swap_norms(source, "layer", damping=0).model
    swapped(x)
    assert swapped.norm.gamma_constraint is not None
    assert penalty(swapped) == pytest.approx(penalty(source), rel=1e-4)
