"""Kinds of TensorFlow's own objects, which is asked for nothing where it was not imported."""

from __future__ import annotations

import sys


def is_variable(value) -> bool:
    """Whether something is a variable of TensorFlow's, and not Keras's."""
    tf = sys.modules.get("tensorflow")
    return tf is not None and isinstance(value, tf.Variable)


def is_table(value) -> bool:
    """Whether something is a lookup table of TensorFlow's that may be written to."""
    tf = sys.modules.get("tensorflow")
    if tf is None:
        return False
    tables = tf.lookup.experimental
    return isinstance(value, (tables.MutableHashTable, tables.DenseHashTable))


def is_module(value) -> bool:
    """Whether something of TensorFlow's is no more than an object with attributes."""
    tf = sys.modules.get("tensorflow")
    return tf is not None and isinstance(value, tf.__internal__.tracking.AutoTrackable)


def is_compiled_function(value) -> bool:
    """Whether something is what `tf.function` made of a function."""
    tf = sys.modules.get("tensorflow")
    return tf is not None and isinstance(value, tf.types.experimental.PolymorphicFunction)
