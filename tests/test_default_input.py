"""`inspect_norms` of Sequential models that were never told the shape of their inputs."""

from __future__ import annotations

import keras
import pytest
from keras import layers

import kerasnorm
from kerasnorm import SwapError
from kerasnorm.clone.default_input import stand_in


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
    assert [site.target for site in report.sites] == ["weight", "layer", "group", "cosine"]
    assert report.sites[0].becomes == becomes
    assert report.notes[0].startswith("the model is not built")
    assert shape in report.notes[0]
    assert not any(layer.built for layer in (model, *model.layers))


class Picky(layers.Layer):
    """Takes inputs of one rank, size and number of channels only."""

    def __init__(self, rank, size=None, channels=3, data_format="channels_last", spec=None):
        super().__init__()
        self.wanted, self.data_format = (rank, size, channels), data_format
        self.input_spec = spec

    def get_config(self):
        rank, size, channels = self.wanted
        return {
            "rank": rank,
            "size": size,
            "channels": channels,
            "data_format": self.data_format,
            "spec": self.input_spec,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{key: value for key, value in config.items() if key != "name"})

    def build(self, shape):
        first = self.data_format == "channels_first"
        channels, space = (shape[1], shape[2:]) if first else (shape[-1], shape[1:-1])
        rank, size, wanted = self.wanted
        if len(shape) != rank or channels != wanted or any(n != size for n in space):
            raise ValueError("no")

    def call(self, x):
        return x


def stand_in_shape(*steps):
    copy, shape = stand_in(keras.Sequential(steps))
    assert copy.built
    assert [type(layer) for layer in copy.layers] == [type(step) for step in steps]
    return shape


@pytest.mark.parametrize("size", [None, 32, 64, 96, 224])
@pytest.mark.parametrize("channels", [3, 1, 16])
@pytest.mark.parametrize("rank", [3, 4, 5])
def test_sizes_and_channels_that_are_usual_are_tried(size, channels, rank):
    space = (size,) * (rank - 2)
    assert stand_in_shape(Picky(rank, size, channels)) == (None, *space, channels)
    first = Picky(rank, size, channels, "channels_first")
    assert stand_in_shape(first) == (None, channels, *space)


def test_vectors_are_tried_and_what_has_six_axes_is_not():
    assert stand_in_shape(Picky(2)) == (None, 3)
    for picky in (Picky(6), Picky(2, channels=2), Picky(3, size=48)):
        with pytest.raises(SwapError, match="no usual input shape"):
            stand_in_shape(picky)


@pytest.mark.parametrize(
    ("rank", "spec"),
    [
        (6, {"min_ndim": 6}),  # as many axes as the layer takes at least
        (6, {"ndim": 6}),
        (3, {"ndim": 3}),
    ],
)
def test_the_layer_itself_says_how_many_axes_it_takes(rank, spec):
    spec = keras.layers.InputSpec(**spec)
    assert stand_in_shape(Picky(rank, spec=spec)) == (None, *[None] * (rank - 2), 3)
    with pytest.raises(SwapError):
        stand_in_shape(Picky(2, spec=spec))


def test_the_first_shape_that_goes_through_has_as_few_axes_and_sizes_as_can_be():
    assert stand_in_shape(layers.ReLU()) == (None, 3)
    assert stand_in_shape(layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(1)) == (
        None,
        32,
        32,
        3,
    )


def test_no_shape_goes_through():
    model = keras.Sequential([layers.LSTM(3), layers.Conv2D(3, 2), layers.BatchNormalization()])
    with pytest.raises(SwapError, match=r"no usual input shape .*`model\.build\(input_shape\)`"):
        kerasnorm.inspect_norms(model)


def test_a_swap_needs_the_real_shape():
    model = keras.Sequential([layers.Dense(3), layers.BatchNormalization()])
    with pytest.raises(SwapError, match=r"must be built .*`model\.build\(input_shape\)`"):
        kerasnorm.swap_norms(model, "weight")
