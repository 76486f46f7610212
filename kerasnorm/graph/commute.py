"""Layers between a linear layer and a BatchNorm that an affine map per channel may cross.

With y = a·x + c per channel and L the layer in between, f(L(x)) = L(f(x)) holds where

1. every output of L is a weighted mean of inputs of the same channel, its weights adding up to 1:
   average pooling, cropping, upsampling, and at inference dropout; for every a and c,
2. every output is the largest of some inputs of the channel: max pooling; for a ≥ 0,
3. every output is an input of the channel or 0: zero padding; for c = 0.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kerasnorm import keras_private
from kerasnorm.errors import Refusal
from kerasnorm.graph.graph import Call
from kerasnorm.layers import kernels

_layers = keras.layers
_GLOBAL = (
    _layers.GlobalAveragePooling1D, _layers.GlobalAveragePooling2D, _layers.GlobalAveragePooling3D,
    _layers.GlobalMaxPooling1D, _layers.GlobalMaxPooling2D, _layers.GlobalMaxPooling3D,
)  # fmt: skip
_DROPOUTS = (
    _layers.Dropout, _layers.SpatialDropout1D, _layers.SpatialDropout2D, _layers.SpatialDropout3D,
)  # fmt: skip
_MEANS = {
    *_GLOBAL[:3],
    _layers.AveragePooling1D, _layers.AveragePooling2D, _layers.AveragePooling3D,
    _layers.Cropping1D, _layers.Cropping2D, _layers.Cropping3D,
    _layers.UpSampling1D, _layers.UpSampling2D, _layers.UpSampling3D,
    *_DROPOUTS, _layers.Identity,
}  # fmt: skip
_LARGEST = {
    *_GLOBAL[3:], _layers.MaxPooling1D, _layers.MaxPooling2D, _layers.MaxPooling3D,
}  # fmt: skip
_PADDED = {_layers.ZeroPadding1D, _layers.ZeroPadding2D, _layers.ZeroPadding3D}
_ELEMENTWISE = {_layers.Dropout, _layers.Identity, _layers.Activation}
_SUM_TO_ONE = ("nearest", "bilinear")


def commutes(call: Call) -> bool:
    """Whether a call is of a kind that some affine map may cross."""
    layer: Any = call.operation
    if type(layer) is _layers.Activation:
        return layer.activation is keras.activations.linear
    if type(layer) is _layers.UpSampling2D and layer.interpolation not in _SUM_TO_ONE:
        return False
    return type(layer) in _MEANS | _LARGEST | _PADDED


def obstacle(
    call: Call, axis: int, scale: np.ndarray, shift: np.ndarray, *, trains: bool
) -> Refusal | None:
    """Why the map a·x + c along `axis` of a call's output cannot cross it; None if it can.

    `trains` is whether the call runs with `training=True`.
    """
    layer: Any = call.operation
    name = f"'{layer.name}' ({type(layer).__name__})"
    masked = len(call.inputs) > 1 or keras_private.attached_mask(call.inputs[0]) is not None
    if masked and type(layer) not in _ELEMENTWISE:
        return Refusal(f"{name} in front of it has a mask")
    if type(layer) not in _ELEMENTWISE and axis != _channels_of_output(call):
        return Refusal(f"{name} in front of it mixes entries along axis {axis}")
    if trains and type(layer) in _DROPOUTS:  # 1
        return Refusal(f"{name} in front of it is called with training=True")
    if type(layer) in _LARGEST and (scale < 0).any():  # 2
        return Refusal(f"{name} in front of it takes the largest, and some gamma is negative")
    if type(layer) in _PADDED and (shift != 0).any():  # 3
        return Refusal(f"{name} in front of it pads with zeros, which the BatchNorm shifts")
    return None


def axis_before(call: Call, axis: int) -> int:
    """The axis of a call's input that `axis` of its output is, its channels."""
    return axis if type(call.operation) in _ELEMENTWISE else _channels(call, call.inputs[0])


def _channels_of_output(call: Call) -> int:
    if type(call.operation) in _GLOBAL and not call.operation.keepdims:
        return 1
    return _channels(call, call.output)


def _channels(call: Call, tensor) -> int:
    rank = len(tensor.shape)
    axis = kernels.channel_axis(call.operation, rank)
    return rank - 1 if axis is None else axis
