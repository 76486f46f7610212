"""GroupNorm: what it computes, where it is Keras's, and what it refuses."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from gradients import output_and_gradients
from helpers import standardize

from kerasnorm import GroupNorm, LayerNorm, export_onnx, fold_norms


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def grouped(x, groups, axes):
    """Groups of the last axis standardized over `axes` and themselves, in float64."""
    split = x.astype("float64").reshape(*x.shape[:-1], groups, -1)
    return standardize(split, (*axes, x.ndim), 1e-3).reshape(x.shape)


@pytest.mark.parametrize("groups", [1, 2, 4, 8, -1])
@pytest.mark.parametrize("shape", [(3, 8), (3, 5, 8), (3, 4, 5, 8), (2, 2, 3, 4, 8)])
def test_it_is_the_formula_and_keras_own(groups, shape):
    if groups in (-1, 8) and len(shape) == 2:
        pytest.skip("a group of one entry")
    x = normal(*shape)
    layer, other = GroupNorm(groups), keras.layers.GroupNormalization(groups)
    layer.build(shape)
    other.build(shape)
    layer.set_weights([normal(8, seed=1), normal(8, seed=2)])
    other.set_weights(layer.get_weights())
    expected = grouped(x, 8 if groups == -1 else groups, range(1, x.ndim - 1))
    expected = expected * layer.get_weights()[0] + layer.get_weights()[1]
    np.testing.assert_allclose(layer(x), expected, atol=2e-6)
    np.testing.assert_allclose(layer(x), other(x), atol=1e-5)


def test_channels_may_stand_first():
    x = normal(2, 8, 4, 5)
    layer = GroupNorm(2, axis=1)
    expected = np.moveaxis(grouped(np.moveaxis(x, 1, -1), 2, (1, 2)), -1, 1)
    np.testing.assert_allclose(layer(x), expected, atol=2e-6)


def test_positions_see_no_other_where_each_is_normalized_by_itself():
    x = normal(2, 6, 8)
    layer = GroupNorm(2, per_position=True)
    np.testing.assert_allclose(layer(x), grouped(x, 2, ()), atol=2e-6)
    changed = x.copy()
    changed[:, 3:] = 0
    np.testing.assert_array_equal(np.asarray(layer(changed))[:, :3], np.asarray(layer(x))[:, :3])


def test_one_group_is_a_layer_norm_of_the_sample():
    x = normal(2, 4, 5, 6)
    np.testing.assert_allclose(GroupNorm(1)(x), LayerNorm(axis="sample")(x), atol=2e-6)


def test_a_mean_far_larger_than_the_deviation_costs_no_digits():
    x = normal(2, 8, 8, 8) + 1e4
    exact = grouped(x, 2, (1, 2))
    off = {
        layer: float(np.abs(layer(2)(x) - exact).max())
        for layer in (GroupNorm, keras.layers.GroupNormalization)
    }
    assert off[GroupNorm] < 1e-5
    assert off[keras.layers.GroupNormalization] > 1e-4


def test_height_width_and_batch_may_be_unknown():
    inputs = keras.Input((None, None, 8))
    layer = GroupNorm(4)
    model = keras.Model(inputs, layer(inputs))
    for shape in ((2, 4, 5, 8), (1, 7, 2, 8)):
        x = normal(*shape)
        np.testing.assert_allclose(model(x), grouped(x, 4, (1, 2)), atol=2e-6)


@pytest.mark.parametrize("hidden", [0.0, np.nan, -np.inf, 3.4e38])
def test_masked_steps_do_not_count_whatever_they_hold(hidden):
    layer = GroupNorm(2)
    x = normal(2, 5, 8)
    mask = np.array([[1, 1, 1, 0, 0]] * 2, "bool")
    expected = layer(x[:, :3])
    x[:, 3:] = hidden
    np.testing.assert_allclose(np.asarray(layer(x, mask=mask))[:, :3], expected, atol=1e-5)
    assert layer.compute_mask(x, mask) is mask


def test_a_mask_changes_nothing_where_each_position_is_normalized_by_itself():
    layer = GroupNorm(2, per_position=True)
    x, mask = normal(2, 5, 8), np.array([[1, 1, 1, 0, 0]] * 2, "bool")
    np.testing.assert_array_equal(layer(x, mask=mask), layer(x))


def test_gradients_are_those_of_keras():
    x, cotangent = normal(3, 4, 5, 8), normal(3, 4, 5, 8, seed=1)
    layer, other = GroupNorm(4), keras.layers.GroupNormalization(4)
    layer.build(x.shape)
    other.build(x.shape)
    for ours, theirs in zip(
        output_and_gradients(layer, x, cotangent),
        output_and_gradients(other, x, cotangent),
        strict=True,
    ):
        for a, b in zip(np.atleast_1d(ours), np.atleast_1d(theirs), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_float16", "float64"])
def test_statistics_are_taken_in_float32_or_wider(dtype):
    x = normal(2, 4, 4, 8) + 100
    layer = GroupNorm(2, dtype=dtype)
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    tolerance = {"float64": 1e-5, "bfloat16": 2e-2}.get(dtype, 3e-3)
    wide = keras.ops.convert_to_numpy(keras.ops.cast(y, "float32"))
    np.testing.assert_allclose(wide, grouped(x, 2, (1, 2)), atol=tolerance)


def test_config_and_weights_come_back(tmp_path):
    inputs = keras.Input((4, 5, 8))
    model = keras.Model(inputs, GroupNorm(2, epsilon=1e-4, per_position=True)(inputs))
    model.layers[-1].set_weights([normal(8), normal(8, seed=1)])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.layers[-1].get_config() == model.layers[-1].get_config()
    x = normal(2, 4, 5, 8)
    np.testing.assert_array_equal(model(x), again(x))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"groups": 0}, ValueError, "groups=0"),
        ({"groups": -2}, ValueError, "groups=-2"),
        ({"groups": 2.0}, TypeError, "groups=2.0"),
        ({"groups": True}, TypeError, "groups=True"),
        ({"axis": "sample"}, TypeError, "axis='sample'"),
    ],
)
def test_arguments_that_are_none_are_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        GroupNorm(**arguments)


def test_groups_must_divide_the_channels_and_the_advice_works():
    with pytest.raises(ValueError, match=r"Use one of \[1, 2, 4, 8\]"):
        GroupNorm(3).build((None, 4, 8))
    GroupNorm(4).build((None, 4, 8))


@pytest.mark.parametrize("axis", [0, 3, -4])
def test_an_axis_that_is_no_channel_axis_is_refused(axis):
    with pytest.raises(ValueError, match="axis"):
        GroupNorm(2, axis=axis).build((None, 4, 8))


def test_unknown_channels_are_refused():
    with pytest.raises(ValueError, match="must be known"):
        GroupNorm(2).build((None, 4, None))


def test_a_group_of_one_entry_is_warned_of():
    with pytest.warns(UserWarning, match="single entry"):
        GroupNorm(8).build((None, 8))
    with pytest.warns(UserWarning, match="single entry"):
        GroupNorm(-1, per_position=True).build((None, 5, 8))


def plain_model(layer, shape):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    channels = model.layers[-1].gamma.shape[0]
    model.layers[-1].set_weights([normal(channels), normal(channels, seed=1)])
    return model


@pytest.mark.parametrize(
    ("groups", "shape", "per_position", "kind"),
    [
        (4, (4, 5, 8), False, "GroupNormalization"),
        (2, (8,), True, "GroupNormalization"),
        (1, (5, 8), True, "LayerNormalization"),
        (2, (5, 8), True, "TimeDistributed"),
        (2, (None, 8), True, "TimeDistributed"),
        (4, (3, 5, 8), True, "TimeDistributed"),
    ],
)
def test_it_folds_to_keras_own(groups, shape, per_position, kind):
    model = plain_model(GroupNorm(groups, per_position=per_position), shape)
    folded = fold_norms(model)
    assert [type(layer).__name__ for layer in folded.layers[1:]] == [kind]
    x = normal(3, *(size or 6 for size in shape))
    np.testing.assert_allclose(folded(x), model(x), atol=1e-5)
    assert len(folded.trainable_weights) == 2


@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize("shape", [(8,), (5, 8), (4, 5, 8), (None, None, 8), (None, 8)])
def test_onnx_answers_as_keras(tmp_path, shape, per_position):
    model = plain_model(GroupNorm(2, per_position=per_position), shape)
    exported = export_onnx(model, tmp_path / "model.onnx")
    assert exported.op_counts["LayerNormalization"] == 1
    assert exported.max_difference < 1e-5


@pytest.mark.parametrize(("axis", "shape"), [(1, (8, 4, 5)), (-1, (4, 5, 8))])
def test_onnx_of_keras_own_group_normalization(tmp_path, axis, shape):
    model = plain_model(keras.layers.GroupNormalization(4, axis=axis), shape)
    exported = export_onnx(model, tmp_path / "model.onnx")
    assert exported.op_counts["LayerNormalization"] == 1
    assert exported.max_difference < 1e-5
