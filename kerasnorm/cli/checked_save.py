"""Save a model and see that the file brings it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import tree

from kerasnorm.compare.measures import as_numbers
from kerasnorm.compare.random_inputs import random_inputs
from kerasnorm.compare.tolerances import OF_LARGEST_ENTRY, coarsest_dtype
from kerasnorm.errors import SwapError
from kerasnorm.graph.execute import run
from kerasnorm.graph.model_graphs import graphs_of
from kerasnorm.keras_private import sublayers
from kerasnorm.loading.load import load
from kerasnorm.swap.own_classes import INSTEAD, note_what_does_not_load

# Of the axes that a shape leaves open.
_FREE = (32, 32)


def save_checked(model: keras.Model, path: Path, *, allow_custom_code: bool) -> None:
    """Write a `.keras` file, load it again and compare.

    Args:
        model: The model.
        path: The file.
        allow_custom_code: Whether functions in it may run, as they might in the source's file.

    Raises:
        SwapError: If what the file brings back is not the model.
    """
    model.save(path)
    try:
        loaded = load(path, allow_custom_code=allow_custom_code)
    except Exception as error:
        raise _refused(model, "a file that does not load") from error
    if not _same(_weights(model), _weights(loaded), 0.0):
        raise _refused(model, "a file with other weights")
    try:
        expected = _answers(model)
    except Exception:  # it takes no random numbers: then the weights have to do
        return
    if not _same(expected, _answers(loaded), OF_LARGEST_ENTRY[coarsest_dtype(model)]):
        raise _refused(model, "a file that answers otherwise")


def _refused(model: keras.Model, received: str) -> SwapError:
    own = bool(note_what_does_not_load(model))
    why = ", for a class in the model makes BatchNorm when it is loaded" if own else ""
    return SwapError(
        f"A model must come back from its file as it is. Received {received}{why}.",
        model=model.name,
        hint=f"Leave the .keras file out and write --onnx; or, in Python, {INSTEAD}.",
    )


def _weights(model: keras.Model) -> list[np.ndarray]:
    """The weights; of layers with LoRA as a file keeps them, with what was learned added."""
    own: set[int] = set()
    weights: list[Any] = []
    for layer in sublayers(model):
        if getattr(layer, "lora_enabled", False):
            kept: dict[str, Any] = {}
            layer.save_own_variables(kept)
            own.update(id(weight) for weight in layer.weights)
            weights.extend(kept.values())
    weights.extend(weight for weight in model.weights if id(weight) not in own)
    return [keras.ops.convert_to_numpy(weight) for weight in weights]


def _answers(model: keras.Model) -> list[np.ndarray]:
    root = graphs_of(model).root
    arrays = random_inputs(tree.flatten(root.inputs), model, 2, free=_FREE)
    return run(root, arrays, tree.flatten(root.outputs))


def _same(expected: list[Any], received: list[Any], tolerance: float) -> bool:
    """Whether arrays are the same, each to a share of its largest finite number."""
    if [a.shape for a in expected] != [a.shape for a in received]:
        return False
    pairs = (as_numbers(a, b) for a, b in zip(expected, received, strict=True))
    return all(
        np.allclose(a, b, rtol=0, atol=tolerance * _largest(a), equal_nan=True) for a, b in pairs
    )


def _largest(array: np.ndarray) -> float:
    numbers = np.abs(array[np.isfinite(array)].astype("float64"))
    return float(numbers.max(initial=0))
