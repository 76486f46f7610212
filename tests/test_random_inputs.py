"""The random inputs that models are compared on, and what rounding does to numbers."""

from __future__ import annotations

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import layers

from kerasnorm import ExportError
from kerasnorm.compare.differences import random_batch
from kerasnorm.compare.random_inputs import (
    NotComparableError,
    is_saturated,
    random_inputs,
    scaled_off_saturation,
)
from kerasnorm.compare.rounding import moved, moved_weights
from kerasnorm.compare.tensor_pairs import pair_models, pair_outputs
from kerasnorm.compare.tolerances import EPSILONS, OF_LARGEST_ENTRY, coarsest_dtype
from kerasnorm.graph import sites
from kerasnorm.graph.model_graphs import graphs_of


def inputs_for(*tensors, model=None, **arguments):
    arguments = {"rows": 3, "free": (96, 32), **arguments}
    return random_inputs(tensors, model or keras.Sequential(), **arguments)


def test_shapes_and_dtypes():
    arrays = inputs_for(
        keras.Input((4,)),
        keras.Input((4,), dtype="float64"),
        keras.Input((4,), dtype="bfloat16"),
        keras.Input((100,), dtype="int64"),
        keras.Input((100,), dtype="uint8"),
        keras.Input((100,), dtype="bool"),
        keras.Input((None, None, 3)),
        keras.Input((None, None, None, 1)),
        keras.Input(batch_shape=(5, 2)),
    )
    assert [(array.shape, array.dtype.name) for array in arrays] == [
        ((3, 4), "float32"),
        ((3, 4), "float64"),
        ((3, 4), "bfloat16"),
        ((3, 100), "int64"),
        ((3, 100), "uint8"),
        ((3, 100), "bool"),
        ((3, 96, 96, 3), "float32"),
        ((3, 32, 32, 32, 1), "float32"),
        ((5, 2), "float32"),
    ]
    for integers in arrays[3:5]:
        assert (integers.min(), integers.max()) == (0, 99)
    assert set(np.unique(arrays[5])) == {False, True}
    assert 0.4 < arrays[5].mean() < 0.6
    assert abs(arrays[6].mean()) < 0.02
    assert abs(arrays[6].std() - 1) < 0.02


def test_the_same_seed_gives_the_same_numbers():
    (a,), (b,), (c,) = (inputs_for(keras.Input((4,)), seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).all()


def test_integers_are_below_every_vocabulary():
    model = keras.Sequential([layers.Embedding(30, 2), layers.Embedding(7, 2)])
    (array,) = inputs_for(keras.Input((200,), dtype="int32"), model=model)
    assert (array.min(), array.max()) == (0, 6)
    model.add(layers.CategoryEncoding(5))
    (array,) = inputs_for(keras.Input((200,), dtype="int32"), model=model)
    assert array.max() == 4


def test_small_integers_do_not_overflow():
    (array,) = inputs_for(keras.Input((5000,), dtype="int8"), model=keras.Sequential())
    model = keras.Sequential([layers.Embedding(300, 2)])
    (of_many,) = inputs_for(keras.Input((5000,), dtype="int8"), model=model)
    assert (array.min(), array.max()) == (0, 99)
    assert (of_many.min(), of_many.max()) == (0, 126)


def test_text_cannot_be_drawn():
    with pytest.raises(NotComparableError, match="input 'words' takes string"):
        inputs_for(keras.Input((1,), dtype="string", name="words"))


# How many samples a model is compared on


def batch_of(model, with_sites=True):
    source = graphs_of(model)
    found = sites.find_sites(source)[0] if with_sites else []
    models = pair_models(source, source.graphs, lambda graph, tensor: tensor, found)
    return random_batch(models)[0]


def normalized(shape, *stack):
    inputs = x = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, layers.BatchNormalization()(x))


def test_as_many_samples_as_are_cheap():
    assert len(batch_of(normalized((8,)))) == 32
    # 3 · 128 · 128 · 8 numbers
    assert len(batch_of(normalized((128, 128, 8), layers.ReLU()))) == 2
    assert len(batch_of(normalized((64, 64, 8), layers.ReLU()))) == 10


def test_a_channel_has_four_numbers_at_least_wherever_it_is_normalized():
    def pooled(size):
        return layers.MaxPooling2D(512 // size)

    assert len(batch_of(normalized((512, 512, 4), pooled(1)))) == 4
    assert len(batch_of(normalized((512, 512, 4), pooled(2)))) == 2
    first = keras.Input((4, 512, 512))
    x = layers.BatchNormalization(axis=1)(layers.Permute((1, 2, 3))(first))
    assert len(batch_of(keras.Model(first, x))) == 2


def test_free_sizes_of_what_is_compared_are_32():
    assert batch_of(normalized((None, None, 3))).shape[1:] == (32, 32, 3)


@pytest.mark.parametrize(("units", "wide"), [(2**27, True), (2**27 + 1, False)])
def test_a_model_of_too_large_tensors_is_not_run(units, wide):
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.ops.repeat(inputs, units, axis=1))
    models = pair_outputs(graphs_of(model), graphs_of(model).root)
    if wide:
        assert random_batch(models)[0].shape == (2, 1)
    else:
        with pytest.raises(NotComparableError, match=r"take 536,870,916 bytes a sample"):
            random_batch(models)


def test_a_model_of_too_many_compared_tensors_is_not_run():
    inputs = keras.Input((1,))
    large = keras.ops.repeat(inputs, 2**27, axis=1)
    model = keras.Model(inputs, [large, large + 1, large + 2, large + 3])
    assert random_batch(pair_outputs(graphs_of(model), graphs_of(model).root))
    model = keras.Model(inputs, [*model.outputs, inputs])
    with pytest.raises(NotComparableError, match=r"take 2,147,483,652 bytes a sample"):
        random_batch(pair_outputs(graphs_of(model), graphs_of(model).root))


# Saturation


def sigmoid(gain, shift=0.0):
    return lambda arrays: [1 / (1 + np.exp(np.float32(shift) - gain * arrays[0]))]


X = np.linspace(-2, 2, 9, dtype="float32")


@pytest.mark.parametrize(
    ("gain", "factor"), [(1.0, 1.0), (300.0, 0.03), (1e3, 0.01), (1e-3, 1.0), (1e6, 1.0)]
)
def test_inputs_are_scaled_until_a_probability_is_between(gain, factor):
    x = X[X != 0]
    with np.errstate(over="ignore"):
        (scaled, integers), (answer,) = scaled_off_saturation([x, np.arange(3)], sigmoid(gain))
        np.testing.assert_allclose(answer, sigmoid(gain)([scaled])[0], rtol=1e-6)
    np.testing.assert_allclose(scaled, factor * x, rtol=1e-6)
    np.testing.assert_array_equal(integers, np.arange(3))


def test_inputs_are_made_larger_too():
    (scaled,), _ = scaled_off_saturation([X], sigmoid(0.5, shift=20.0))
    np.testing.assert_allclose(scaled, 30 * X, rtol=1e-6)


def test_outputs_that_are_no_probabilities_are_taken_as_they_are():
    for answer in (lambda a: [1e5 * a[0]], lambda a: [a[0] > 0], lambda a: [a[0][:0]]):
        (scaled,), _ = scaled_off_saturation([X], answer)
        assert scaled is X or (scaled == X).all()


def test_one_saturated_output_among_several_is_enough():
    def answer(arrays):
        return [arrays[0], *sigmoid(300.0)(arrays)]

    with np.errstate(over="ignore"):
        (scaled,), _ = scaled_off_saturation([X[X != 0]], answer)
    np.testing.assert_allclose(scaled, 0.03 * X[X != 0], rtol=1e-6)


def test_a_size_that_is_not_taken_is_passed_over():
    def answer(arrays):
        if np.abs(arrays[0]).max() > 1:
            raise ExportError("too large")
        return sigmoid(1.0)(arrays)

    (scaled,), _ = scaled_off_saturation([X], answer)
    np.testing.assert_allclose(scaled, 0.3 * X, rtol=1e-6)


def test_the_error_of_the_inputs_as_they_are_is_raised_where_none_is_taken():
    def answer(arrays):
        raise ExportError(f"largest is {np.abs(arrays[0]).max()}")

    with pytest.raises(ExportError, match=r"largest is 2\.0"):
        scaled_off_saturation([X], answer)


@pytest.mark.parametrize(
    ("answer", "saturated"),
    [
        ([0.0, 1.0], True),
        ([0.001, 0.999], True),
        ([0.0, 0.0011], False),
        ([0.9989, 1.0], False),
        ([-0.1, 1.0], False),  # no probabilities
        ([0.0, 1.1], False),
    ],
)
def test_probabilities_next_to_0_or_1_are_saturated(answer, saturated):
    assert is_saturated(np.array(answer)) is saturated
    assert not is_saturated(np.array(answer).astype(int))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_what_is_not_a_number_is_looked_at_without_a_warning(dtype):
    answer = np.array(keras.ops.convert_to_tensor([0.0, np.nan, 0.5], dtype))
    assert not is_saturated(answer)


# Rounding


@pytest.mark.parametrize(
    ("dtype", "step"),
    [("float64", 2**-52), ("float32", 2**-23), ("float16", 2**-10), (ml_dtypes.bfloat16, 2**-7)],
)
def test_numbers_move_by_one_or_two_units_in_the_last_place(dtype, step):
    values = np.random.default_rng(0).normal(size=1000).astype(dtype)
    values[:2] = 0.0, 1.0
    after = moved(values, np.random.default_rng(1))
    assert after.dtype == values.dtype
    assert after[0] == 0
    relative = after[1:].astype("float64") / values[1:].astype("float64") - 1
    assert 0.5 * step <= np.abs(relative).min()
    assert np.abs(relative).max() <= 2 * step
    assert 0.4 < np.mean(relative > 0) < 0.6


def test_numbers_move_by_a_coarser_step_where_they_are_computed_with_in_one():
    values = np.ones(8, "float32")
    for step, expected in ((2**-7, 2**-7), (2**-52, 2**-23)):
        by = np.abs(moved(values, np.random.default_rng(0), step) - 1)
        np.testing.assert_array_equal(by, expected)


def test_whole_numbers_stay():
    for values in (np.arange(5), np.array([True, False])):
        assert moved(values, np.random.default_rng(0)) is values


def test_weights_move_together():
    layer = layers.Dense(3, bias_initializer="ones")
    layer.build((None, 4))
    counter = keras.Variable(0, dtype="int32")
    state = moved_weights([*layer.variables, counter], seed=0)
    assert [variable for variable, _ in state] == layer.variables
    for variable, value in state:
        assert (value != np.array(variable)).all()
        np.testing.assert_allclose(value, variable, rtol=3e-7)
    other = moved_weights(layer.variables, seed=1)
    assert any((a != b).any() for (_, a), (_, b) in zip(state, other, strict=True))


@pytest.mark.parametrize(
    ("dtypes", "coarsest"),
    [
        (["float64"], "float64"),
        (["float32", "float64"], "float32"),
        (["mixed_float16", "float64"], "float16"),
        (["float16", "mixed_bfloat16"], "bfloat16"),
        (["int32"], "float32"),
    ],
)
def test_the_coarsest_dtype_that_a_model_computes_in(dtypes, coarsest):
    stack = [layers.Activation("linear", dtype=dtype) for dtype in dtypes]
    model = keras.Sequential([keras.Input((2,)), *stack], name="stack")
    assert coarsest_dtype(model) == coarsest


@pytest.mark.parametrize(("dtype", "steps"), [("float32", 100), ("float16", 20), ("bfloat16", 20)])
def test_runtimes_may_differ_by_some_rounding_steps_of_the_dtype(dtype, steps):
    assert coarsest_dtype(layers.ReLU(dtype=dtype)) == dtype
    assert 5 < OF_LARGEST_ENTRY[dtype] / EPSILONS[dtype] < steps
    assert 0 < OF_LARGEST_ENTRY["float64"] < 1e-4 * OF_LARGEST_ENTRY["float32"]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_rounding_step_is_that_from_one_to_the_next_number(dtype):
    coarsest = coarsest_dtype(layers.ReLU(dtype=dtype))
    assert EPSILONS[coarsest] == float(ml_dtypes.finfo(dtype).eps)
