"""Stepping out of the graph that TensorFlow is tracing."""

from __future__ import annotations

import contextlib

import keras


def out_of_graphs() -> contextlib.AbstractContextManager:
    """A scope whose code runs at once, even while `tf.function` traces the call it is in.

    A model without an `Input` is built by the first step that `fit` traces. XLA compiles that step
    only if no variable made in it starts from the value of another.
    """
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.init_scope()
