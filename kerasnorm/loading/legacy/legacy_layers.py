"""What behaves as in Keras 2, where what Keras 3 has under the same name does not."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


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


def _joined(masks: list[Any]) -> Any:
    """True where all masks that there are say so."""
    result = None
    for mask in masks:
        if mask is not None:
            result = mask if result is None else ops.logical_and(result, mask)
    return result


def _with_joined_masks(cls: type[keras.Layer]) -> type[keras.Layer]:
    """A merge layer whose mask is true where all masks that there are say so.

    Keras 3 has it where any does, and none where one is missing.
    """

    class Merged(cls):
        def compute_mask(self, inputs, mask=None):
            return _joined(list(mask)) if mask is not None else None

    Merged.__name__ = Merged.__qualname__ = f"Keras2{cls.__name__}"
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
    cls: _with_joined_masks(cls)
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
