"""Weights that older files keep in another layout than Keras 3's layers have them.

The facts are those of `preprocess_weights_for_loading` in
https://github.com/keras-team/keras/blob/v2.15.0/keras/saving/legacy/hdf5_format.py
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kerasnorm.loading.legacy.built_layer import BuiltLayer
from kerasnorm.loading.registered import keras_base

Arrays = list[np.ndarray]

# How many of a convolution's arrays are kernels, which come first.
_KERNELS = {
    "Conv1D": 1,
    "Conv2D": 1,
    "Conv2DTranspose": 1,
    "Conv3D": 1,
    "Conv3DTranspose": 1,
    "ConvLSTM2D": 2,
}
# Of each gate in turn Keras 1 stored kernel, recurrent kernel and bias; the gates by their place.
_GATES_OF_KERAS_1 = {"ConvLSTM2D": (0, 2, 1, 3), "GRU": (0, 1, 2), "LSTM": (0, 2, 1, 3)}


@dataclass(frozen=True)
class Origin:
    """Where weights come from: the major version of Keras, and its backend."""

    keras: int
    backend: str | None


@dataclass(frozen=True)
class Conversion:
    """How many arrays the file has for a layer, and what becomes of them, step by step."""

    count: int
    steps: list[Callable[[Arrays], Arrays]]

    def convert(self, arrays: Arrays) -> Arrays:
        """The layer's arrays from those of the file."""
        for step in self.steps:
            arrays = step(arrays)
        return arrays


def conversion(built: BuiltLayer, origin: Origin) -> Conversion | None:
    """How a layer's stored weights become those of its Keras 3 layer; None where they are those."""
    layer: Any = built.layer
    base = keras_base(type(layer))
    kind, count = base.__name__ if base else "", len(layer.weights)
    steps: list[Callable[[Arrays], Arrays]] = []
    if built.class_name == "CuDNNLSTM":
        steps.append(_from_cudnn_lstm)
    if built.class_name == "CuDNNGRU":
        steps.append(_from_cudnn_gru)
    if origin.keras == 1 and kind in _GATES_OF_KERAS_1:
        gates = _GATES_OF_KERAS_1[kind]
        count = 3 * len(gates)
        steps.append(functools.partial(_joined_gates, gates))
    if origin.keras == 1 and kind in _KERNELS:
        steps.append(lambda arrays: _each_kernel(kind, arrays, _kernel_from_keras1(layer)))
    if origin.backend == "theano" and kind in _KERNELS:
        steps.append(lambda arrays: _each_kernel(kind, arrays, _flipped))
    return Conversion(count, steps) if steps else None


def _each_kernel(kind: str, arrays: Arrays, change: Callable[[np.ndarray], np.ndarray]) -> Arrays:
    count = _KERNELS[kind]
    return [*map(change, arrays[:count]), *arrays[count:]]


def _flipped(kernel: np.ndarray) -> np.ndarray:
    """Theano convolves, while the others correlate."""
    return np.flip(kernel, tuple(range(kernel.ndim - 2)))


def _kernel_from_keras1(layer: Any) -> Callable[[np.ndarray], np.ndarray]:
    """What a kernel of Keras 1 becomes."""
    if isinstance(layer, keras.layers.Conv1D):  # was a two-dimensional one of width 1
        now = (*layer.kernel_size, 1)
        return lambda k: (
            k if k.shape[:2] == now and k.shape[3] == layer.filters else k.transpose(2, 3, 1, 0)
        )[:, 0]
    first = layer.data_format == "channels_first"
    if isinstance(layer, keras.layers.Conv2DTranspose):
        return lambda k: k.transpose((2, 3, 0, 1) if first else (0, 1, 3, 2))
    # Filters and channels stood before space.
    return lambda k: k.transpose(*range(2, k.ndim), 1, 0) if first else k


def _joined_gates(gates: Sequence[int], arrays: Arrays) -> Arrays:
    by_gate = [arrays[3 * gate : 3 * gate + 3] for gate in gates]
    return [np.concatenate(parts, axis=-1) for parts in zip(*by_gate, strict=True)]


def _from_cudnn_lstm(arrays: Arrays) -> Arrays:
    kernel, recurrent_kernel, bias = arrays
    return [
        _each_gate(kernel, 4, lambda part: part.T.reshape(part.shape, order="F")),
        _each_gate(recurrent_kernel, 4, np.transpose),
        np.sum(np.split(bias, 2), axis=0),  # cuDNN adds one bias to either product
    ]


def _from_cudnn_gru(arrays: Arrays) -> Arrays:
    kernel, recurrent_kernel, bias = arrays
    return [
        _each_gate(kernel, 3, lambda part: part.T.reshape(part.shape, order="F")),
        _each_gate(recurrent_kernel, 3, np.transpose),
        bias.reshape(2, -1),
    ]


def _each_gate(
    kernel: np.ndarray, gates: int, change: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    return np.hstack([change(part) for part in np.hsplit(kernel, gates)])
