"""Fit the gain and bias of a LayerNorm or CosineNorm: for each channel the line t ≈ g·z + b."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from kerasnorm.fit.im2col import as_float64
from kerasnorm.fit.regression import ChannelwiseRegression
from kerasnorm.fit.sampling import FitData, HeldOutRows, Sampling, parts_of, sampled_positions
from kerasnorm.layers import CosineNorm, kernels
from kerasnorm.layers.linear_ops import add_bias, linear_map
from kerasnorm.math.r_squared import r_squared


def fit_gain_and_bias(layer: Any, data: FitData, sampling: Sampling, source: Any = None) -> float:
    """Fit the gain and bias of a LayerNorm or CosineNorm, one each per channel.

    Args:
        layer: The layer.
        data: See `FitData`.
        sampling: See `Sampling`.
        source: The source's linear layer whose inputs the data gives as t, and whose
            pre-activation the layer's is to be; None where it gives the activation itself.

    Returns:
        R² on held-out rows.
    """
    affine = _GainAndBias(layer)
    start = affine.values()
    affine.assign(np.ones(affine.size), np.zeros(affine.size))
    line, held, first = ChannelwiseRegression(), HeldOutRows(), 0
    for x, t in data():
        y = layer(x, training=False) if source is None else layer.pre_activation(x)
        z = affine.channels_last(ops.convert_to_numpy(y))
        t = affine.channels_last(t if source is None else _pre_activation(source, t))
        index = sampled_positions(z.shape[:-1], sampling.rows(1), sampling.random)
        fitted, chooses = parts_of(index, first)
        line.add(z[index][fitted], t[index][fitted])
        held.add(z=z[index][chooses], t=t[index][chooses])
        first += len(x)
    candidates = [start, line.solve()]
    scores = [r_squared(held["t"], held["z"] * gain + bias) for gain, bias in candidates]
    best = int(np.argmax(scores))
    affine.assign(*candidates[best])
    return scores[best]


def _pre_activation(source: Any, x: np.ndarray) -> np.ndarray:
    weights = {name: kernel.wide_value for name, kernel in kernels.kernels_of(source).items()}
    x = ops.cast(x, weights["g"].dtype)
    return ops.convert_to_numpy(add_bias(source, linear_map(source, weights, x), source.bias))


class _GainAndBias:
    """The gain and bias of a LayerNorm or CosineNorm, by one name each."""

    def __init__(self, layer: Any):
        cosine = isinstance(layer, CosineNorm)
        self._gain = layer.g if cosine else layer.gamma
        self._bias = layer.layer.bias if cosine else layer.beta
        self.size = int(np.prod(self._gain.shape))
        if cosine:
            first = getattr(layer.layer, "data_format", "channels_last") == "channels_first"
            self._axis = 1 if first else -1
        else:
            self._axis = layer.channel_axis if layer.axis == "sample" else layer.axis

    def values(self) -> tuple[np.ndarray, np.ndarray]:
        return as_float64(self._gain).reshape(-1), as_float64(self._bias).reshape(-1)

    def assign(self, gain: np.ndarray, bias: np.ndarray) -> None:
        self._gain.assign(gain.reshape(self._gain.shape))
        self._bias.assign(bias.reshape(self._bias.shape))

    def channels_last(self, y: np.ndarray) -> np.ndarray:
        y = np.moveaxis(y, self._axis, -1)
        return y if y.shape[-1] == self.size else y.reshape(*y.shape[:-2], self.size)
