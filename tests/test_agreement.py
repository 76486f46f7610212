"""What is said of two models: how far apart they are, and how far their answers agree."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers, ops

from kerasnorm import SwapError
from kerasnorm.compare.agreement import Agreement, agreement, fits, random_agreement
from kerasnorm.compare.differences import (
    _of_channels,
    check_equal,
    check_finite,
    differences,
    random_batch,
)
from kerasnorm.compare.random_inputs import NotComparableError
from kerasnorm.compare.sample_sums import share_interval
from kerasnorm.compare.side_by_side import Values, source_values
from kerasnorm.compare.tensor_pairs import pair_outputs
from kerasnorm.graph.model_graphs import graphs_of


def pair_of(source, copy):
    return pair_outputs(graphs_of(source), graphs_of(copy).root)


def model_of(function, shape=(3,), dtype="float32"):
    inputs = keras.Input(shape, dtype=dtype)
    return keras.Model(inputs, function(inputs))


def shifted_by(offset, dtype="float32"):
    return model_of(lambda x: layers.Rescaling(1.0, offset, dtype=dtype)(x), dtype=dtype)


# How far the answers agree


def test_answers_of_a_softmax_and_numbers_beside_it():
    def two(x):
        return [layers.Softmax()(x), x * 1.0]

    def other_two(x):
        # the second and third channels change places, one of the numbers is off
        return [layers.Softmax()(ops.take(x, [0, 2, 1], axis=-1)), x * np.float32([1.2, 1, 1])]

    x = np.eye(3, dtype="float32").repeat([4, 1, 5], axis=0)
    models = pair_of(model_of(two), model_of(other_two))
    fit, worst, changed = by_hand(two(x), other_two(x))
    assert 0 < changed < 1
    for at_once in (3, 8, 100):
        found = agreement(models, [x], at_once)
        assert found.samples == 10
        assert found.same_answers == pytest.approx(0.4)
        low, high = found.interval
        assert (low - 0.4) ** 2 == pytest.approx(1.96**2 * low * (1 - low) / 10)
        assert (high - 0.4) ** 2 == pytest.approx(1.96**2 * high * (1 - high) / 10)
        assert found.fit == pytest.approx(fit, rel=1e-4)
        assert found.worst == pytest.approx(worst, rel=1e-4)
        assert found.changed == pytest.approx(changed)


def by_hand(expected, received):
    """R², the largest difference of a sample and the share of those above a half."""
    fits_of, squares = [], []
    for t, other in zip(expected, received, strict=True):
        t, other = (np.asarray(y, "float64") for y in (t, other))
        residual, spread = np.square(t - other).sum(1), np.square(t - t.mean(0)).sum()
        fits_of.append(1 - residual.sum() / spread)
        squares.append(residual / (spread / len(t)))
    each = np.sqrt(np.mean(squares, 0))
    return np.mean(fits_of), each.max(), np.mean(each > 0.5)


def test_numbers_alone_have_no_answers():
    x = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    off = 0.01 * np.sqrt(3 * np.square(x - x.mean(0)).mean())
    found = agreement(pair_of(shifted_by(0.0), shifted_by([0.0, 0.0, off])), [x])
    assert found.same_answers is None
    # in deviations of all three channels
    assert found.worst == pytest.approx(0.01, rel=1e-4)
    assert found.changed == 0
    low, high = found.interval
    assert low < found.fit < high <= 1
    two = np.float32([[1, 1, 1], [-1, -1, -1]])
    half = agreement(pair_of(shifted_by(0.0), shifted_by(0.5)), [two])
    assert (half.worst, half.changed) == (0.5, 0)  # no more than half a deviation
    nothing = agreement(pair_of(shifted_by(0.0), shifted_by(0.0)), [x[:1]])
    assert (nothing.fit, nothing.worst, nothing.changed) == (1, 0, 0)


def test_answers_at_each_place_of_a_map_are_shares():
    x = np.zeros((4, 4, 3), "float32")
    x[..., 2] = 1
    x[1, :3] = [1, 0, 0]

    def turned(x):
        return layers.Softmax()(ops.take(x, [1, 0, 2], axis=-1))

    found = agreement(
        pair_of(model_of(layers.Softmax(), (4, 3)), model_of(turned, (4, 3))), [x], at_once=3
    )
    shares = np.array([1.0, 0.25, 1.0, 1.0])
    assert found.same_answers == pytest.approx(shares.mean())
    assert found.interval == pytest.approx(share_interval(shares))


def test_what_is_said():
    found = Agreement(20, 0.875, 0.98765, (0.5, 0.912), 1.2345, 0.05)
    assert str(found) == ("on 20 samples held out: 87.5% same answers, R² of the outputs 0.9877")
    assert found.on("images").startswith("on 20 images: ")
    assert found.of_others() == (
        "95% interval of the same answers: 50.0% to 91.2%; 5.0% of these samples change by more "
        "than half a deviation, the worst by 1.2"
    )
    found = Agreement(20, None, 0.98765, (0.5, 0.912), 1.2345, 0.05)
    assert str(found) == "on 20 samples held out: R² of the outputs 0.9877"
    assert found.of_others().startswith("95% interval of the R²: 0.5000 to 0.9120; ")


def test_fits_leave_out_where_the_source_overflows():
    x = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    x[::7, 1] = np.inf
    finite = np.isfinite(x).all(1)
    fit = fits(pair_of(shifted_by(0.0), shifted_by(0.5)), [x])["output 0"]
    spread = np.square(x[finite] - x[finite].mean(0)).sum()
    assert fit == pytest.approx(1 - 0.25 * x[finite].size / spread, rel=1e-5)


def test_nothing_is_said_where_nothing_is_finite():
    nowhere = model_of(lambda x: x + np.float32(np.nan))
    assert random_agreement(pair_of(nowhere, shifted_by(0.0))) is None
    text = keras.Input((1,), dtype="string")
    model = keras.Model(text, layers.StringLookup(vocabulary=["a"])(text))
    assert random_agreement(pair_of(model, model)) is None
    found = random_agreement(pair_of(shifted_by(0.0), shifted_by(0.0)))
    assert (found.samples, found.fit, found.worst) == (32, 1, 0)


# How far two models may be apart


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_hundredth_of_a_deviation_is_allowed(dtype):
    (x,) = random_batch(pair_of(shifted_by(0.0, dtype), shifted_by(0.0, dtype)))
    for size, passes in ((0.0099, True), (0.0101, False)):
        off = np.zeros(3)
        off[1] = size * x[:, 1].std()
        models = pair_of(shifted_by(0.0, dtype), shifted_by(off.tolist(), dtype))
        assert differences(models)["output 0"] == pytest.approx(size, rel=1e-3)
        if passes:
            found, notes = check_equal(models)
            assert found["output 0"] == pytest.approx(size, rel=1e-3)
            assert notes == []
        else:
            with pytest.raises(
                SwapError,
                match=r"'output 0', in channel 1, by 0\.01 of its standard deviations on random "
                r"inputs; allowed is 0\.01",
            ):
                check_equal(models)


@pytest.mark.parametrize(("dtype", "allowed"), [("float16", 0.3), ("bfloat16", 1.0)])
def test_16_bits_that_cannot_be_had_in_float32_may_be_further_apart(dtype, allowed):
    class Policy(keras.DTypePolicy):
        """One that a copy does not take."""

    def shifted(off):
        def function(x):
            beside = layers.ReLU(dtype=Policy(f"mixed_{dtype}"))(x)
            return [layers.Rescaling(1.0, off, dtype=f"mixed_{dtype}")(x), beside]

        return model_of(function)

    source, near, far = (shifted(factor * allowed) for factor in (0.0, 0.8, 1.2))
    found, notes = check_equal(pair_of(source, near))
    assert 0.6 * allowed < found["output 0"] < allowed
    assert notes == [
        f"compared in {dtype} alone, whose rounding may hide differences of less than "
        f"{allowed:g} standard deviations: a layer cannot be had in float32"
    ]
    with pytest.raises(SwapError, match="differs from its source at 'output 0'"):
        check_equal(pair_of(source, far))


class Near(layers.Layer):
    """x, with the rounding of a number that is much larger."""

    def __init__(self, large, off=0.0, **kwargs):
        super().__init__(**kwargs)
        self.large, self.off = large, off

    def build(self, shape):
        constant = keras.initializers.Constant(self.large)
        self.shift = self.add_weight(shape=np.shape(self.large), initializer=constant)

    def call(self, x):
        return (x + self.shift) - self.large + self.off


@pytest.mark.parametrize(("dtype", "large"), [("float32", 2.0**18), ("float64", 2.0**47)])
def test_so_are_eight_times_what_a_rounding_step_of_the_weights_does(dtype, large):
    step = large * float(np.finfo(dtype).eps)

    def near(off):
        return model_of(lambda x: Near(large, off, dtype=dtype)(x), dtype=dtype)

    check_equal(pair_of(near(0.0), near(7.5 * step)))
    with pytest.raises(SwapError, match="differs from its source at 'output 0'"):
        check_equal(pair_of(near(0.0), near(8.5 * step)))


def test_the_channel_that_is_named_is_furthest_beyond_what_is_allowed_to_it():
    large = np.float32([1, 2**20, 1])  # the second may be off by a deviation

    def near(*off):
        return model_of(Near(large, np.float32(off)))

    with pytest.raises(SwapError, match=r"in channel 0, by 0\.\d+ .* allowed is 0\.01\."):
        check_equal(pair_of(near(0, 0, 0), near(0.3, 2, 0)))


def test_a_copy_must_be_finite_where_its_source_is():
    def roots(x):
        return ops.sqrt(x)

    def with_infinities(x):
        return ops.where(x > 0, ops.sqrt(x), x / 0.0)

    # what the source has no number for may be anything
    found, notes = check_finite(pair_of(model_of(roots), model_of(lambda x: x * 1.0)))
    assert notes == []
    assert list(found) == ["output 0"]
    check_finite(pair_of(model_of(roots), model_of(with_infinities)))
    with pytest.raises(SwapError, match=r"must be finite .* at 'output 0' on random inputs"):
        check_finite(pair_of(shifted_by(0.0), model_of(with_infinities)))


def test_text_cannot_be_compared_on_random_inputs():
    text = keras.Input((1,), dtype="string", name="text")
    model = keras.Model(text, layers.StringLookup(vocabulary=["a"])(text))
    with pytest.raises(SwapError, match=r"run on random inputs\. Received: input 'text' takes"):
        differences(pair_of(model, model))


@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        (layers.Conv1D(2, 1, data_format="channels_first"), (3, 4), 1),
        (layers.AveragePooling2D(2, data_format="channels_first"), (3, 4, 4), 1),
        (layers.Flatten(data_format="channels_first"), (3, 4), -1),
        (layers.Conv1D(2, 1, data_format="channels_last"), (4, 3), -1),
        (layers.ReLU(), (3, 4), -1),
    ],
)
def test_the_channels_of_an_output_are_where_its_layer_has_them(layer, shape, axis):
    model = model_of(layer, shape)
    (pair,) = pair_of(model, model).outputs
    assert (pair.name, pair.axis, pair.exact) == ("output 0", axis, True)


class Fails(layers.Layer):
    """Runs until it is told what to fail with."""

    error: Exception | None = None

    def call(self, x):
        if self.error is not None:
            raise self.error
        return x


def test_why_a_source_cannot_be_run_is_said_in_one_short_line():
    layer = Fails()
    model = model_of(layer)
    layer.error = RuntimeError("\n \n" + 99 * "a" + "bc\nmore")
    said = f"it fails ({99 * 'a'}b)"
    with pytest.raises(NotComparableError) as found:
        source_values(graphs_of(model).root, [np.zeros((2, 3), "float32")], model.outputs)
    assert str(found.value) == said
    # nothing is refused then, and it is said
    models = pair_of(model, shifted_by(1.0))
    for judge in (check_equal, check_finite):
        assert judge(models) == ({}, [f"not compared with its source on random inputs: {said}"])
    with pytest.raises(SwapError, match=r"run on the given inputs\. Received: it fails"):
        differences(models, np.zeros((2, 3), "float32"))


def test_places_beyond_the_range_of_float16_are_left_out_in_all_channels():
    expected = np.float16([[1, 1], [np.inf, 5], [-1, -1], [3, 2]])
    received = np.float16([[1.5, 1], [7, 9], [-1, -1], [3, 2]])
    pair = pair_of(shifted_by(0.0), shifted_by(0.0)).outputs[0]
    deviation = np.std([1, -1, 3])
    for axis, turn in ((-1, lambda a: a), (0, np.transpose)):
        values = Values("a", dataclasses.replace(pair, axis=axis), turn(expected), turn(received))
        found = _of_channels(values, "float16")
        np.testing.assert_allclose(found, [0.5 / deviation, 0], rtol=1e-3)
        np.testing.assert_array_equal(_of_channels(values)[0], np.inf)
    values = dataclasses.replace(values, received=received[:, :1])
    assert _of_channels(values, "float16") == [np.inf]
    finite = dataclasses.replace(values, expected=expected[2:].T, received=received[2:].T)
    np.testing.assert_array_equal(_of_channels(finite, "float16"), [0, 0])
