"""The `tf.distribute` strategy that a model was made in."""

from __future__ import annotations

import contextlib
from typing import Any

import keras


def scope_like(model: keras.Model) -> Any:
    """What a model has to be made in to be trained as another can be.

    The caller's own scope, if there is one, stays.
    """
    strategy = getattr(model, "distribute_strategy", None)
    if strategy is None:  # another backend than TensorFlow
        return contextlib.nullcontext()
    import tensorflow as tf

    return contextlib.nullcontext() if tf.distribute.has_strategy() else strategy.scope()
