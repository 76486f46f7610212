"""What behaves as in Keras 2, where what Keras 3 has under the same name does not."""

from __future__ import annotations

import functools
from typing import Any

import keras
from keras import ops

from kerasnorm import keras_private
from kerasnorm.graph.keras_add import is_added_in_place
from kerasnorm.layers import kernels
from kerasnorm.loading.legacy import sums


@keras.saving.register_keras_serializable("kerasnorm")
def keras2_hard_sigmoid(x):
    """The `hard_sigmoid` of Keras 1 and 2: min(1, max(0, x/5 + 1/2)).

    Keras 3 has x/6 + 1/2 under that name, so an old model that keeps the name answers otherwise.

    Args:
        x: Tensor of floats.

    Returns:
        Tensor of the same shape and dtype.

    Example:

    >>> keras2_hard_sigmoid(np.array([-5.0, 0.0, 1.0])).numpy().tolist()
    [0.0, 0.5, 0.7]

    Reference: https://github.com/keras-team/keras/blob/v2.15.0/keras/backend.py
    """
    return ops.clip(0.2 * x + 0.5, 0.0, 1.0)


@keras.saving.register_keras_serializable("kerasnorm")
class InTraining(keras.layers.Wrapper):
    """A layer that always runs as in training: dropout that drops, batch statistics at inference.

    Keras 2 kept `layer(x, training=True)` in a functional model for good; in Keras 3 `predict`
    overrules it.

    Args:
        layer: The layer.
        **kwargs: Base layer keyword arguments (e.g. `name` and `dtype`).

    Example:

    >>> layer = InTraining(keras.layers.Dropout(0.5))
    >>> bool(np.any(np.asarray(layer(np.ones((8, 8)), training=False)) == 0))
    True
    """

    def __init__(self, layer, **kwargs):
        super().__init__(layer, **kwargs)
        self.supports_masking = layer.supports_masking

    def call(self, inputs, **kwargs):
        return self.layer(inputs, training=True, **kwargs)

    def compute_mask(self, inputs, mask=None):
        return self.layer.compute_mask(inputs, mask)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)


@keras.saving.register_keras_serializable("kerasnorm")
class ContribInstanceNormalization(keras.layers.Layer):
    """The instance normalization of keras_contrib: gamma · (x − μ) / (σ + epsilon) + beta.

    μ and σ are the mean and the deviation of one sample, over all axes or all but one.

    Args:
        axis: Integer, the axis of the channels, or None for mean and deviation of all values.
        epsilon: Added to the deviation.
        center: Whether to add beta.
        scale: Whether to multiply by gamma.
        beta_initializer, gamma_initializer: Initializers.
        beta_regularizer, gamma_regularizer: Optional regularizers.
        beta_constraint, gamma_constraint: Optional constraints.
        **kwargs: Base layer keyword arguments (e.g. `name` and `dtype`).

    Example:

    >>> layer = ContribInstanceNormalization(epsilon=0.0)
    >>> layer(np.array([[1.0, 3.0]], "float32")).numpy().tolist()
    [[-1.0, 1.0]]

    Reference: https://github.com/keras-team/keras-contrib
    """

    def __init__(
        self,
        axis=None,
        epsilon=1e-3,
        center=True,
        scale=True,
        beta_initializer="zeros",
        gamma_initializer="ones",
        beta_regularizer=None,
        gamma_regularizer=None,
        beta_constraint=None,
        gamma_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.axis, self.epsilon, self.center, self.scale = axis, epsilon, center, scale
        self.beta_initializer = keras.initializers.get(beta_initializer)
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.beta_regularizer = keras.regularizers.get(beta_regularizer)
        self.gamma_regularizer = keras.regularizers.get(gamma_regularizer)
        self.beta_constraint = keras.constraints.get(beta_constraint)
        self.gamma_constraint = keras.constraints.get(gamma_constraint)

    def build(self, input_shape):
        size = 1 if self.axis is None else input_shape[self.axis]
        for name in ("gamma",) * self.scale + ("beta",) * self.center:
            arguments = {
                kind: getattr(self, f"{name}_{kind}")
                for kind in ("initializer", "regularizer", "constraint")
            }
            setattr(self, name, self.add_weight(shape=(size,), name=name, **arguments))

    def call(self, inputs):
        channels = None if self.axis is None else self.axis % len(inputs.shape)
        axes = tuple(axis for axis in range(1, len(inputs.shape)) if axis != channels)
        shape = [-1 if axis == channels else 1 for axis in range(len(inputs.shape))]
        centered = inputs - ops.mean(inputs, axes, keepdims=True)
        deviation = ops.sqrt(ops.mean(ops.square(centered), axes, keepdims=True))
        outputs = centered / (deviation + self.epsilon)
        if self.scale:
            outputs = outputs * ops.reshape(self.gamma, shape)
        return sums.add(outputs, ops.reshape(self.beta, shape)) if self.center else outputs

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in ("axis", "epsilon", "center", "scale")},
            **{
                f"{name}_{kind}": module.serialize(getattr(self, f"{name}_{kind}"))
                for kind, module in (
                    ("initializer", keras.initializers),
                    ("regularizer", keras.regularizers),
                    ("constraint", keras.constraints),
                )
                for name in ("beta", "gamma")
            },
        }


def _joined(masks: list[Any]) -> Any:
    """True where all masks that there are say so."""
    result = None
    for mask in masks:
        if mask is not None:
            result = mask if result is None else ops.logical_and(result, mask)
    return result


@keras.saving.register_keras_serializable("kerasnorm")
class AddInPlace(keras.layers.Add):
    """`Add` that takes no input for a bias (see `sums`)."""

    def _merge_function(self, inputs):
        return functools.reduce(sums.add, inputs)


@keras.saving.register_keras_serializable("kerasnorm")
class AverageInPlace(keras.layers.Average):
    """`Average` that takes no input for a bias (see `sums`)."""

    def _merge_function(self, inputs):
        return functools.reduce(sums.add, inputs) / len(inputs)


# By the class that Keras 3 has.
SUMS: dict[type[keras.Layer], type[keras.Layer]] = {
    keras.layers.Add: AddInPlace,
    keras.layers.Average: AverageInPlace,
}


def _with_joined_masks(cls: Any) -> type[keras.Layer]:
    """A merge layer whose mask is true where all masks that there are say so.

    Keras 3 has it where any does, and none where one is missing.
    """

    class Merged(cls):
        def compute_mask(self, inputs, mask=None):
            return _joined(list(mask)) if mask is not None else None

    Merged.__name__ = Merged.__qualname__ = f"Keras2{cls.__name__.removesuffix('InPlace')}"
    return keras.saving.register_keras_serializable("kerasnorm")(Merged)


@keras.saving.register_keras_serializable("kerasnorm")
class Keras2Concatenate(keras.layers.Concatenate):
    """`Concatenate` whose mask counts a tensor without one as all there; Keras 3 has none then."""

    def compute_mask(self, inputs, mask=None):
        if mask is None or all(item is None for item in mask):
            return None
        whole = []
        for tensor, item in zip(inputs, mask, strict=True):
            if item is None:
                whole.append(ops.ones_like(tensor, dtype="bool"))
            elif len(item.shape) < len(tensor.shape):
                item = ops.expand_dims(item, -1)
                whole.append(ops.logical_and(ops.ones_like(tensor, dtype="bool"), item))
            else:
                whole.append(item)
        return ops.all(ops.concatenate(whole, axis=self.axis), axis=-1, keepdims=False)


# By the class that Keras 3 has.
MERGES: dict[type[keras.Layer], type[keras.Layer]] = {
    cls: _with_joined_masks(SUMS.get(cls, cls))
    for cls in (
        keras.layers.Add,
        keras.layers.Average,
        keras.layers.Maximum,
        keras.layers.Minimum,
        keras.layers.Multiply,
        keras.layers.Subtract,
    )
}
MERGES[keras.layers.Concatenate] = Keras2Concatenate


def _with_bias_in_place(cls: type[keras.Layer]) -> type[keras.Layer]:
    """A linear layer that adds its bias along the axis of its units, whichever that is."""

    class Biased(cls):
        def call(self, inputs):
            linear = keras_private.shallow_copy(self)
            vars(linear).update(use_bias=False, bias=None, activation=None)
            outputs = super(Biased, linear).call(inputs)
            shape = _bias_shape(self, ops.shape(outputs))
            outputs = sums.add(outputs, ops.reshape(self.bias, shape))
            return outputs if self.activation is None else self.activation(outputs)

    Biased.__name__ = Biased.__qualname__ = f"Keras2{cls.__name__}"
    return keras.saving.register_keras_serializable("kerasnorm")(Biased)


# By the class that Keras 3 has.
BIASED: dict[type[keras.Layer], type[keras.Layer]] = {
    cls: _with_bias_in_place(cls)
    for cls in (
        keras.layers.Conv1D,
        keras.layers.Conv1DTranspose,
        keras.layers.Conv2D,
        keras.layers.Conv2DTranspose,
        keras.layers.Conv3D,
        keras.layers.Conv3DTranspose,
        keras.layers.DepthwiseConv1D,
        keras.layers.DepthwiseConv2D,
        keras.layers.EinsumDense,
        keras.layers.SeparableConv1D,
        keras.layers.SeparableConv2D,
    )
}


def can_add_bias_elsewhere(layer: Any) -> bool:
    """Whether a layer, or the one in it, may have a bias along another axis than the last."""
    if isinstance(layer, keras.layers.TimeDistributed):
        return can_add_bias_elsewhere(layer.layer)
    if type(layer) not in BIASED:
        return False
    if isinstance(layer, keras.layers.EinsumDense):
        return bool(layer.bias_axes)
    return layer.use_bias and layer.data_format == "channels_first"


def adds_bias_elsewhere(layer: Any, input_shape: tuple) -> bool:
    """Whether a layer may add its bias along another axis than Keras 2 did."""
    if not can_add_bias_elsewhere(layer):
        return False
    output = tuple(layer.compute_output_shape(input_shape))
    return not is_added_in_place(output, _bias_shape(layer, output))


def _bias_shape(layer: Any, output: tuple) -> tuple:
    """The shape of a bias that lies along the axes of its units, given the output's."""
    axes = {1 if getattr(layer, "data_format", None) == "channels_first" else len(output) - 1}
    if isinstance(layer, keras.layers.EinsumDense):
        *_, letters = kernels.einsum_letters(layer.equation)
        before, dots, _ = letters.partition("...")
        places = {
            letter: n if not dots or n < len(before) else n - len(letters) + len(output)
            for n, letter in enumerate(letters)
        }
        axes = {places[letter] for letter in layer.bias_axes}
    return tuple(size if axis in axes else 1 for axis, size in enumerate(output))
