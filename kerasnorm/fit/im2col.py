"""Im2col: a linear layer as a matrix, and what it contracts at positions of its output as rows."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.lib.stride_tricks import sliding_window_view

from kerasnorm.fit.sampling import sampled_positions
from kerasnorm.layers import kernels
from kerasnorm.layers import linear_ops as linear

_layers = keras.layers
_CONVOLUTIONS = (_layers.Conv1D, _layers.Conv2D, _layers.Conv3D)
Index = tuple[np.ndarray, ...]


class Im2Col:
    """Rows of inputs and outputs of a built linear layer, and its kernel as a matrix.

    Everything comes in groups, since the groups of a convolution, and each channel of a depthwise
    one, are regressions of their own: inputs (groups, rows, size), outputs (groups, rows, units),
    the kernel (groups, size, units). For a separable convolution the matrix is the pointwise
    kernel, behind its depthwise one.
    """

    def __init__(self, layer: Any):
        self.layer = layer
        kernel = kernels.output_kernel(layer)
        self.variable = kernel.variable
        self._sliding = isinstance(layer, _CONVOLUTIONS) or linear.is_depthwise(layer)
        self._depthwise = linear.is_depthwise(layer)
        first = getattr(layer, "data_format", "channels_last") == "channels_first"
        self.channels_first = first and (self._sliding or linear.is_separable(layer))
        shape = self.variable.shape
        if self._depthwise:
            self.groups, self.units = shape[-2], shape[-1]
        else:
            self.groups = getattr(layer, "groups", 1)
            self.units = shape[-1] // self.groups
        self.size = int(np.prod(shape)) // (self.groups * self.units)

    @property
    def width(self) -> int:
        """How many entries a row has in all groups, of inputs or of outputs."""
        return self.groups * max(self.size, self.units)

    def sample(self, shape: tuple[int, ...], count: int, random: np.random.Generator) -> Index:
        """Positions of an output of this shape, over batch and space, without repetition."""
        return sampled_positions(self._last(shape)[:-1], count, random)

    def output_shape(self, x: np.ndarray) -> tuple[int, ...]:
        """The shape of the layer's output."""
        if self._sliding or linear.is_separable(self.layer):
            return tuple(self.layer.compute_output_shape(x.shape))
        return (*x.shape[:-1], self.units)

    def inputs(self, x: np.ndarray, index: Index) -> np.ndarray:
        """What the layer contracts at these positions of its output."""
        if linear.is_separable(self.layer):
            x = _depthwise_part(self.layer, x)
        x = self._moved(x)
        if not self._sliding:
            return x[index][None]
        patches = self._patches(x, index)
        rows = patches.shape[0]
        if self._depthwise:
            return patches.transpose(2, 0, 1)
        return (
            patches.reshape(rows, -1, self.groups, x.shape[-1] // self.groups)
            .transpose(2, 0, 1, 3)
            .reshape(self.groups, rows, self.size)
        )

    def at(self, y: np.ndarray, index: Index) -> np.ndarray:
        """What an output, or anything laid out as one, holds at these positions, row by row."""
        return self._moved(y)[index]

    def outputs(self, y: np.ndarray, index: Index) -> np.ndarray:
        """The same in groups."""
        return self.grouped(self.at(y, index))

    def grouped(self, rows: np.ndarray) -> np.ndarray:
        """(rows, channels) as (groups, rows, units)."""
        return rows.reshape(len(rows), self.groups, self.units).transpose(1, 0, 2)

    def flat(self, outputs: np.ndarray) -> np.ndarray:
        """(groups, rows, units) as (rows, channels)."""
        return outputs.transpose(1, 0, 2).reshape(outputs.shape[1], self.groups * self.units)

    def matrix(self, value=None) -> np.ndarray:
        """The kernel, or an array of its shape, as (groups, size, units)."""
        value = as_float64(self.variable if value is None else value)
        return value.reshape(self.size, self.groups, self.units).transpose(1, 0, 2)

    def bias(self) -> np.ndarray:
        """The bias as (groups, units); zeros where there is none."""
        bias = self.layer.bias
        flat = np.zeros(self.groups * self.units) if bias is None else as_float64(bias).reshape(-1)
        return self.grouped(flat[None])[:, 0]

    def assign(self, matrix: np.ndarray) -> None:
        """Set the kernel."""
        self.variable.assign(matrix.transpose(1, 0, 2).reshape(self.variable.shape))

    def _last(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0], *shape[2:], shape[1]) if self.channels_first else tuple(shape)

    def _moved(self, x: np.ndarray) -> np.ndarray:
        return np.moveaxis(x, 1, -1) if self.channels_first else x

    def _patches(self, x: np.ndarray, index: Index) -> np.ndarray:
        """(rows, kernel positions, channels); positions outside hold zeros."""
        layer = self.layer
        geometry = (layer.kernel_size, layer.strides, layer.dilation_rate)
        window = [(size - 1) * dilation + 1 for size, _, dilation in zip(*geometry, strict=True)]
        if layer.padding != "valid":
            before = [
                _padding_before(layer.padding, length, *sizes)
                for length, *sizes in zip(x.shape[1:-1], *geometry, strict=True)
            ]
            x = np.pad(x, [(0, 0), *zip(before, window, strict=True), (0, 0)])
        space = range(1, len(window) + 1)
        windows = sliding_window_view(x, window, axis=tuple(space))
        strides, dilations = ([slice(None, None, n) for n in sizes] for sizes in geometry[1:])
        patches = windows[(slice(None), *strides, slice(None), *dilations)][index]
        return np.moveaxis(patches, 1, -1).reshape(len(patches), -1, x.shape[-1])


def _padding_before(padding: str, length: int, size: int, stride: int, dilation: int) -> int:
    reach = (size - 1) * dilation
    if padding == "causal":
        return reach
    if padding == "valid":
        return 0
    return max((-(-length // stride) - 1) * stride + reach + 1 - length, 0) // 2


def _depthwise_part(layer: Any, x: np.ndarray) -> np.ndarray:
    depthwise = ops.cast(layer.depthwise_kernel, x.dtype)
    one = ops.eye(depthwise.shape[-2] * layer.depth_multiplier, dtype=x.dtype)
    pointwise = ops.reshape(one, (*[1] * len(layer.kernel_size), *one.shape))
    return ops.convert_to_numpy(
        linear.linear_map(layer, {"g": pointwise, "g_depthwise": depthwise}, x)
    )


def as_float64(value: Any) -> np.ndarray:
    """A variable or tensor as an array of float64."""
    return np.asarray(ops.convert_to_numpy(value), np.float64)
