"""The report says what of a swapped model is not trainable, and says nothing where all of it is."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tiny_models
from keras import layers

import kerasnorm
from kerasnorm.targets.registry import TARGETS

BN = layers.BatchNormalization


def note(model, target="weight", **options):
    notes = kerasnorm.swap_norms(model, target, **options).report.notes
    return [note for note in notes if "not trainable" in note]


@pytest.mark.parametrize("target", ["weight", "layer"])
def test_none_where_everything_trains(target):
    swap = kerasnorm.swap_norms(tiny_models.residual(), target)
    assert swap.model.non_trainable_variables == []
    assert not [note for note in swap.report.notes if "not trainable" in note]


def test_signs_alone_are_not_worth_a_note():
    model = tiny_models.bn_on_input()
    assert len(kerasnorm.swap_norms(model, "weight").model.non_trainable_variables) == 1
    assert note(model) == []


def test_frozen_layers():
    model = tiny_models.frozen()
    assert note(model) == [
        "3 variables are not trainable in the swapped model: 3 of frozen layers ('bn')"
    ]
    assert len(kerasnorm.swap_norms(model, "weight").model.non_trainable_variables) == 3


def test_seeds():
    inputs = keras.Input((4,))
    x = layers.Dropout(0.5)(BN(name="bn")(layers.Dense(3)(inputs)))
    assert note(keras.Model(inputs, x)) == [
        "1 variable is not trainable in the swapped model: 1 of random seeds"
    ]


def test_batch_norm_that_stays():
    model = tiny_models.sequential()
    assert note(model, sites=["bn_flat"]) == [
        "3 variables are not trainable in the swapped model: 2 of moving statistics "
        "('bn'), 1 of fixed signs ('bn_flat')"
    ]


def test_numbers_that_a_layer_keeps():
    scaling = layers.Normalization(name="scaling")
    scaling.adapt(np.array([[0.0, 1.0], [1.0, 3.0]]))
    inputs = keras.Input((2,))
    model = keras.Model(inputs, BN(name="bn")(layers.Dense(3)(scaling(inputs))))
    (said,) = note(model)
    assert said.endswith("of what a layer keeps ('scaling')")


def test_no_more_than_three_layers_are_named():
    inputs = x = keras.Input((2,))
    for n in range(5):
        x = layers.Dense(2, name=f"dense_{n}", trainable=False)(x)
    (said,) = note(keras.Model(inputs, BN(name="bn", trainable=False)(x)))
    assert "'dense_0', 'dense_1', 'dense_2' and 2 more)" in said


@pytest.mark.parametrize("target", TARGETS)
def test_the_count_is_that_of_keras(target):
    model = tiny_models.residual()
    model.get_layer("conv_1").trainable = model.get_layer("bn_1").trainable = False
    data = None if target == "weight" else keras.random.normal((40, 8, 8, 3), seed=0)
    swap = kerasnorm.swap_norms(model, target, data, max_samples=40)
    (said,) = (note for note in swap.report.notes if "not trainable" in note)
    assert said.startswith(f"{len(swap.model.non_trainable_variables)} variables are not trainable")
