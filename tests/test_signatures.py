"""A user of Keras can swap the name of a layer and nothing else."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
from keras import layers

from kerasnorm import Affine, BatchNorm, CosineNorm, LayerNorm, WeightNorm
from kerasnorm.layers import LayerNormGRUCell, LayerNormLSTMCell, LayerNormSimpleRNNCell

# ours, the Keras twin, arguments that only ours has
TWINS = [
    (BatchNorm, layers.BatchNormalization, set()),
    (LayerNorm, layers.LayerNormalization, {"scalar_affine", "channel_axis"}),
    (WeightNorm, layers.SpectralNormalization, {"mean_only", "momentum"}),
    (CosineNorm, layers.SpectralNormalization, {"rescale", "damping", "centered", "across_groups"}),
]
THEIRS_ONLY = {layers.SpectralNormalization: {"power_iterations"}}


@pytest.mark.parametrize(("ours", "twin", "extra"), TWINS)
def test_arguments_order_and_defaults_are_those_of_the_twin(ours, twin, extra):
    def arguments(cls):
        return [
            (p.name, p.default, p.kind)
            for p in inspect.signature(cls.__init__).parameters.values()
            if p.name not in extra | THEIRS_ONLY.get(twin, set())
        ]

    assert arguments(ours) == arguments(twin)
    mine = list(inspect.signature(ours.__init__).parameters)
    # what is ours alone comes after everything shared, so that positions keep their meaning
    assert set(mine[len(mine) - 1 - len(extra) : -1]) == extra


@pytest.mark.parametrize(("ours", "twin", "extra"), TWINS[:2])
def test_config_of_the_twin_makes_ours(ours, twin, extra):
    config = twin(name="norm", epsilon=0.1, gamma_regularizer="l2").get_config()
    layer = ours.from_config(config)
    shared = {key: value for key, value in config.items() if key != "rms_scaling"}
    assert {key: layer.get_config()[key] for key in shared} == shared


@pytest.mark.parametrize(
    ("ours", "twin", "options"),
    [
        (LayerNorm, layers.LayerNormalization, {}),
        (LayerNorm, layers.LayerNormalization, {"axis": [3, 1], "epsilon": 0.1}),
        (LayerNorm, layers.LayerNormalization, {"axis": 1, "center": False}),
        (BatchNorm, layers.BatchNormalization, {}),
        (BatchNorm, layers.BatchNormalization, {"axis": 1, "scale": False, "momentum": 0.5}),
        (BatchNorm, layers.BatchNormalization, {"renorm": True}),
    ],
    ids=str,
)
def test_weights_are_exchanged_both_ways(ours, twin, options):
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, size=(4, 5, 6, 3)).astype("float32")
    one, two = ours(**options), twin(**options)
    for source, target in ((one, two), (two, one)):
        source(x), target(x)
        source.set_weights([np.abs(rng.normal(size=w.shape)) + 0.1 for w in source.weights])
        target.set_weights(source.get_weights())
        # Keras centres once, we twice: the mean of 90 values near 2 keeps 5e-7 of them
        np.testing.assert_allclose(target(x), source(x), atol=2e-5)
        if ours is BatchNorm:
            np.testing.assert_allclose(
                target(x, training=True), source(x, training=True), atol=2e-5
            )
            for a, b in zip(target.get_weights(), source.get_weights(), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("ours", "twin"),
    [
        (LayerNormSimpleRNNCell, layers.SimpleRNNCell),
        (LayerNormLSTMCell, layers.LSTMCell),
        (LayerNormGRUCell, layers.GRUCell),
    ],
)
def test_recurrent_cells_take_what_their_twins_take(ours, twin):
    config = twin(4, activation="relu", dropout=0.1, name="cell").get_config()
    cell = ours.from_config(config)
    assert {key: cell.get_config()[key] for key in config} == config
    assert cell.state_size == twin(4).state_size


def test_wrapped_layers_follow_the_wrapper_conventions():
    for wrap in (WeightNorm, CosineNorm):
        dense = layers.Dense(3)
        layer = wrap(dense, name="outer")
        assert isinstance(layer, layers.Wrapper)
        assert layer.layer is dense
        assert layer.name == "outer"
        with pytest.raises(ValueError, match="supported layer type"):
            wrap("Dense")


def test_every_layer_is_registered_under_the_package():
    for cls in (Affine, BatchNorm, CosineNorm, LayerNorm, WeightNorm, LayerNormLSTMCell):
        assert keras.saving.get_registered_name(cls) == f"kerasnorm>{cls.__name__}"
