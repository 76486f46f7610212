"""BatchNorm to group norm: how many groups, what the record says, what is refused."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from keras import layers

import kerasnorm
from kerasnorm import FidelityWarning, GroupNorm, SwapError
from kerasnorm.errors import DataError
from kerasnorm.targets.registry import TARGETS


def trained(build, data):
    """A net whose BatchNorm have gains, biases and the statistics of the data."""
    keras.utils.set_random_seed(0)
    model = build()
    rng = np.random.default_rng(0)
    norms = [x for x in model.layers if isinstance(x, layers.BatchNormalization)]
    for norm in norms:
        size = norm.gamma.shape[0]
        norm.gamma.assign(rng.uniform(0.7, 1.3, size))
        norm.beta.assign(0.3 * rng.normal(size=size))
        norm.momentum = 0.0
    model(data, training=True)
    for norm in norms:
        norm.momentum = 0.99
    return model


def images(count=128, size=12):
    """Smooth images, of which each has a brightness and a contrast of its own."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(count, size, size, 3))
    for axis in (1, 2):
        x = x + np.roll(x, 1, axis) + np.roll(x, 2, axis)
    return (x * rng.uniform(0.7, 1.3, (count, 1, 1, 1))).astype("float32")


def convolutional(*filters):
    inputs = y = keras.Input((12, 12, 3))
    for count in filters:
        y = layers.Conv2D(count, 3, padding="same")(y)
        y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.GlobalAveragePooling2D()(y)
    return keras.Model(inputs, layers.Dense(5)(y))


def groups_of(swap):
    return [record.groups for record in swap.report.sites]


def all_sites(model):
    return [
        record.name for record in kerasnorm.inspect_norms(model).sites if record.target == "group"
    ]


def test_a_group_has_sixteen_channels_by_default_and_there_are_at_most_32():
    model = trained(lambda: convolutional(16, 48, 64, 1024), images(8))
    swap = kerasnorm.swap_norms(model, "group", sites=all_sites(model))
    assert groups_of(swap) == [1, 3, 4, 32]
    kept = [x for x in swap.model.layers if isinstance(x, GroupNorm)]
    assert [x.groups for x in kept] == [1, 3, 4, 32]
    assert {record.becomes for record in swap.report.sites} == {"GroupNorm"}


@pytest.mark.parametrize(
    ("groups", "expected"), [(1, [1, 1]), (4, [4, 4]), (5, [4, 4]), (64, [8, 16])]
)
def test_a_number_is_taken_wherever_it_is_possible(groups, expected):
    model = trained(lambda: convolutional(16, 32), images(8))
    swap = kerasnorm.swap_norms(model, "group", groups=groups, sites=all_sites(model))
    assert groups_of(swap) == expected
    for record in swap.report.sites:
        said = f"{groups} groups are not possible for" in record.reason
        assert said == (record.groups != groups)
        assert "taken in by" in record.reason or not said


def test_sixteen_values_stay_in_a_group_of_a_vector():
    model = trained(
        lambda: keras.Sequential(
            [keras.Input((6,)), layers.Dense(64), layers.BatchNormalization(), layers.Dense(2)]
        ),
        np.random.default_rng(0).normal(size=(64, 6)).astype("float32"),
    )
    names = all_sites(model)
    assert groups_of(kerasnorm.swap_norms(model, "group", groups=32, sites=names)) == [4]
    assert groups_of(kerasnorm.swap_norms(model, "group", sites=names)) == [4]


def test_numbers_by_site():
    model = trained(lambda: convolutional(16, 32), images(8))
    first, second = all_sites(model)
    swap = kerasnorm.swap_norms(model, "group", groups={second: 4}, sites=[first, second])
    assert groups_of(swap) == [1, 4]
    mixed = kerasnorm.swap_norms(model, {first: "weight", second: "group"}, groups={second: 8})
    assert groups_of(mixed) == [None, 8]
    assert json.loads(json.dumps(mixed.report.to_dict()))["sites"][1]["groups"] == 8


def test_calls_of_one_layer_with_other_numbers_are_other_layers():
    def build():
        norm = layers.BatchNormalization(name="shared")
        inputs = keras.Input((12, 12, 3))
        a = norm(layers.Conv2D(16, 3, name="a")(inputs))
        b = norm(layers.Conv2D(16, 3, name="b")(inputs))
        y = layers.GlobalAveragePooling2D()(layers.Add()([layers.ReLU()(a), b]))
        return keras.Model(inputs, layers.Dense(2)(y))

    model = trained(build, images(8))
    swap = kerasnorm.swap_norms(
        model, "group", groups={"shared": 2, "shared#2": 4}, sites=["shared", "shared#2"]
    )
    assert groups_of(swap) == [2, 4]
    assert sorted(x.groups for x in swap.model.layers if isinstance(x, GroupNorm)) == [2, 4]


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_the_start_keeps_each_groups_mean_and_deviation(groups):
    """On data that is as its statistics say, a group's divisor is on average its gain."""
    x = images(256)
    model = trained(lambda: convolutional(16), x)
    swap = kerasnorm.swap_norms(model, "group", groups=groups, sites=all_sites(model))
    norm = next(layer for layer in swap.model.layers if isinstance(layer, GroupNorm))
    inside = keras.Model(swap.model.inputs, norm.input).predict(x, verbose=0)
    split = inside.reshape(len(x), -1, groups, 16 // groups)
    squares = (split.var((1, 3)) + norm.epsilon + 0.0).mean(0)
    bias = split.mean((1, 3)).mean(0)
    gain = np.abs(keras.ops.convert_to_numpy(norm.gamma)).reshape(groups, -1)
    signs = np.sign(keras.ops.convert_to_numpy(norm.gamma)).reshape(groups, -1)
    shift = keras.ops.convert_to_numpy(norm.beta).reshape(groups, -1) * signs
    spread = split.mean((1, 3)).var(0)  # of the groups' means, which the statistics do not tell
    np.testing.assert_allclose(gain, np.sqrt(squares + spread)[:, None] + 0 * gain, rtol=1e-3)
    np.testing.assert_allclose(shift, bias[:, None] + 0 * shift, atol=1e-4)


@pytest.mark.parametrize("with_data", [False, True])
def test_one_group_is_the_layer_swap(with_data, closed_form):
    x = images()
    model = trained(lambda: convolutional(16, 32), x)
    data = x if with_data else None
    names = all_sites(model)
    group = kerasnorm.swap_norms(model, "group", data, groups=1, sites=names)
    layer = kerasnorm.swap_norms(model, "layer", data, sites=names)
    expected = layer.model.predict(x, verbose=0)
    np.testing.assert_allclose(group.model.predict(x, verbose=0), expected, atol=1e-3)


def test_fits_bring_groups_nearer_than_statistics(closed_form):
    x = images(128)
    model = trained(lambda: convolutional(32, 32), x)
    expected = model.predict(x, verbose=0)
    names = all_sites(model)
    off = [
        np.square(
            kerasnorm.swap_norms(
                model, "group", data, groups=4, sites=names, damping=0.0
            ).model.predict(x, verbose=0)
            - expected
        ).mean()
        for data in (None, x)
    ]
    assert off[1] < 0.3 * off[0]


def test_auto_takes_what_moves_the_answers_least_and_says_what(closed_form):
    x = images(128)
    model = trained(lambda: convolutional(16, 32), x)
    names = all_sites(model)
    swap = kerasnorm.swap_norms(model, "group", x, groups="auto", sites=names, damping=0.0)
    assert set(groups_of(swap)) <= {1, 2, 4, 8, 16}
    assert groups_of(swap) != [1, 2]


def test_auto_without_data_is_the_default():
    model = trained(lambda: convolutional(16, 48), images(8))
    names = all_sites(model)
    swap = kerasnorm.swap_norms(model, "group", groups="auto", sites=names)
    assert groups_of(swap) == [1, 3]


def test_few_channels_in_a_group_are_warned_of():
    model = trained(lambda: convolutional(32), images(8))
    with pytest.warns(FidelityWarning, match=r"fewer than 8 channels are in a group.* \(4\)"):
        kerasnorm.swap_norms(model, "group", groups=8, sites=all_sites(model))


@pytest.mark.parametrize("groups", [0, -1, 1.5, True and "all", {"batch_normalization": 0}])
def test_groups_that_are_none_are_refused(groups):
    model = trained(lambda: convolutional(16), images(8))
    with pytest.raises(DataError, match="groups"):
        kerasnorm.swap_norms(model, "group", groups=groups)


def test_groups_without_group_norm_are_refused_and_the_advice_works():
    model = trained(lambda: convolutional(16), images(8))
    with pytest.raises(SwapError, match="Leave it out, or ask for to='group'"):
        kerasnorm.swap_norms(model, "layer", groups=2)
    kerasnorm.swap_norms(model, "layer")
    kerasnorm.swap_norms(model, "group", groups=2)


def test_groups_of_a_site_that_becomes_something_else_are_refused():
    model = trained(lambda: convolutional(16, 32), images(8))
    first, second = all_sites(model)
    to, groups = {first: "weight", second: "group"}, {first: 2, second: 2}
    with pytest.raises(SwapError, match=rf"numbers for '{first}' \(weight\)"):
        kerasnorm.swap_norms(model, to, groups=groups)
    with pytest.raises(SwapError, match=rf"numbers for '{first}' \(left as it is\)"):
        kerasnorm.swap_norms(model, "group", sites=[second], groups=groups)
    kerasnorm.swap_norms(model, to, groups={second: 2})


def test_groups_of_a_site_that_does_not_exist_are_refused():
    model = trained(lambda: convolutional(16), images(8))
    with pytest.raises(SwapError, match="Sites must be BatchNorm calls"):
        kerasnorm.swap_norms(model, "group", groups={"nothing": 2})


def test_steps_of_a_sequence_see_no_other():
    def build():
        inputs = keras.Input((10, 4))
        y = layers.Conv1D(16, 3, padding="causal")(inputs)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        return keras.Model(inputs, y)

    x = np.random.default_rng(0).normal(size=(64, 10, 4)).astype("float32")
    model = trained(build, x)
    swapped = kerasnorm.swap_norms(model, "group", groups=1, sites=all_sites(model)).model
    changed = x[:4].copy()
    changed[:, 6:] = 0
    before, after = swapped.predict(x[:4], verbose=0), swapped.predict(changed, verbose=0)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])


def test_a_plan_of_one_channel_is_exact():
    model = trained(lambda: convolutional(1), images(8))
    [record] = [r for r in kerasnorm.inspect_norms(model).sites if r.target == "group"]
    assert (record.verdict, record.becomes, record.groups) == ("exact", "Affine", None)


def test_it_is_one_target_of_the_registry():
    assert TARGETS["group"].layer is GroupNorm
