"""`Swap.compare` sees what differs, where, and in nested models too."""

from __future__ import annotations

import contextlib

import fidelity
import keras
import numpy as np
import pytest
import tiny_models
from fidelity import randomize
from helpers import has_channels_first
from keras import layers
from test_swap import EXACT_MODELS, batch, randomized

import kerasnorm
from kerasnorm import SwapError
from kerasnorm.compare.agreement import fits
from kerasnorm.swap import fold as folds
from kerasnorm.swap import swap as swaps


@contextlib.contextmanager
def made_in(dtype):
    """Layers made meanwhile have this dtype policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def of_worst_channel(expected, received):
    """max|Δ| over the deviation of a channel, which is the last axis of these models' tensors."""
    worst = 0.0
    for channel in range(expected.shape[-1]):
        a, b = expected[..., channel], received[..., channel]
        largest = np.abs(a).max()
        spread = max(a.std(), 1e-4 * largest) if a.std() > 1e-6 * largest else 1e-2 * largest
        worst = max(worst, np.abs(a - b).max() / (spread or 1e-4 * np.abs(expected).max()))
    return worst


@pytest.mark.parametrize("name", ["nested", "shared_bn", "structured", "sequential", "masked"])
def test_agrees_with_watching_the_layers_run(name):
    source = randomized(name)
    swap = kerasnorm.swap_norms(source, "weight")
    x = batch(source, seed=1)
    watched = fidelity.site_differences(source, swap, x, of_worst_channel)
    found = swap.compare(x)
    assert {site.replace("#2/", "/") for site in found} == set(watched)
    for site, difference in found.items():
        # a model called twice is watched in both calls, and fed what the source feeds it here
        assert difference <= 1.01 * watched[site.replace("#2/", "/")] + 1e-6, site
    assert max(found.values()) <= fidelity.SITE_TOLERANCE


def test_a_fault_is_seen_where_it_is():
    source = randomized("nested")
    swap = kerasnorm.swap_norms(source, "weight")
    wrong = swap.model.get_layer("tail").get_layer("conv")
    wrong.g.assign(wrong.g * 1.01)
    differences = swap.compare(batch(source))
    assert differences["tail/bn"] > 1e-3
    assert differences["block/second"] <= fidelity.SITE_TOLERANCE


def test_random_inputs_are_made_where_none_are_given():
    source = EXACT_MODELS["structured"]()
    swap = kerasnorm.swap_norms(source, "weight")
    again = [swap.compare() for _ in range(2)]
    assert again[0] == again[1]
    assert np.isfinite(list(again[0].values())).all()


def test_what_the_source_does_not_take_is_said_of_the_inputs_given():
    swap = kerasnorm.swap_norms(EXACT_MODELS["nested"](), "weight")
    with pytest.raises(SwapError, match=r"able to run on the given inputs. Received: it fails"):
        swap.compare(np.ones((4, 7), "float32"))


def test_sites_inside_a_wrapper_are_compared():
    source = tiny_models.opaque()
    swap = kerasnorm.swap_norms(source, "weight")
    assert set(swap.compare()) == {"per_step/inner", "bn", "output 0"}


def called_twice(first, second):
    """A nested model called on two functions of the input."""
    inputs = keras.Input((6,))
    x = layers.BatchNormalization(name="bn")(layers.Dense(4, name="dense")(inputs))
    inner = keras.Model(inputs, layers.ReLU()(x), name="inner")
    outer = keras.Input((6,))
    model = keras.Model(outer, layers.Add()([inner(first(outer)), inner(second(outer))]))
    randomize(model, batch(model))
    return model


@pytest.mark.parametrize("wrong", ["inner/bn", "inner#2/bn"])
def test_every_call_of_a_nested_model_is_compared(wrong):
    def same(x):
        return 1.0 * x

    def zero(x):
        return 0.0 * x

    source = called_twice(*((same, zero) if wrong == "inner/bn" else (zero, same)))
    swap = kerasnorm.swap_norms(source, "weight")
    weights = swap.model.get_layer("inner").get_layer("dense")
    weights.g.assign(1.1 * weights.g)  # which is seen only where the inputs vary
    differences = swap.compare(batch(source))
    assert set(differences) == {"inner/bn", "inner#2/bn", "output 0"}
    assert differences[wrong] > 0.05
    assert differences[({"inner/bn", "inner#2/bn"} - {wrong}).pop()] < 1e-4


def test_calls_within_calls_are_numbered_as_they_come():
    inputs = keras.Input((6,))
    inner = keras.Sequential([inputs, layers.BatchNormalization(name="bn")], name="inner")
    middle = keras.Model(inputs, inner(layers.ReLU()(inner(inputs))), name="middle")
    model = keras.Model(inputs, layers.BatchNormalization(name="bn")(middle(middle(inputs))))
    randomize(model, batch(model))
    swap = kerasnorm.swap_norms(model, "weight")
    numbers = ["inner/bn", "inner#2/bn", "inner#3/bn", "inner#4/bn"]
    assert list(swap.compare()) == [f"middle/{name}" for name in numbers] + ["bn", "output 0"]
    # where each is checked by itself, the outputs of the nested models are too
    assert max(swap.differences.values()) < 1e-4
    assert set(swap.differences) - set(swap.compare()) == set()


def test_the_fit_of_a_site_is_over_all_calls_of_the_model_it_is_in():
    source = called_twice(lambda x: x, lambda x: 2.0 * x)
    swap = kerasnorm.swap_norms(source, "weight")
    x = batch(source)
    weights = swap.model.get_layer("inner").get_layer("dense")
    weights.g.assign(1.1 * weights.g)
    answers = []
    for model in (source, swap.model):
        inner = model.get_layer("inner")
        cut = keras.Model(inner.inputs[0], inner.layers[-1].input)
        answers.append(np.concatenate([cut(x), cut(2.0 * x)]))
    expected, received = answers
    residual, spread = (np.square(expected - y).sum() for y in (received, expected.mean(0)))
    assert fits(swap._models, [x])["inner/bn"] == pytest.approx(1 - residual / spread, rel=1e-4)


def amplifying(depth=40):
    """A chain that moves far away with each rounding."""
    keras.utils.set_random_seed(1)
    inputs = x = keras.Input((16,))
    for number in range(depth):
        x = layers.BatchNormalization(name=f"bn_{number}")(layers.Dense(16)(x))
        x = keras.ops.sin(4 * x)
    model = keras.Model(inputs, x)
    randomize(model, batch(model))
    return model


def test_rounding_that_adds_up_is_no_difference():
    swap = kerasnorm.swap_norms(amplifying(), "weight")
    assert max(swap.compare().values()) > 0.1
    assert max(swap.differences.values()) < 1e-3


def test_masks_travel_with_what_is_put_in_their_place():
    source = randomized("masked")
    swap = kerasnorm.swap_norms(source, "weight")
    assert max(swap.differences.values()) < 1e-4
    inputs = keras.Input((7, 4))
    normalized = layers.BatchNormalization(name="bn")(layers.Masking()(inputs))
    inner = keras.Model(inputs, normalized, name="inner")
    keep = keras.Model(inputs, layers.LSTM(3)(inner(inputs)))
    x = batch(keep)
    x[:, 4:] = 0
    randomize(keep, x)
    swap = kerasnorm.swap_norms(keep, "weight")
    assert max(swap.differences.values()) < 1e-4
    assert max(swap.compare(x).values()) < 1e-4


# 16 bits


def policies(model) -> list[str]:
    return [layer.dtype_policy.name for layer in (model, *fidelity.all_layers(model))]


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
def test_dtypes_are_as_before_when_all_is_compared(dtype):
    with made_in(dtype):
        source = tiny_models.conv_bn_relu()
    randomize(source, batch(source))
    before, weights = policies(source), source.get_weights()
    swap = kerasnorm.swap_norms(source, "weight")
    assert policies(source) == before
    assert set(policies(swap.model)) == set(before)
    assert {type(la.dtype_policy) for la in fidelity.all_layers(swap.model)} == {keras.DTypePolicy}
    for a, b in zip(weights, source.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert swap.report.notes == swap.report.doubts == []
    # what is told is what the model does in its own dtype
    assert max(swap.differences.values()) > 1e-4


@pytest.mark.skipif(has_channels_first("float16"), reason="it runs on this CPU")
def test_what_16_bits_cannot_run_here_is_judged_in_float32():
    with made_in("mixed_float16"):
        inputs = keras.Input((3, 6, 7))
        x = layers.Conv2D(4, 2, data_format="channels_first")(inputs)
        source = keras.Model(inputs, layers.BatchNormalization(axis=1, name="bn")(x))
    swap = kerasnorm.swap_norms(source, "weight")
    assert swap.report.notes == swap.report.doubts == []
    assert 0 < max(swap.differences.values()) < 1e-4


def test_what_cannot_be_had_in_float32_is_said():
    with made_in("mixed_bfloat16"):
        source = tiny_models.dense_bn()
    source.get_layer("head").quantize("int8")
    swap = kerasnorm.swap_norms(source, "weight")
    assert swap.report.doubts == [
        "compared in bfloat16 alone, whose rounding may hide differences of less than 1 standard "
        "deviations: a layer cannot be had in float32"
    ]
    assert swap.model.get_layer("head").quantization_mode == "int8"


# What hides a difference


class Times(layers.Layer):
    """Its config does not tell the factor, which its copy loses."""

    factor = 1.0

    def call(self, x):
        return x * self.factor


def with_factor(build, shape=(16,), factor=5.0):
    """A model of a function that gets a layer whose copy differs."""
    keras.utils.set_random_seed(0)
    times, inputs = Times(name="times"), keras.Input(shape)
    model = keras.Model(inputs, build(inputs, times))
    times.factor = factor
    return model


def norm(x, name="bn"):
    return layers.BatchNormalization(name=name)(x)


def test_positive_inputs_show_what_is_not_finite_on_others():
    def build(x, times):
        return times(norm(layers.Dense(4)(keras.ops.log(x))))

    swap = kerasnorm.swap_norms(with_factor(build, factor=1.0), "weight")
    assert np.isfinite(list(swap.differences.values())).all()
    assert not swap.report.warnings
    wrong = with_factor(build)
    with pytest.raises(SwapError, match="differs from its source at 'output 0'"):
        kerasnorm.swap_norms(wrong, "weight")


@pytest.mark.parametrize("to", ["weight", "layer", "group"])
def test_where_nothing_is_finite_nothing_is_said_to_agree(to):
    def build(x, times):
        found = norm(layers.Dense(4)(x))
        return [found, times(norm(layers.Dense(4)(keras.ops.log(-1 - x * x)), "never"))]

    swap = kerasnorm.swap_norms(with_factor(build), to)
    names = ["never", "output 1"] if to == "weight" else ["output 1"]
    assert [name in swap.differences for name in names]
    assert all(np.isnan(swap.differences[name]) for name in names)
    assert np.isfinite([swap.differences[name] for name in ("bn", "output 0")]).all()
    said = [w for w in swap.report.warnings if "is compared with its source, which is not" in w]
    assert len(said) >= len(names)
    for name in names:
        assert any(f"channel of '{name}'" in warning for warning in said)
    assert np.isnan(swap.compare()["never"])


def test_what_is_infinite_in_both_is_the_same():
    source = with_factor(
        lambda x, t: keras.ops.where(norm(layers.Dense(4)(x)) > 1e9, x[:, :4], -np.inf)
    )
    swap = kerasnorm.swap_norms(source, "weight")
    assert swap.differences["output 0"] == 0
    assert not swap.report.warnings


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_saturated_output_hides_nothing_behind_the_last_site(activation):
    def build(x, times):
        large = keras.initializers.RandomNormal(stddev=3e3)
        logits = layers.Dense(3, kernel_initializer=large)(norm(layers.Dense(4)(x)))
        return layers.Activation(activation)(times(logits))

    with pytest.raises(SwapError, match="differs from its source at 'output 0'"):
        kerasnorm.swap_norms(with_factor(build), "weight")
    swap = kerasnorm.swap_norms(with_factor(build, factor=1.0), "weight")
    assert not swap.report.warnings


# What is not exact beside what is


def in_front(x, times):
    return norm(times(layers.ReLU()(x)))


def in_front_of_the_partner(x, times):
    return norm(layers.Dense(8)(times(layers.ReLU()(x))))


def behind(x, times):
    return times(norm(layers.Dense(8)(x)))


def in_front_of_the_follower(x, times):
    return layers.Dense(4)(layers.ReLU()(times(norm(layers.ReLU()(x)))))


def behind_the_follower(x, times):
    return times(layers.Dense(4)(layers.ReLU()(norm(layers.ReLU()(x)))))


@pytest.mark.parametrize(("to", "rows"), [("layer", 0), ("layer", 60), ("cosine", 60)])
@pytest.mark.parametrize(
    ("build", "place"),
    [
        (in_front, "bn"),
        (in_front_of_the_partner, r"dense\S* \(its input\)"),
        (behind, "output 0"),
        (in_front_of_the_follower, r"output 0|dense\S* \(its input\)"),
        (behind_the_follower, "output 0"),
    ],
)
def test_what_a_swap_that_is_not_exact_leaves_alone_is_judged(build, place, to, rows, closed_form):
    data = np.random.default_rng(0).normal(size=(rows, 16)).astype("float32") if rows else None
    source, wrong = with_factor(build, factor=1.0), with_factor(build)
    kerasnorm.swap_norms(source, to, data)
    with pytest.raises(SwapError, match=f"differs from its source at '({place})"):
        kerasnorm.swap_norms(wrong, to, data)


def test_an_exact_site_behind_steps_that_are_not_is_judged_on_what_the_source_has():
    source = tiny_models.opaque()
    randomize(source, batch(source))
    swap = kerasnorm.swap_norms(source, {"per_step/inner": "layer", "bn": "weight"})
    assert [site.verdict for site in swap.report.sites] == ["matched", "exact"]


# What the outputs say where a swap is not exact


def test_a_swap_that_is_not_exact_says_what_it_keeps_on_random_inputs():
    source = tiny_models.residual()
    randomize(source, batch(source))
    report = kerasnorm.swap_norms(source, "layer").report
    found = report.on_random_inputs
    assert report.to_dict()["on_random_inputs"] == {
        "samples": 32, "same_answers": found.same_answers, "fit": found.fit,
        "interval": found.interval, "worst": found.worst, "changed": found.changed,
    }  # fmt: skip
    assert found.fit < 0.5
    assert (
        f"on 32 random inputs: {found.same_answers:.1%} same answers, R² of the outputs "
        f"{found.fit:.4f}, which does not say how the model does on what it is for"
    ) in report.remarks()
    (warning,) = (line for line in report.remarks() if line.startswith("warning"))
    assert "on random inputs the outputs keep less than half of the source's" in warning
    assert "--data X.npy" in warning


def test_a_swap_that_keeps_most_does_not_warn():
    inputs = keras.Input((64,))
    x = layers.BatchNormalization(name="bn")(layers.Dense(256)(inputs))
    source = keras.Model(inputs, layers.Dense(3)(x))
    report = kerasnorm.swap_norms(source, "layer", damping=1.0).report
    assert report.on_random_inputs.fit > 0.9
    assert not any(line.startswith("warning") for line in report.remarks())


def test_nothing_is_said_of_random_inputs_where_a_swap_is_exact_or_has_data():
    source = tiny_models.dense_bn()
    assert kerasnorm.swap_norms(source, "weight").report.on_random_inputs is None
    swap = kerasnorm.swap_norms(source, "layer")
    assert swap.report.on_random_inputs is not None
    swap.update_report(batch(source, rows=400))
    assert swap.report.on_random_inputs is None
    with_data = kerasnorm.swap_norms(source, "layer", batch(source, rows=400)).report
    assert with_data.on_random_inputs is None


def test_text_is_not_said_to_agree():
    inputs = keras.Input((1,), dtype="string")
    words = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(inputs)
    source = keras.Model(inputs, layers.BatchNormalization()(layers.Dense(3)(words)))
    assert kerasnorm.swap_norms(source, "layer").report.on_random_inputs is None


def test_saturated_probabilities_do_not_say_that_all_is_kept():
    source = tiny_models.conv_bn_relu()
    randomize(source, batch(source))
    head = source.get_layer("head")
    head.kernel.assign(3000.0 * head.kernel)
    found = kerasnorm.swap_norms(source, "layer").report.on_random_inputs
    head.kernel.assign(head.kernel / 3000.0)
    assert found.fit < 0.99


def test_a_swapped_model_that_is_not_finite_is_refused(monkeypatch):
    source = tiny_models.dense_bn()
    real = swaps.rebuild

    def rebuild(*args):
        rebuilt = real(*args)
        rebuilt.model.get_layer("bn").gamma.assign([np.nan, 0, 0, 0])
        return rebuilt

    monkeypatch.setattr(swaps, "rebuild", rebuild)
    with pytest.raises(SwapError, match=r"must be finite .* at 'bn' on random inputs"):
        kerasnorm.swap_norms(source, "layer")


# Folding


def test_a_saturated_softmax_hides_nothing_that_is_folded(monkeypatch):
    inputs = keras.Input((6,))
    hidden = kerasnorm.WeightNorm(layers.Dense(8, activation="relu"))(inputs)
    model = keras.Model(inputs, layers.Dense(5, activation="softmax")(hidden))
    model.layers[-1].kernel.assign(3000.0 * model.layers[-1].kernel)
    kerasnorm.fold_norms(model)
    real = folds.Rebuilds.apply

    def apply(*args, **kwargs):
        rebuilt = real(*args, **kwargs)
        kernel = rebuilt.model.layers[-1].kernel
        kernel.assign(1.2 * kernel)
        return rebuilt

    monkeypatch.setattr(folds.Rebuilds, "apply", apply)
    with pytest.raises(SwapError, match="differs from its source at 'output 0'"):
        kerasnorm.fold_norms(model)


def test_what_overflows_in_float16_alone_is_compared_in_float32():
    """Random inputs take the source beyond 65,504 in front of its BatchNorm, and not the copy."""
    dense = layers.Dense(3, use_bias=False, name="dense", dtype="mixed_float16")
    norm = layers.BatchNormalization(name="norm", dtype="mixed_float16")
    source = keras.Sequential([keras.Input((4,)), dense, norm])
    dense.kernel.assign(3e4 * np.random.default_rng(0).normal(size=(4, 3)))
    norm.moving_variance.assign(np.full(3, 1e9))
    x = np.random.default_rng(1).normal(size=(64, 4)).astype("float32")
    assert not np.isfinite(source.predict(x, verbose=0)).all()
    swap = kerasnorm.swap_norms(source, "weight", strict=True)
    assert np.isfinite(swap.model.predict(x, verbose=0)).all()
    assert not swap.report.warnings


def test_a_copy_may_be_finite_where_its_source_is_not():
    dense = layers.Dense(3, use_bias=False, name="dense", dtype="mixed_float16")
    norm = layers.BatchNormalization(name="norm", dtype="mixed_float16")
    source = keras.Sequential([keras.Input((4,)), dense, norm])
    dense.kernel.assign(3e4 * np.random.default_rng(0).normal(size=(4, 3)))
    norm.moving_variance.assign(np.full(3, 1e9))
    swap = kerasnorm.swap_norms(source, "layer", strict=True)
    assert all(np.isfinite(difference) for difference in swap.differences.values())
