"""Which variables of a layer are its kernels, and which of their axes index output units.

One table for every layer that is a linear map followed by a bias and an activation, and a second
one for the layers whose kernels can be normalized but that are more than that: recurrent layers
and their cells, and Embedding. The weight vector of one output unit is a slice of the kernel at
fixed `unit_axes`; its norm is taken over all other axes. Everything that wraps or rewrites a layer
asks here.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from kerasnorm import keras_private
from kerasnorm.layers.affine import Affine


@dataclass(frozen=True)
class Kernel:
    """One kernel of a layer: its variable and the axes that index output units."""

    variable: keras.Variable
    unit_axes: tuple[int, ...]

    @property
    def value(self):
        """The kernel as it is stored, in a call under a mixed precision policy as well."""
        return keras_private.stored_value(self.variable)

    @property
    def dtype(self) -> str:
        """The dtype that it is stored in."""
        return keras.backend.standardize_dtype(self.value.dtype)

    @property
    def wide_value(self):
        """`value` in float32 or wider: a sum of thousands of squares of 16 bits stalls."""
        return keras.ops.cast(self.value, keras.backend.result_type(self.dtype, "float32"))

    @property
    def contracted_axes(self) -> tuple[int, ...]:
        """The axes that a norm of one unit's weight vector runs over."""
        return tuple(a for a in range(len(self.variable.shape)) if a not in self.unit_axes)

    @property
    def unit_shape(self) -> tuple[int, ...]:
        """Shape of anything that has one value for each output unit."""
        return tuple(self.variable.shape[a] for a in self.unit_axes)

    @property
    def broadcast_shape(self) -> tuple[int, ...]:
        """`unit_shape` with ones at the contracted axes, ready to multiply the kernel."""
        return tuple(
            size if a in self.unit_axes else 1 for a, size in enumerate(self.variable.shape)
        )


@dataclass(frozen=True)
class _Slot:
    """Where a layer class keeps one kernel: attribute path, and unit axes counted from the end."""

    attribute: str
    unit_axes: tuple[int, ...] | Callable[[Any], tuple[int, ...]]

    def of(self, layer: keras.Layer) -> Kernel:
        variable = operator.attrgetter(self.attribute)(layer)
        axes = self.unit_axes(layer) if callable(self.unit_axes) else self.unit_axes
        rank = len(variable.shape)
        return Kernel(variable, tuple(sorted(a % rank for a in axes)))


def einsum_letters(equation: str) -> tuple[str, str, str]:
    """'...x,xy->...y' as ('...x', 'xy', '...y')."""
    operands, output = equation.replace(" ", "").split("->")
    inputs, kernel = operands.split(",")
    return inputs, kernel, output


def _einsum_unit_axes(layer) -> tuple[int, ...]:
    _, kernel, output = einsum_letters(layer.equation)
    return tuple(a for a, letter in enumerate(kernel) if letter in output)


_LAST = (-1,)
_layers = keras.layers
# The gain of the kernel nearest to the output is always called `g`.
_KERNELS: dict[type, dict[str, _Slot]] = {
    Affine: {"g": _Slot("kernel", _LAST)},
    _layers.Dense: {"g": _Slot("kernel", _LAST)},
    _layers.EinsumDense: {"g": _Slot("kernel", _einsum_unit_axes)},
    **{
        cls: {"g": _Slot("kernel", _LAST)}
        for cls in (_layers.Conv1D, _layers.Conv2D, _layers.Conv3D)
    },
    **{
        # (…, filters, inputs)
        cls: {"g": _Slot("kernel", (-2,))}
        for cls in (_layers.Conv1DTranspose, _layers.Conv2DTranspose, _layers.Conv3DTranspose)
    },
    **{
        # (…, inputs, multiplier): every pair is an output unit of its own
        cls: {"g": _Slot("kernel", (-2, -1))}
        for cls in (_layers.DepthwiseConv1D, _layers.DepthwiseConv2D)
    },
    **{
        cls: {
            "g": _Slot("pointwise_kernel", _LAST),
            "g_depthwise": _Slot("depthwise_kernel", (-2, -1)),
        }
        for cls in (_layers.SeparableConv1D, _layers.SeparableConv2D)
    },
}
_CELLS = (_layers.SimpleRNNCell, _layers.LSTMCell, _layers.GRUCell)
_OTHER_KERNELS: dict[type, dict[str, _Slot]] = {
    # a one-hot vector times a matrix: the output units are the columns
    _layers.Embedding: {"g": _Slot("embeddings", _LAST)},
    # the gates lie side by side along the last axis
    **{
        cls: {"g": _Slot("kernel", _LAST), "g_recurrent": _Slot("recurrent_kernel", _LAST)}
        for cls in _CELLS
    },
    **{
        cls: {
            "g": _Slot("cell.kernel", _LAST),
            "g_recurrent": _Slot("cell.recurrent_kernel", _LAST),
        }
        for cls in (_layers.SimpleRNN, _layers.LSTM, _layers.GRU)
    },
}
_ALL_KERNELS = _KERNELS | _OTHER_KERNELS


def kernel_class(layer: keras.Layer) -> type | None:
    """The linear class of the table that `layer` is an instance of, or None."""
    return next((cls for cls in type(layer).__mro__ if cls in _KERNELS), None)


def overridden(layer: keras.Layer) -> str | None:
    """What a layer of a subclass computes in its own way, of what the table's class computes."""
    cls = kernel_class(layer)
    names = ("call", "convolution_op")
    return next((n for n in names if getattr(type(layer), n, 0) is not getattr(cls, n, 0)), None)


def supported_classes() -> list[str]:
    """Names of all classes with kernels that can be normalized, for error messages."""
    return sorted(cls.__name__ for cls in _ALL_KERNELS)


def has_kernels(layer: keras.Layer) -> bool:
    """Whether the layer is of a class, linear or not, whose kernels can be normalized."""
    return any(cls in _ALL_KERNELS for cls in type(layer).__mro__)


def is_cell(layer: keras.Layer) -> bool:
    """Whether the layer is a recurrent cell of the table."""
    return isinstance(layer, _CELLS)


def kernels_of(layer: keras.Layer) -> Mapping[str, Kernel]:
    """The kernels of a built layer by the name of their gain; empty where it has none."""
    cls = next((cls for cls in type(layer).__mro__ if cls in _ALL_KERNELS), None)
    return {} if cls is None else {g: slot.of(layer) for g, slot in _ALL_KERNELS[cls].items()}


def output_kernel(layer: keras.Layer) -> Kernel:
    """The kernel nearest to the output, whose unit axes are a linear layer's output channels."""
    return kernels_of(layer)["g"]


def channel_axis(layer: keras.Layer, rank: int) -> int | None:
    """The axis of the layer's output (of `rank` axes) that its channels run along.

    None for an EinsumDense, whose units may run along several axes: `per_unit` places a vector
    there.
    """
    if isinstance(layer, keras.layers.EinsumDense):
        return None
    if isinstance(layer, Affine):
        return layer.axis % rank
    if getattr(layer, "data_format", "channels_last") == "channels_first":
        return 1
    return rank - 1


def per_unit(layer: keras.Layer, vector, axis: int, rank: int):
    """A vector over output axis `axis` laid out to broadcast against the kernel's `unit_shape`.

    Returns None where the units of the layer do not run along that axis: a vector there is not a
    scaling of its units.
    """
    kernel = output_kernel(layer)
    if isinstance(layer, keras.layers.EinsumDense):
        letter = _output_letter(layer, axis, rank)
        letters = einsum_letters(layer.equation)[1]
        if letter is None or letter not in letters:
            return None
        position = kernel.unit_axes.index(letters.index(letter))
        shape = [1] * len(kernel.unit_axes)
        shape[position] = vector.size
        return vector.reshape(shape)
    if axis % rank != channel_axis(layer, rank) or vector.size != math.prod(kernel.unit_shape):
        return None
    return vector.reshape(kernel.unit_shape)


def _output_letter(layer, axis: int, rank: int) -> str | None:
    """The einsum letter of an output axis, None where `...` covers it."""
    output = einsum_letters(layer.equation)[2]
    before, dots, after = output.partition("...")
    from_end = axis % rank - rank
    if dots and -from_end <= len(after):
        return after[from_end]
    if axis % rank < len(before):
        return before[axis % rank]
    return None


def form_of_kernel(layer: keras.Layer) -> str:
    """What a layer's kernel is that is no variable: "quantized" or "LoRA-enabled"."""
    return "LoRA-enabled" if layer.quantization_mode is None else "quantized"


def has_plain_kernel(layer: keras.Layer) -> bool:
    """Whether the layer's kernel is a variable: neither quantized nor with LoRA factors."""
    return layer.quantization_mode is None and not getattr(layer, "lora_enabled", False)


# How to have a layer normalized by a wrapper, and quantized or with LoRA factors.
_HOW_TO_HAVE_IT = {
    "WeightNorm": "Train it normalized first; kerasnorm.fold_norms then makes a plain layer, which "
    "can be quantized or given LoRA factors.",
    "CosineNorm": "There is no plain layer that it could be folded to: normalize another layer.",
}


def require_plain_kernel(wrapper: str, layer: keras.Layer) -> None:
    """Raise if the layer's kernel is quantized or has LoRA factors."""
    if not has_plain_kernel(layer):
        raise ValueError(
            f"{wrapper} needs a layer with a plain kernel. Received: layer '{layer.name}', which "
            f"is {form_of_kernel(layer)}. {_HOW_TO_HAVE_IT[wrapper]}"
        )


def keep_in_float(wrapper: str, layer: keras.Layer) -> None:
    """Have a wrapped layer stay as it is where the model that it is in is quantized.

    Keras asks each layer that holds no other, and warns of those that say that they cannot be.
    """
    reason = (
        f"'{layer.name}' is not quantized: {wrapper} computes with its kernel in floating point. "
        f"{_HOW_TO_HAVE_IT[wrapper]}"
    )
    # no function, which copies would be given that need not be wrapped
    layer.quantize = functools.partial(_raise_not_implemented, reason)


def _raise_not_implemented(reason: str, *args, **kwargs) -> None:
    raise NotImplementedError(reason)


def require_known_channels(wrapper: str, layer: keras.Layer, input_shape) -> None:
    """Raise if the size of the axis that sets the kernel's shape is unknown."""
    if layer.built or isinstance(layer, (keras.layers.EinsumDense, keras.layers.Embedding)):
        return
    axis = channel_axis(layer, len(input_shape))
    if input_shape[axis] is None:
        raise ValueError(
            f"{wrapper} must know the size of axis {axis} of the input of layer '{layer.name}' "
            f"to make its kernel. Received: input_shape={tuple(input_shape)}. Give the size in "
            "`Input`."
        )
