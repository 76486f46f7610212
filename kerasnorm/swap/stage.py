"""What a swapped model holds at the stages of a swap, of which the best stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

# What fits set besides variables.
_NUMBERS = ("epsilon", "damping")


class Stage:
    """What a model holds at one time: its variables, and the numbers that its norms compute with.

    Args:
        model: The model.
        layers: The layers whose numbers may change.
    """

    def __init__(self, model: keras.Model, layers: Sequence[Any]):
        self._model = model
        self._values = [np.array(keras.ops.convert_to_numpy(v)) for v in model.variables]
        self._numbers = [
            (layer, name, getattr(layer, name))
            for layer in layers
            for name in _NUMBERS
            if hasattr(layer, name)
        ]

    def restore(self) -> None:
        """Have the model hold it again."""
        for variable, value in zip(self._model.variables, self._values, strict=True):
            variable.assign(value)
        for layer, name, value in self._numbers:
            setattr(layer, name, value)
