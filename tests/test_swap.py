"""`swap_norms` to weight norm: exact at every site, source untouched, everything kept."""

from __future__ import annotations

import json
import sys

import keras
import numpy as np
import pytest
import tiny_models
from fidelity import (
    SITE_TOLERANCE,
    all_layers,
    assert_exact,
    assert_no_batch_norm,
    every_site,
    randomize,
)
from keras import layers

import kerasnorm
from kerasnorm import Affine, SwapError, WeightNorm

EXACT_MODELS = {
    name: getattr(tiny_models, name)
    for name in (
        "dense_bn",
        "conv_bn_relu",
        "sequential",
        "bn_on_input",
        "bn_after_activation",
        "pre_activation",
        "conv_with_two_readers",
        "conv_that_is_an_output",
        "two_bn_on_one_conv",
        "shared_conv",
        "shared_bn",
        "nested",
        "structured",
        "masked",
        "channels_first",
        "bare_affine",
    )
} | {
    f"behind {kind}{bias}": (lambda kind=kind, a=arguments: tiny_models.behind_linear(kind, **a))
    for kind in tiny_models.LINEAR
    for bias, arguments in (
        ("", {"bias_initializer": "normal"}),
        *(() if "Einsum" in kind else ((" without bias", {"use_bias": False}),)),
    )
}


def batch(model, seed=0, rows=16):
    rng = np.random.default_rng(seed)
    return keras.tree.map_structure(
        lambda t: rng.normal(size=(rows, *t.shape[1:])).astype(t.dtype),
        model.inputs[0] if isinstance(model, keras.Sequential) else model.input,
    )


def weight_sites(model):
    """What a swap to weight norm would do."""
    return [s for s in kerasnorm.inspect_norms(model).sites if s.target == "weight"]


def randomized(name):
    keras.utils.set_random_seed(0)  # some random channels hardly vary, and amplify rounding
    model = EXACT_MODELS[name]()
    randomize(model, batch(model))
    return model


@pytest.mark.parametrize("name", EXACT_MODELS)
def test_exact_at_every_call(name):
    source = randomized(name)
    before = [np.array(v) for v in source.variables]
    swap = kerasnorm.swap_norms(source, "weight")
    assert_exact(source, swap, batch(source, seed=1))
    assert_no_batch_norm(swap.model)
    assert {site.verdict for site in swap.report.sites} == {"exact"}
    assert all(np.array_equal(a, b) for a, b in zip(before, source.variables, strict=True))
    assert not {id(v) for v in source.variables} & {id(v) for v in swap.model.variables}


@pytest.mark.parametrize("name", [name for name in EXACT_MODELS if name != "masked"])
def test_fold_is_exact_and_plain(name):
    source = randomized(name)
    folded = kerasnorm.fold_norms(kerasnorm.swap_norms(source, "weight").model)
    x = batch(source, seed=1)
    for a, b in zip(keras.tree.flatten(source(x)), keras.tree.flatten(folded(x)), strict=True):
        np.testing.assert_allclose(a, b, atol=SITE_TOLERANCE * np.std(a))
    own = [type(layer).__module__.split(".")[0] for layer in all_layers(folded)]
    assert set(own) == {"keras"}


@pytest.mark.parametrize(
    ("name", "becomes", "reason"),
    [
        ("bn_on_input", "WeightNorm(Affine)", "an input of the model"),
        ("bn_after_activation", "WeightNorm(Affine)", "has an activation"),
        ("conv_with_two_readers", "WeightNorm(Affine)", "used elsewhere too"),
        ("conv_that_is_an_output", "WeightNorm(Affine)", "used elsewhere too"),
        ("two_bn_on_one_conv", "WeightNorm(Affine)", "used elsewhere too"),
        ("shared_conv", "WeightNorm(Affine)", "called more than once"),
        ("channels_first", "WeightNorm(Affine)", "no linear layer"),
        ("conv_bn_relu", "WeightNorm(Conv2D)", "taken in by 'conv'"),
        ("dense_bn", "WeightNorm(Dense)", "taken in by 'dense'"),
    ],
)
def test_the_record_says_what_and_why(name, becomes, reason):
    for site in kerasnorm.swap_norms(EXACT_MODELS[name](), "weight").report.sites:
        assert site.becomes == becomes
        assert reason in site.reason


def test_whose_input_is_normalized_is_said():
    inputs = keras.Input((5, 3))
    per_step = layers.TimeDistributed(layers.BatchNormalization(), name="per_step")
    nested = keras.Sequential([keras.Input((5, 3)), layers.BatchNormalization()], name="nested")
    source = keras.Model(inputs, nested(per_step(layers.BatchNormalization()(inputs))))
    assert {site.reason for site in weight_sites(source)} == {
        "it normalizes an input of the model",
        "it normalizes an input of 'per_step'",
        "it normalizes an input of 'nested'",
    }


def test_no_linear_layer_is_said_before_who_else_reads_it():
    inputs = keras.Input((4,))
    both = layers.Concatenate(name="both")([inputs, 2 * inputs])
    source = keras.Model(inputs, layers.Add()([both, layers.BatchNormalization()(both)]))
    (site,) = weight_sites(source)
    assert site.reason == "'both' (Concatenate) in front of it is no linear layer"


@pytest.mark.parametrize("kind", tiny_models.LINEAR)
def test_every_linear_layer_takes_its_batch_norm_in(kind):
    (site,) = weight_sites(tiny_models.behind_linear(kind))
    assert site.partner == "linear", site.reason


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: type("Own", (layers.Dense,), {})(4, name="linear"), "no linear layer"),
        (lambda: layers.Dense(4, activity_regularizer="l2", name="linear"), "activity regularizer"),
        (lambda: layers.Dense(4, dtype="mixed_bfloat16", name="linear"), "another dtype"),
        (lambda: layers.Dense(4, activation="tanh", name="linear"), "has an activation"),
        (lambda: layers.EinsumDense("ab,bc->ac", 4, bias_axes="c", name="linear"), "taken in"),
        (
            lambda: layers.EinsumDense("ab,bcd->acd", (3, 4), bias_axes="d", name="linear"),
            "taken in",
        ),
        (
            lambda: layers.EinsumDense("ab,bcd->acd", (3, 4), bias_axes="c", name="linear"),
            "no entry for each channel",
        ),
    ],
)
def test_who_may_take_a_batch_norm_in(layer, reason):
    (site,) = weight_sites(tiny_models._behind(layer(), (5,)))
    assert reason in site.reason


@pytest.mark.parametrize(
    ("change", "form"),
    [
        (lambda layer: layer.enable_lora(2), "LoRA-enabled"),
        (lambda layer: layer.quantize("int8"), "quantized"),
        (lambda layer: layer.quantize("int4"), "quantized"),
        (lambda layer: layer.quantize("float8"), "quantized"),
    ],
)
def test_a_layer_with_a_kernel_of_another_form_keeps_it(change, form):
    model = tiny_models.behind_linear("Dense")
    change(model.get_layer("linear"))
    swap = kerasnorm.swap_norms(model, "weight", strict=True)
    (site,) = swap.report.sites
    assert site.becomes == "WeightNorm(Affine)"
    assert site.reason == f"'linear' (Dense) in front of it is {form}"
    x = batch(model)
    for other in (swap.model, kerasnorm.fold_norms(swap.model)):
        assert type(other.get_layer("linear")) is layers.Dense
        np.testing.assert_allclose(other(x), model(x), atol=1e-4)


def test_a_layer_quantized_inside_another():
    inputs = keras.Input((6, 4))
    steps = layers.TimeDistributed(layers.Dense(4))
    model = keras.Model(inputs, layers.BatchNormalization()(steps(inputs)))
    steps.layer.quantize("float8")
    randomize(model, batch(model))
    assert_exact(model, kerasnorm.swap_norms(model, "weight", strict=True), batch(model))


def test_a_small_change_of_one_beta_is_seen():
    source = tiny_models.pre_activation()
    x = batch(source)
    randomize(source, x)
    swap = kerasnorm.swap_norms(source, "weight")
    assert max(swap.compare(x).values()) < SITE_TOLERANCE
    cut = keras.Model(source.inputs[0], source.get_layer("bn_1").output)
    deviation = np.std(np.array(cut(x))[..., 1])
    beta = source.get_layer("bn_1").beta
    beta.assign(beta + 1e-3 * np.eye(beta.shape[0])[1])
    assert swap.compare(x)["bn_1"] == pytest.approx(1e-3 / deviation, rel=0.01)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-5])
def test_extreme_statistics(epsilon):
    """What real files hold: variances of 0, 1e-36 and 1e13, gamma negative and zero."""
    inputs = keras.Input((6,))
    x = layers.Dense(6, name="dense")(inputs)
    source = keras.Model(inputs, layers.BatchNormalization(epsilon=epsilon, name="bn")(x))
    norm = source.get_layer("bn")
    norm.moving_variance.assign([0.0, 1e-36, 1e13, 1.0, 1e-6, 3e5])
    norm.moving_mean.assign([0.0, 1e-20, 1e6, -1.0, 0.0, 100.0])
    norm.gamma.assign([1.0, -2.0, 1.0, 0.0, -1e-20, 3.0])
    norm.beta.assign([0.5, 0.0, -1.0, 2.0, 1.0, 0.0])
    kernel = np.random.default_rng(0).normal(size=(6, 6))
    kernel[:, 1] = 0.0  # a dead unit: no direction
    kernel[:, 4] *= 1e-30
    source.get_layer("dense").kernel.assign(kernel)
    swap = kerasnorm.swap_norms(source, "weight")
    x = np.random.default_rng(1).normal(size=(8, 6)).astype("float32")
    # per channel: their scales are 1e-15 to 1e2
    expected, received = np.array(source(x)), np.array(swap.model(x))
    scale = np.abs(expected).max(0)
    assert (np.abs(received - expected).max(0) <= 1e-5 * scale).all()
    assert np.isfinite(received).all()
    weights = swap.model.get_layer(swap.report.layers["dense"])
    assert np.array(weights.g)[1] == 0
    assert np.abs(np.array(weights.layer.kernel)[:, 1]).min() > 0
    assert np.array(weights.g)[5] > 0


def test_g_is_signed_and_v_is_the_source_kernel():
    source = tiny_models.conv_bn_relu()
    randomize(source, batch(source))
    new = kerasnorm.swap_norms(source, "weight").model.get_layer("conv")
    norm, kernel = source.get_layer("bn"), np.array(source.get_layer("conv").kernel, "float64")
    np.testing.assert_array_equal(new.layer.kernel, kernel.astype("float32"))
    scale = np.array(norm.gamma) / np.sqrt(np.array(norm.moving_variance, "float64") + 1e-3)
    np.testing.assert_allclose(new.g, scale * np.sqrt(np.square(kernel).sum((0, 1, 2))), rtol=1e-6)


def test_training_the_result_leaves_the_source_alone():
    source = tiny_models.compiled()
    before = source.get_weights()
    swap = kerasnorm.swap_norms(source, "weight")
    start = swap.model.get_weights()
    x, y = batch(source), np.zeros(16, "int32")
    swap.model.fit(x, y, epochs=2, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, source.get_weights(), strict=True))
    assert any((a != b).any() for a, b in zip(start, swap.model.get_weights(), strict=True))


def test_compile_state_is_kept():
    source = tiny_models.compiled()
    model = kerasnorm.swap_norms(source, "weight").model
    assert model.compiled
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    assert model.optimizer is not source.optimizer
    assert model.optimizer.get_config() == source.optimizer.get_config()
    assert model.loss == "sparse_categorical_crossentropy"


@keras.saving.register_keras_serializable("test_swap")
class Weighted(keras.losses.Loss):
    """A loss that does not tell its argument."""

    def __init__(self, weight=1.0, name="weighted", **kwargs):
        super().__init__(name=name, **kwargs)
        self.weight = weight

    def call(self, y_true, y_pred):
        return self.weight * keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)


@pytest.mark.parametrize("in_list", [False, True])
def test_a_compiled_loss_weighs_as_it_did(in_list):
    source = tiny_models.sequential()
    source.compile("sgd", [Weighted(7.0)] if in_list else Weighted(7.0))
    swapped = kerasnorm.swap_norms(source, "weight").model
    x = batch(source)
    y = np.zeros_like(source.predict(x, verbose=0))
    losses = [model.evaluate(x, y, verbose=0) for model in (source, swapped)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_compile_state_that_cannot_be_copied_is_said():
    source = tiny_models.conv_bn_relu()

    def own_loss(y_true, y_pred):
        return keras.ops.mean(y_pred)

    source.compile("sgd", own_loss)
    swap = kerasnorm.swap_norms(source, "weight")
    assert not swap.model.compiled
    assert any("not compiled" in note for note in swap.report.notes)


def test_names_flags_policies_and_regularizers_are_kept():
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, kernel_regularizer=keras.regularizers.L2(0.1), name="conv")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    x = layers.BatchNormalization(name="bn_2", beta_regularizer="l2", trainable=False)(x)
    x = layers.Dense(2, trainable=False, name="head")(layers.Flatten(name="flat")(x))
    source = keras.Model(inputs, x, name="net")
    swap = kerasnorm.swap_norms(source, "weight")
    model = swap.model
    assert model.name == "net"
    assert [tensor.name for tensor in model.inputs] == ["image"]
    assert [layer.name for layer in model.layers] == [
        "image", "conv", "relu", "bn_2", "flat", "head",
    ]  # fmt: skip
    assert swap.report.layers == {
        "image": "image", "conv": "conv", "bn": "conv", "relu": "relu", "bn_2": "bn_2",
        "flat": "flat", "head": "head",
    }  # fmt: skip
    assert not model.get_layer("head").trainable
    assert not model.get_layer("bn_2").trainable
    assert not model.get_layer("bn_2").trainable_variables
    assert model.get_layer("conv").trainable
    assert model.get_layer("conv").layer.kernel_regularizer.l2 == pytest.approx(0.1)
    assert any("regularizer of beta" in note for note in swap.report.notes)
    np.testing.assert_allclose(model.losses[0], source.losses[0], rtol=1e-6)


@pytest.mark.parametrize(("conv", "norm"), [(True, False), (False, True), (False, False)])
def test_frozen_layers(conv, norm):
    source = tiny_models.conv_bn_relu()
    source.get_layer("conv").trainable = conv
    source.get_layer("bn").trainable = norm
    swap = kerasnorm.swap_norms(source, "weight")
    new = swap.model.get_layer("conv")
    assert bool(new.layer.trainable_variables) == conv
    assert new.g.trainable == (conv or norm)
    data = np.random.default_rng(0).normal(size=(64, 8, 8, 3))
    others = [kerasnorm.swap_norms(source, to, data).report for to in ("layer", "group", "cosine")]
    for report in (swap.report, *others):
        assert any("was frozen" in note for note in report.notes) == (conv != norm)


@pytest.mark.parametrize(
    ("to", "frozen", "becomes", "trains"),
    [
        ("weight", ["linear/kernel"], "linear", {"g", "bias"}),
        ("weight", ["linear/kernel", "bn/gamma"], "linear", {"bias"}),
        ("weight", ["linear/bias", "bn/gamma"], "linear", {"g", "kernel"}),
        ("layer", ["linear/kernel"], "linear", {"bias"}),
        ("cosine", ["linear/kernel"], "linear", {"bias"}),
        ("weight", ["late/gamma"], "late", {"bias"}),
        ("weight", ["late/beta"], "late", {"g"}),
        ("layer", ["late/gamma"], "late_affine", {"bias"}),
    ],
)
def test_frozen_variables(to, frozen, becomes, trains):
    source = with_frozen(*frozen)
    swapped = kerasnorm.swap_norms(
        source, to, batch(source) if to == "cosine" else None, sites=every_site
    ).model
    assert {v.name for v in swapped.get_layer(becomes).trainable_variables} == trains


def test_frozen_variables_stay_frozen_in_folded_layers():
    source = with_frozen("linear/kernel", "bn/gamma", "head/kernel")
    folded = kerasnorm.fold_norms(kerasnorm.swap_norms(source, "weight").model)
    assert [layer.name for layer in folded.layers[1:]] == ["linear", "relu", "head"]
    for name in ("linear", "head"):
        assert [v.name for v in folded.get_layer(name).trainable_variables] == ["bias"]


def with_frozen(*paths):
    inputs = keras.Input((5,))
    x = layers.BatchNormalization(name="bn")(layers.Dense(4, name="linear")(inputs))
    x = layers.BatchNormalization(name="late")(layers.ReLU(name="relu")(x))
    source = keras.Model(inputs, layers.Dense(2, name="head")(x))
    randomize(source, batch(source))
    for path in paths:
        layer, name = path.split("/")
        getattr(source.get_layer(layer), name).trainable = False
    return source


def test_a_frozen_model_stays_frozen():
    source = tiny_models.nested()
    source.trainable = False
    source.get_layer("tail").trainable = True
    model = kerasnorm.swap_norms(source, "weight").model
    trainable = {v.path for v in model.variables if v.trainable}
    assert trainable
    assert all(path.startswith("tail/") or "/tail/" in path or "conv" in path for path in trainable)
    assert not model.trainable


def test_mixed_precision_is_kept():
    source = tiny_models.mixed_precision()
    x = batch(source)
    randomize(source, x)
    swap = kerasnorm.swap_norms(source, "weight")
    assert swap.model.get_layer("conv").dtype_policy.name == "mixed_float16"
    assert swap.model.get_layer("conv").g.dtype == "float32"
    assert [site.becomes for site in swap.report.sites] == [
        "WeightNorm(Conv2D)",
        "WeightNorm(Affine)",
    ]
    # float16 keeps 11 bits and rounds at other places once BatchNorm is folded in
    assert_exact(source, swap, x, tolerance=2e-2)


def test_training_true_is_refused():
    source = tiny_models.training_fixed()
    swap = kerasnorm.swap_norms(source, "weight")
    live, stored = swap.report.sites
    assert (live.verdict, stored.verdict) == ("refused", "exact")
    assert "training=True" in live.reason
    assert isinstance(swap.model.get_layer("live"), layers.BatchNormalization)
    x = batch(source)
    np.testing.assert_allclose(source(x), swap.model(x), atol=1e-5)
    with pytest.raises(SwapError, match=r"'live'.*training=True"):
        kerasnorm.swap_norms(source, "weight", strict=True)


@pytest.mark.parametrize(
    ("weight", "value", "reason"),
    [
        ("gamma", np.nan, "gamma holds 1 of 6 channels NaN"),
        ("moving_mean", np.inf, "moving_mean holds 1 of 6 channels NaN"),
        ("moving_variance", -1.0, "not positive for 1 of 6 channels"),
    ],
)
def test_broken_statistics_are_refused(weight, value, reason):
    source = tiny_models.conv_bn_relu()
    variable = getattr(source.get_layer("bn"), weight)
    values = np.array(variable)
    values[2] = value
    variable.assign(values)
    (site,) = kerasnorm.swap_norms(source, "weight").report.sites
    assert site.verdict == "refused"
    assert reason in site.reason


def test_a_subclass_with_a_call_of_its_own_is_refused():
    class Twice(layers.BatchNormalization):
        def call(self, inputs, training=None, mask=None):
            return 2 * super().call(inputs, training=training, mask=mask)

    class Named(layers.BatchNormalization):
        pass

    inputs = keras.Input((4,))
    source = keras.Model(inputs, Named(name="named")(Twice(name="twice")(inputs)))
    twice, named = kerasnorm.swap_norms(source, "weight").report.sites
    assert (twice.verdict, named.verdict) == ("refused", "exact")
    assert "Twice computes in its own way" in twice.reason


def test_our_own_batch_norm_is_swapped_too():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    source = keras.Model(inputs, kerasnorm.BatchNorm(name="bn")(x))
    x = batch(source)
    randomize(source, x)
    swap = kerasnorm.swap_norms(source, "weight")
    assert_exact(source, swap, x)
    assert [site.becomes for site in swap.report.sites] == ["WeightNorm(Conv2D)"]


def test_chosen_sites_only():
    source = tiny_models.pre_activation()
    x = batch(source)
    randomize(source, x)
    for sites in (["bn_2"], lambda site: site.partner is None and site.name == "bn_2"):
        swap = kerasnorm.swap_norms(source, "weight", sites=sites)
        left, done = swap.report.sites
        assert (left.name, left.becomes, left.reason) == ("bn_1", "BatchNorm", "not asked for")
        assert done.becomes == "WeightNorm(Affine)"
        np.testing.assert_allclose(source(x), swap.model(x), atol=1e-4)
    by_name = kerasnorm.swap_norms(source, {"bn_2": "weight"})
    assert by_name.report.sites == swap.report.sites


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "batch"}, r"`to` must be one of .*'weight'.*Received: to='batch'"),
        ({"to": "weight", "sites": ["nope"]}, r"Received: \['nope'\]\. They are: bn"),
        ({"to": {"nope": "weight"}}, r"Received: \['nope'\]"),
        ({"to": {"nope": "weight", 1: "weight"}}, r"Received: \[1, 'nope'\]"),
        ({"to": "weight", "sites": "bn"}, r"list of names.* Received: .* Write sites=\['bn'\]"),
        ({"to": "weight", "sites": True}, "list of names or a predicate. Received: sites=True"),
        ({"to": "weight", "sites": [["bn"]]}, "list of names or a predicate"),
        ({"to": "weight", "seed": -1}, "`seed` must be a whole number, 0 at least"),
        ({"to": "weight", "seed": None}, "`seed` must be a whole number.* Received: seed=None"),
        ({"to": "weight", "batch_size": -1}, "`batch_size` must be a whole number, 1 at least"),
        ({"to": "weight", "batch_size": 16.0}, "Received: batch_size=16.0"),
        ({"to": "weight", "memory_budget": None}, "`memory_budget` must be a whole number"),
    ],
)
def test_wrong_requests(arguments, message):
    with pytest.raises(SwapError, match=message):
        kerasnorm.swap_norms(tiny_models.conv_bn_relu(), **arguments)


def test_what_is_no_model_is_refused():
    with pytest.raises(SwapError, match=r"Received: str. Load a file first"):
        kerasnorm.inspect_norms("model.keras")
    swap = kerasnorm.swap_norms(tiny_models.conv_bn_relu(), "weight")
    for function in (kerasnorm.fold_norms, kerasnorm.inspect_norms):
        with pytest.raises(SwapError, match=r"Received: Swap. Give its `.model`"):
            function(swap)


def test_data_has_to_be_numbers_and_as_many_for_each_input():
    words = keras.Input((), dtype="string", name="words")
    numbers = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(words)
    model = keras.Model(words, layers.BatchNormalization()(layers.Dense(4)(numbers)))
    with pytest.raises(SwapError, match=r"must take numbers.* Input 'words' takes text"):
        kerasnorm.swap_norms(model, "layer", np.array(["a", "b"] * 10))
    first, second = keras.Input((4,)), keras.Input((4,))
    model = keras.Model(
        [first, second], layers.BatchNormalization()(layers.Dense(4)(first + second))
    )
    with pytest.raises(SwapError, match="as many samples for one input as for another"):
        kerasnorm.swap_norms(model, "layer", [np.ones((20, 4)), np.ones((10, 4))])


def test_models_without_a_graph_are_refused():
    with pytest.raises(SwapError, match=r"must have been called on its inputs.*a Net"):
        kerasnorm.swap_norms(type(tiny_models.subclassed())(), "weight")


def test_strict_and_no_batch_norm():
    source = tiny_models.no_bn()
    swap = kerasnorm.swap_norms(source, "weight")
    assert str(swap.report) == "no_bn: no BatchNorm found."
    with pytest.raises(SwapError, match="`to` must be one of"):
        kerasnorm.swap_norms(source, "bogus")
    with pytest.raises(SwapError, match="`strict` needs a BatchNorm"):
        kerasnorm.swap_norms(source, "weight", strict=True)


def test_inspect_changes_nothing_and_agrees_with_the_swap():
    source = tiny_models.nested()
    before = [np.array(v) for v in source.variables]
    inspected = [s for s in kerasnorm.inspect_norms(source).sites if s.target == "weight"]
    assert inspected == kerasnorm.swap_norms(source, "weight").report.sites
    assert all(np.array_equal(a, b) for a, b in zip(before, source.variables, strict=True))


def test_one_record_for_each_call():
    swap = kerasnorm.swap_norms(tiny_models.shared_bn(), "weight")
    assert [(site.name, site.becomes) for site in swap.report.sites] == [
        ("bn", "WeightNorm(Dense)"),
        ("bn#2", "WeightNorm(Affine)"),
        ("bn#3", "WeightNorm(Affine)"),
    ]
    affines = [la for la in swap.model.layers if isinstance(getattr(la, "layer", None), Affine)]
    assert len(affines) == 1, "one BatchNorm called twice stays one layer"
    assert swap.report.notes == [
        "'bn': it shared gamma and beta with its other calls; 'first' has a gain and bias of its "
        "own"
    ]


def test_a_batch_norm_that_stays_in_one_place_keeps_its_name_there():
    swap = kerasnorm.swap_norms(tiny_models.half_live(), "weight")
    assert [site.verdict for site in swap.report.sites] == ["exact", "refused", "exact"]
    assert isinstance(swap.model.get_layer("bn"), layers.BatchNormalization)
    assert isinstance(swap.model.get_layer("bn_swapped").layer, Affine)


@pytest.mark.parametrize(
    ("to", "taken", "names"),
    [
        ({"bn": "weight", "bn#2": "layer"}, "bn_2", {"bn", "bn_2_"}),
        ({"bn": "weight"}, "bn_swapped", {"bn", "bn_swapped_"}),
    ],
)
def test_a_name_beside_a_batch_norm_is_not_given_twice(to, taken, names):
    norm, inputs = layers.BatchNormalization(name="bn"), keras.Input((4,))
    source = keras.Model(inputs, layers.Dense(4, name=taken)(norm(layers.ReLU()(norm(inputs)))))
    swapped = kerasnorm.swap_norms(source, to).model
    assert names <= {layer.name for layer in swapped.layers}


def test_nested_models_are_named_by_path():
    report = kerasnorm.swap_norms(tiny_models.nested(), "weight").report
    assert [site.name for site in report.sites] == [
        "block/first",
        "block/second",
        "tail/bn",
        "bn",
    ]
    assert report.layers["block/second"] == "block/conv"
    assert report.layers["tail"] == "tail"


def test_the_report_is_json_and_text():
    report = kerasnorm.swap_norms(tiny_models.pre_activation(), "weight").report
    as_dict = json.loads(json.dumps(report.to_dict()))
    assert [site["name"] for site in as_dict["sites"]] == ["bn_1", "bn_2"]
    assert as_dict["counts"] == {"weight": {"WeightNorm(Affine)": 2}}
    assert set(as_dict["sites"][0]) == {
        "name", "target", "verdict", "rule", "becomes", "partner", "across", "reason", "fit",
        "damping", "groups",
    }  # fmt: skip
    text = str(report)
    assert "pre_activation → weight: 2 BatchNorm calls: 2 exact (2 WeightNorm(Affine))" in text
    assert "bn_1" in text
    assert "used elsewhere too" in text


def test_a_layer_that_cannot_be_copied_is_named():
    class Own(layers.Dense):
        def __init__(self, factor):
            super().__init__(4, name="own")
            self.factor = factor

        def call(self, x):
            return self.factor * super().call(x)

    inputs = keras.Input((4,))
    source = keras.Model(inputs, layers.BatchNormalization()(Own(3.0)(inputs)))
    with pytest.raises(SwapError, match=r"layer 'own': .* Give the user's classes"):
        kerasnorm.swap_norms(source, "weight")


def test_a_layer_with_a_broken_config_is_copied_by_its_attributes():
    class Own(layers.Layer):
        def __init__(self, factor):
            super().__init__(name="own")
            self.factor = factor

        def call(self, x):
            return self.factor * x

        def get_config(self):
            return super().get_config()  # keeps the factor to itself

    inputs = keras.Input((4,))
    source = keras.Model(inputs, layers.BatchNormalization()(Own(3.0)(inputs)))
    assert_exact(source, kerasnorm.swap_norms(source, "weight"), batch(source))


def test_a_layer_without_a_config_is_copied_by_its_attributes():
    class Own(layers.Layer):
        def __init__(self, function):
            super().__init__(name="own")
            self.function = function
            self.dense = layers.Dense(3)
            self.supports_masking = True

        def build(self, shape):
            self.scale = self.add_weight(name="scale", initializer="normal", constraint="non_neg")
            self.parts = {"both": (self.scale, [self.dense])}

        def call(self, x):
            scale, (dense,) = self.parts["both"]
            return scale * self.function(dense(x))

    inputs = keras.Input((4,))
    source = keras.Model(inputs, layers.BatchNormalization()(Own(keras.ops.relu)(inputs)))
    swap = kerasnorm.swap_norms(source, "weight")
    own = swap.model.get_layer("own")
    assert own.scale is own.parts["both"][0] is not source.get_layer("own").scale
    assert own.supports_masking
    assert isinstance(own.scale.constraint, keras.constraints.NonNeg)
    assert not {id(v) for v in source.variables} & {id(v) for v in swap.model.variables}
    assert_exact(source, swap, batch(source))


def test_layers_of_the_users_own_and_lambdas_are_copied():
    class Scale(layers.Layer):
        def __init__(self, by=2.0, **kwargs):
            super().__init__(**kwargs)
            self.by = by

        def call(self, x):
            return self.by * x

        def compute_output_shape(self, shape):
            return shape

        def get_config(self):
            return {**super().get_config(), "by": self.by}

    inputs = keras.Input((6, 4))
    x = layers.TimeDistributed(Scale(3.0))(inputs)
    x = layers.Lambda(lambda t: t + 1)(x)
    source = keras.Model(inputs, layers.BatchNormalization()(layers.Dense(3)(x)))
    x = batch(source)
    swap = kerasnorm.swap_norms(source, "weight")
    np.testing.assert_allclose(source(x), swap.model(x), atol=1e-5)


def test_preprocessing_state_is_carried():
    inputs = keras.Input((3,))
    scaler = layers.Normalization(name="scaler")
    scaler.adapt(np.random.default_rng(0).normal(5, 2, (100, 3)))
    x = layers.BatchNormalization()(layers.Dense(4)(scaler(inputs)))
    source = keras.Model(inputs, x)
    swap = kerasnorm.swap_norms(source, "weight")
    x = batch(source)
    np.testing.assert_allclose(source(x), swap.model(x), atol=1e-5)


@pytest.mark.parametrize("depth", [60, pytest.param(150, marks=pytest.mark.slow)])
def test_a_deep_chain_does_not_hit_the_recursion_limit(depth):
    inputs = keras.Input((3,))
    x = inputs
    for _ in range(depth):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(3)(x)))
    source = keras.Model(inputs, x)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit * depth // 150)
    try:
        swap = kerasnorm.swap_norms(source, "weight")
    finally:
        sys.setrecursionlimit(limit)
    assert sum(isinstance(layer, WeightNorm) for layer in swap.model.layers) == depth
