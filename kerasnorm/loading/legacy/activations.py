"""Activations that Keras 3 defines differently under the same name."""

from __future__ import annotations

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
