"""`inspect_norms` of Sequential models that were never told the shape of their inputs."""

from __future__ import annotations

import keras
import pytest
from keras import layers

import kerasnorm
from kerasnorm import SwapError


@pytest.mark.parametrize(
    ("steps", "becomes", "shape"),
    [
        ([layers.Dense(3)], "WeightNorm(Dense)", "(None, 3)"),
        ([layers.Conv1D(3, 2)], "WeightNorm(Conv1D)", "(None, None, 3)"),
        ([layers.Conv2D(3, 2)], "WeightNorm(Conv2D)", "(None, None, None, 3)"),
        ([layers.Conv2D(3, 2, data_format="channels_first")], "WeightNorm(Affine)", "(None, 3, "),
        ([layers.Conv3D(3, 2)], "WeightNorm(Conv3D)", "(None, None, None, None, 3)"),
        # Flatten has to know how large the map is, and LSTM wants an axis for time
        ([layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(3)], "WeightNorm(Dense)", "32, 32"),
        ([layers.LSTM(3), layers.Dense(3)], "WeightNorm(Dense)", "(None, None, 3)"),
        ([layers.Dense(3), layers.LSTM(3)], "WeightNorm(Affine)", "(None, None, 3)"),
    ],
    ids=["dense", "conv1d", "conv2d", "first", "conv3d", "flatten", "lstm", "dense lstm"],
)
def test_inspect(steps, becomes, shape):
    model = keras.Sequential([*steps, layers.BatchNormalization()])
    report = kerasnorm.inspect_norms(model)
    assert [site.target for site in report.sites] == ["weight", "layer", "cosine"]
    assert report.sites[0].becomes == becomes
    assert report.notes[0].startswith("the model is not built")
    assert shape in report.notes[0]
    assert not any(layer.built for layer in (model, *model.layers))


def test_no_shape_goes_through():
    model = keras.Sequential([layers.LSTM(3), layers.Conv2D(3, 2), layers.BatchNormalization()])
    with pytest.raises(SwapError, match=r"no usual input shape .*`model\.build\(input_shape\)`"):
        kerasnorm.inspect_norms(model)


def test_a_swap_needs_the_real_shape():
    model = keras.Sequential([layers.Dense(3), layers.BatchNormalization()])
    with pytest.raises(SwapError, match=r"must be built .*`model\.build\(input_shape\)`"):
        kerasnorm.swap_norms(model, "weight")
