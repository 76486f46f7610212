"""What speaks against a swapped model is a Python warning of one category, and only that."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
import tiny_models
from test_swap import batch

import kerasnorm
from kerasnorm import FidelityWarning

layers = keras.layers


def normal(rows=120):
    """A model whose statistics are those of standard normal images, and such."""
    model = tiny_models.conv_bn_relu()
    images = batch(model, rows=rows)
    kerasnorm.estimate_statistics(model, images)
    return model, images


def given(call):
    """What a call gives, and the texts of the warnings on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    return result, [str(w.message) for w in caught if w.category is FidelityWarning]


def test_each_warning_of_the_report_is_given_where_it_was_asked_for(closed_form):
    model, images = normal()
    with pytest.warns(FidelityWarning, match="inputs unlike those") as caught:
        swap = kerasnorm.swap_norms(model, "layer", 10 * images)
    caught = [warning for warning in caught if warning.category is FidelityWarning]
    assert {warning.filename for warning in caught} == {__file__}
    assert [str(warning.message) for warning in caught] == [
        f"{model.name}: {warning}" for warning in swap.report.warnings
    ]
    for warning in swap.report.warnings:
        assert f"- warning: {warning}" in str(swap.report).replace("\n", " ")
    assert swap.report.to_dict()["warnings"] == swap.report.warnings


@pytest.mark.parametrize("target", ["weight", "layer"])
def test_nothing_is_given_where_all_is_well(target, closed_form):
    model, images = normal()
    swap, texts = given(lambda: kerasnorm.swap_norms(model, target, images))
    assert texts == swap.report.warnings == []


def test_models_that_cannot_be_compared_are_warned_of():
    inputs = keras.Input((1,), dtype="string")
    words = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(inputs)
    model = keras.Model(inputs, layers.BatchNormalization()(layers.Dense(3)(words)))
    _, texts = given(lambda: kerasnorm.swap_norms(model, "weight"))
    assert len(texts) == 1
    assert "not compared with its source" in texts[0]


def test_without_data_an_answer_that_is_lost_on_random_inputs_is_warned_of():
    # of units that are all the same positive number, a layer norm keeps nothing
    inputs = keras.Input((4,))
    dense = layers.Dense(4, kernel_initializer="ones")
    model = keras.Model(inputs, layers.BatchNormalization(beta_initializer="ones")(dense(inputs)))
    kerasnorm.estimate_statistics(model, np.random.default_rng(1).normal(size=(500, 4)))
    model.layers[2].beta.assign(4 * model.layers[2].beta)
    swap, texts = given(lambda: kerasnorm.swap_norms(model, "layer", damping=0))
    assert swap.report.on_random_inputs.fit < 0.5
    assert any("on random inputs" in text for text in texts)


def test_it_can_be_turned_into_an_error(closed_form):
    model, images = normal()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FidelityWarning)
        kerasnorm.swap_norms(model, "layer", images)
        with pytest.raises(FidelityWarning, match="unlike"):
            kerasnorm.swap_norms(model, "layer", 10 * images)
