"""Weights that older files keep in another layout than Keras 3's layers have them.

The facts are those of `preprocess_weights_for_loading` in
https://github.com/keras-team/keras/blob/v2.15.0/keras/saving/legacy/hdf5_format.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kerasnorm.loading.made import Made

Arrays = list[np.ndarray]

_CONVOLUTIONS = ("Conv1D", "Conv2D", "Conv3D", "Conv2DTranspose", "Conv3DTranspose")
# Of each gate in turn Keras 1 stored kernel, recurrent kernel and bias; the gates by their place.
_GATES_OF_KERAS_1 = {"GRU": (0, 1, 2), "LSTM": (0, 2, 1, 3)}


@dataclass(frozen=True)
class Origin:
    """Where weights come from: the major version of Keras, and its backend."""

    keras: int
    backend: str | None


@dataclass(frozen=True)
class Conversion:
    """How many trainable arrays the file has for a layer, and what becomes of them."""

    count: int
    convert: Callable[[Arrays], Arrays]


def conversion(made: Made, origin: Origin) -> Conversion | None:
    """How a layer's stored weights become those of its Keras 3 layer; None where they are those."""
    layer = made.layer
    assert layer is not None  # leaves have one
    kind, count = type(layer).__name__, len(layer.weights)
    if made.class_name == "CuDNNLSTM":
        return Conversion(count, _from_cudnn_lstm)
    if made.class_name == "CuDNNGRU":
        return Conversion(count, _from_cudnn_gru)
    if origin.keras == 1 and kind in _GATES_OF_KERAS_1:
        gates = _GATES_OF_KERAS_1[kind]
        return Conversion(3 * len(gates), lambda arrays: _joined_gates(arrays, gates))
    if kind not in _CONVOLUTIONS:
        return None
    first = getattr(layer, "data_format", None) == "channels_first"
    steps: list[Callable[[np.ndarray], np.ndarray]] = []
    if origin.keras == 1:
        steps.append(lambda kernel: _kernel_of_keras_1(kernel, kind, first))
    if origin.backend == "theano":  # which convolves, while the others correlate
        steps.append(lambda kernel: np.flip(kernel, tuple(range(kernel.ndim - 2))))
    if not steps:
        return None

    def convert(arrays: Arrays) -> Arrays:
        kernel, *rest = arrays
        for step in steps:
            kernel = step(kernel)
        return [kernel, *rest]

    return Conversion(count, convert)


def _kernel_of_keras_1(kernel: np.ndarray, kind: str, channels_first: bool) -> np.ndarray:
    if kind == "Conv1D":  # was a two-dimensional one of width 1
        if kernel.shape[1] == 1:
            return kernel[:, 0]
        return np.transpose(kernel, (2, 3, 1, 0))[:, 0]
    if kind == "Conv2DTranspose":
        return np.transpose(kernel, (2, 3, 0, 1) if channels_first else (0, 1, 3, 2))
    if channels_first:  # filters and channels stood before space
        return np.transpose(kernel, (*range(2, kernel.ndim), 1, 0))
    return kernel


def _joined_gates(arrays: Arrays, gates: Sequence[int]) -> Arrays:
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
