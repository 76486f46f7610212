"""Plain data that a user hung on a model: class names, settings, arrays."""

from __future__ import annotations

import keras
import numpy as np

from kerasnorm.clone.objects import Objects

# What `fit` and `load_model` hang on a model, of which a copy knows nothing; that the optimizer
# starts anew is said where it is copied.
_NOT_CARRIED = frozenset({"history", "load_report", "optimizer"})


def carry_attributes(source: keras.Model, target: keras.Model) -> list[str]:
    """Give a cloned model the plain data that was hung on its source; notes on what was not."""
    own = {n: v for n, v in vars(source).items() if not n.startswith("_") and n not in vars(target)}
    lost = []
    for name, value in own.items():
        if _is_data(value):
            setattr(target, name, Objects(np.copy).clone(value))
        elif name not in _NOT_CARRIED and not isinstance(value, (keras.Layer, keras.KerasTensor)):
            lost.append(name)
    if not lost:
        return []
    return [f"model '{source.name}': its attributes {', '.join(sorted(lost))} are not carried over"]


def _is_data(value) -> bool:
    if isinstance(value, dict):
        return all(_is_data(v) for v in (*value.keys(), *value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_data, value))
    return value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.ndarray))
