"""What each target decides for a site, and what it says is lost: the whole of it, word for word."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import kerasnorm
from kerasnorm.clone.edits import Replace, Skip
from kerasnorm.errors import Refusal
from kerasnorm.graph import sites
from kerasnorm.graph.model_graphs import graphs_of
from kerasnorm.targets import fold_into
from kerasnorm.targets.registry import TARGETS

BN = layers.BatchNormalization


SAMPLE_NORMS = ("layer", "group")


def planned(model, target, number=0):
    graphs = graphs_of(model)
    found = sites.find_sites(graphs)[0]
    return TARGETS[target].check(found[number], graphs), graphs


def notes_of(model, target, number=0):
    return TARGETS[target].notes(*planned(model, target, number))


def behind_a_linear_layer(norm=None, linear=None, end=layers.ReLU):
    inputs = keras.Input((3,))
    x = (linear or layers.Dense(4, name="linear"))(inputs)
    return keras.Model(inputs, end()((norm or BN(name="bn"))(x)))


def behind_an_activation(norm=None):
    inputs = keras.Input((3,))
    return keras.Model(inputs, layers.ReLU()((norm or BN(name="bn"))(layers.ReLU()(inputs))))


def shared():
    inputs = keras.Input((4,))
    norm = BN(name="bn")
    x = norm(layers.Dense(4, name="first")(inputs))
    return keras.Model(inputs, layers.ReLU()(norm(layers.Dense(4, name="second")(x))))


# What is decided


@pytest.mark.parametrize(
    ("target", "becomes", "verdict", "in_place"),
    [
        ("weight", "WeightNorm(Dense)", "exact", False),
        ("layer", "LayerNorm", "matched", True),
        ("cosine", "CosineNorm(Dense)", "calibrated", False),
    ],
)
def test_behind_a_linear_layer(target, becomes, verdict, in_place):
    model = behind_a_linear_layer()
    plan, _ = planned(model, target)
    assert (plan.case, plan.rule, plan.target) == (1, f"to_{target} 1", target)
    assert (plan.becomes, plan.verdict, plan.in_place) == (becomes, verdict, in_place)
    assert plan.partner.layer is model.get_layer("linear")
    assert [call.operation.name for call in plan.calls] == ["linear", "bn"]
    record = plan.record
    assert (record.name, record.target, record.partner) == ("bn", target, "linear")
    assert (record.becomes, record.verdict, record.rule) == (becomes, verdict, f"to_{target} 1")
    assert (record.reason, record.across) == ("taken in by 'linear'", ())


@pytest.mark.parametrize(
    ("target", "becomes", "verdict"),
    [
        ("weight", "WeightNorm(Affine)", "exact"),
        ("layer", "Affine, LayerNorm", "matched"),
        ("cosine", "Affine", "exact"),
    ],
)
def test_elsewhere(target, becomes, verdict):
    plan, _ = planned(behind_an_activation(BN(name="bn")), target)
    assert (plan.case, plan.becomes, plan.verdict) == (2, becomes, verdict)
    assert (plan.partner, plan.in_place) == (None, True)
    assert [call.operation.name for call in plan.calls] == ["bn"]
    assert plan.record.partner is None
    assert "in front of it is no linear layer" in plan.record.reason


def test_across_layers_in_between():
    inputs = keras.Input((8, 3))
    x = layers.AveragePooling1D(2, name="pool")(layers.Dense(4, name="linear")(inputs))
    x = BN(name="bn")(layers.Dropout(0.1, name="drop")(x))
    plan, _ = planned(keras.Model(inputs, x), "weight")
    # the one next to the BatchNorm first; the output keeps its name by a layer in its place
    assert plan.record.across == ("drop", "pool")
    assert plan.record.reason == "taken in by 'linear', across 'drop', 'pool'"
    assert (plan.name, plan.in_place) == ("linear", True)
    inner = keras.Model(inputs, layers.ReLU()(x))
    assert planned(inner, "weight")[0].in_place is False
    refused, _ = planned(inner, "cosine")
    assert refused.record.reason.startswith("'pool' stands between it and 'linear'")


@pytest.mark.parametrize(("end", "name"), [(layers.ReLU, "linear"), (None, "bn")])
@pytest.mark.parametrize("target", ["weight", "cosine"])
def test_a_layer_that_makes_an_output_has_the_name_of_the_batch_norm(target, end, name):
    model = behind_a_linear_layer(end=end or (lambda: lambda x: x))
    assert planned(model, target)[0].name == name


def test_names_of_outputs_of_nested_models_and_of_shared_layers_are_none():
    inner = behind_a_linear_layer(end=lambda: lambda x: x)
    inputs = keras.Input((3,))
    assert planned(keras.Model(inputs, inner(inputs)), "weight")[0].name == "linear"
    inputs, norm = keras.Input((4,)), BN(name="bn")
    x = norm(layers.Dense(4, name="first")(inputs))
    model = keras.Model(inputs, norm(layers.Dense(4, name="second")(x)))
    assert planned(model, "weight", 1)[0].name == "second"


def test_a_batch_norm_that_trains_on_its_batch_is_refused_unless_it_is_frozen():
    inputs = keras.Input((3,))
    norm = BN(name="bn")
    model = keras.Model(inputs, norm(layers.Dense(4)(inputs), training=True))
    for target in TARGETS:
        plan, _ = planned(model, target)
        assert isinstance(plan, Refusal)
        assert plan.reason.startswith(
            "it is called with training=True: its batch decides in `model(x)`"
        )
    norm.trainable = False
    assert planned(model, "weight")[0].verdict == "exact"


class LiveInCode(layers.Layer):
    def __init__(self):
        super().__init__()
        inputs = keras.Input((3,))
        self.inner = keras.Model(inputs, BN(name="bn")(inputs))

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x, training=True)


@pytest.mark.parametrize("by_code", [False, True])
def test_when_the_batch_decides(by_code):
    """What the reason says of `model(x)`, `predict` and `evaluate` is what Keras does."""
    inputs, norm = keras.Input((3,)), BN(name="bn")
    y = LiveInCode()(inputs) if by_code else norm(inputs, training=True)
    model = keras.Model(inputs, y)
    if by_code:
        norm = model.layers[-1].inner.get_layer("bn")
    x = np.random.default_rng(0).normal(3, 2, (64, 3)).astype("float32")
    site = kerasnorm.inspect_norms(model).sites[0]
    model.compile(loss=lambda t, y: keras.ops.mean(keras.ops.square(y)))

    def decides(answer) -> bool:
        return bool(np.abs(np.mean(answer, 0)).max() < 0.1)

    loss_of_batch = 1.0  # of what was normalized by its own variance
    assert decides(model(x))
    norm.moving_mean.assign(np.zeros(3))
    norm.moving_variance.assign(np.ones(3))
    assert decides(model.predict(x, verbose=0, batch_size=64)) is by_code
    loss = model.evaluate(x, x, verbose=0, batch_size=64)
    assert (abs(loss - loss_of_batch) < 0.1) is by_code
    assert ("by code, so that its batch decides" in site.reason) is by_code
    assert ("its moving statistics in `predict`, `evaluate` and export" in site.reason) != by_code
    # what it says to try
    norm.trainable = False
    swap = kerasnorm.swap_norms(model, "weight", strict=True)
    np.testing.assert_allclose(swap.model(x), model.predict(x, verbose=0), atol=1e-4)


@pytest.mark.parametrize("target", TARGETS)
def test_what_takes_the_place_of_what(target):
    plan, _ = planned(behind_a_linear_layer(), target)
    edits = TARGETS[target].rewrite(plan, "new", (0.0, 0.1))
    linear, norm = plan.partner.call, plan.site.call
    assert set(edits) == {linear, norm}
    assert isinstance(edits[linear], Replace)
    assert isinstance(edits[norm], Replace if target in SAMPLE_NORMS else Skip)
    request = TARGETS[target].fit_request(plan, edits, (0.0, 0.1))
    if target == "weight":
        assert request is None
    else:
        assert request.layer is edits[norm if target in SAMPLE_NORMS else linear]
        assert request.target is norm
        assert (request.plain is edits[linear]) == (target in SAMPLE_NORMS)
        assert request.source is None
        assert len(request.damping) == 2


# What is lost


FROZEN = {
    "weight": ("g trains", "kernel, g and bias train"),
    "layer": (
        "gamma and beta of the LayerNorm train",
        "kernel and bias train, which gamma and beta are folded into",
    ),
    "group": (
        "gamma and beta of the GroupNorm train",
        "kernel and bias train, which gamma and beta are folded into",
    ),
    "cosine": ("nothing trains", "kernel, g and bias train"),
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_layer_that_is_frozen_without_the_other(target):
    model = behind_a_linear_layer()
    linear, norm = model.get_layer("linear"), model.get_layer("bn")
    assert notes_of(model, target) == []
    linear.trainable = False
    of_norm, of_linear = FROZEN[target]
    assert notes_of(model, target) == [
        f"'bn': 'linear' was frozen and the other was not; {of_norm}"
    ]
    norm.trainable = False
    assert notes_of(model, target) == []
    linear.trainable = True
    assert notes_of(model, target) == [f"'bn': 'bn' was frozen and the other was not; {of_linear}"]


@pytest.mark.parametrize("target", TARGETS)
def test_gamma_and_beta_that_were_shared(target):
    model = shared()
    notes = {
        "weight": "'second' has a gain and bias of its own",
        "layer": "they are folded into 'second' here",
        "group": "they are folded into 'second' here",
        "cosine": "'second' has a gain and bias of its own",
    }
    (note,) = notes_of(model, target, 1)
    assert note.startswith("'bn#2': it shared gamma and beta with its other calls; ")
    assert note.endswith(notes[target])


def penalized(center=True, scale=True, **more):
    penalties = {f"{weight}_regularizer": "l2" for weight in ("gamma", "beta")}
    constraints = {f"{weight}_constraint": "non_neg" for weight in ("gamma", "beta")}
    return BN(name="bn", center=center, scale=scale, **{**penalties, **constraints, **more})


@pytest.mark.parametrize("target", TARGETS)
def test_penalties_that_are_gone(target):
    both = [f"'bn': the {kind} of gamma and beta is gone with them" for kind in fold_into._KINDS]
    beta = [f"'bn': the {kind} of beta is gone with them" for kind in fold_into._KINDS]
    assert notes_of(behind_a_linear_layer(penalized()), target) == both
    assert notes_of(behind_a_linear_layer(penalized(scale=False)), target) == beta
    none = {"gamma_constraint": None, "beta_constraint": None, "beta_regularizer": None}
    assert notes_of(behind_a_linear_layer(penalized(**none)), target) == [
        "'bn': the regularizer of gamma is gone with them"
    ]
    # an Affine keeps those of gamma
    elsewhere = notes_of(behind_an_activation(penalized()), target)
    assert elsewhere == (both if target == "weight" else beta)


@pytest.mark.parametrize(
    ("target", "wrapper"), [("weight", "WeightNorm"), ("cosine", "CosineNorm")]
)
def test_penalties_of_a_direction(target, wrapper):
    linear = layers.Dense(4, name="linear", kernel_regularizer="l2", kernel_constraint="non_neg")
    assert notes_of(behind_a_linear_layer(linear=linear), target) == [
        f"'linear': its kernel_{kind} acts on the direction that {wrapper} takes from the kernel "
        "now, and does not restrict the length of the weights"
        for kind in ("regularizer", "constraint")
    ]


@pytest.mark.parametrize(("zeros", "what"), [(0, None), (1, "1 unit"), (3, "3 units")])
def test_penalties_of_units_that_gamma_erases(zeros, what):
    linear = layers.Dense(4, name="linear", kernel_regularizer="l2", kernel_constraint="non_neg")
    model = behind_a_linear_layer(linear=linear)
    model.get_layer("bn").gamma.assign(np.arange(4.0) >= zeros)
    expected = f"'linear': its kernel_regularizer and kernel_constraint leave out {what}"
    notes = [f"{expected} that gamma=0 erases"] if what else []
    assert notes_of(model, "layer") == notes
    model.get_layer("linear").kernel_constraint = None
    expected = f"'linear': its kernel_regularizer leaves out {what}"
    assert notes_of(model, "layer") == ([f"{expected} that gamma=0 erases"] if what else [])
    model.get_layer("linear").kernel_regularizer = None
    assert notes_of(model, "layer") == []
