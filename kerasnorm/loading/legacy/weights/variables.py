"""The weights of a `.keras` file of Keras 2.13 to 2.15, put into the layers they belong to.

There each object has a group with its own variables by number, and a group for each object in it,
by attribute; those of a list are named after their class and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from kerasnorm.errors import LoadError
from kerasnorm.loading.hdf5 import Hdf5
from kerasnorm.loading.legacy.built_layer import BuiltLayer
from kerasnorm.loading.legacy.weights.assign import finalize

_LAYERS = ("layers", "_layer_checkpoint_dependencies")


def load_variables(file: Hdf5, model: BuiltLayer) -> None:
    """Put all variables of the file into a model.

    Raises:
        LoadError: If they do not fit it, or some are missing.
    """
    filled: set[int] = set()
    _fill_model(file, "", model, filled)
    assert model.layer is not None  # a model is one
    empty = [weight.path for weight in model.layer.weights if id(weight) not in filled]
    if empty:
        raise LoadError(f"'{file.name}' has no values for {len(empty)} weights, as '{empty[0]}'.")


def _fill_model(file: Hdf5, path: str, model: BuiltLayer, filled: set[int]) -> None:
    folder = next((name for name in _LAYERS if f"{path}/{name}" in file), _LAYERS[0])
    names = _counted(child.class_name for child in model.children)
    for name, child in zip(names, model.children, strict=True):
        inner = f"{path}/{folder}/{name}"
        if inner not in file:
            continue
        if child.children and child.class_name == "TimeDistributed":
            _fill_child(file, f"{inner}/layer", child.children[0], filled)
        else:
            _fill_child(file, inner, child, filled)


def _fill_child(file: Hdf5, path: str, child: BuiltLayer, filled: set[int]) -> None:
    if isinstance(child.layer, keras.Model):
        _fill_model(file, path, child, filled)
    elif child.layer is not None:
        _fill_layer(file, path, child.layer, filled)


def _fill_layer(file: Hdf5, path: str, layer: Any, filled: set[int]) -> None:
    inside: set[int] = set()
    for name in file.group(path):
        if name == "vars":
            continue
        for inner, sublayer in _sublayers(name, getattr(layer, name, None)):
            if f"{path}/{inner}" in file:
                _fill_layer(file, f"{path}/{inner}", sublayer, filled)
                inside |= {id(weight) for weight in sublayer.weights}
    own = [weight for weight in layer.weights if id(weight) not in inside]
    if f"{path}/vars" not in file or not own:
        return
    numbers = sorted(file.group(f"{path}/vars"), key=_number)
    # What Keras 2 counted with stands behind the weights.
    for weight, number in zip(own, numbers, strict=False):
        value = file.array(f"{path}/vars/{number}")
        if value.shape != tuple(weight.shape):
            raise LoadError(
                f"'{file.name}' does not fit: it has an array of shape {value.shape} for "
                f"'{weight.name}', which needs {tuple(weight.shape)}.",
                layer=layer.name,
            )
        weight.assign(value)
        filled.add(id(weight))
    finalize(layer)


def _sublayers(name: str, value: Any) -> Iterator[tuple[str, keras.Layer]]:
    if isinstance(value, keras.Layer):
        yield name, value
    elif isinstance(value, list | tuple):
        held = [item for item in value if isinstance(item, keras.Layer)]
        for inner, item in zip(_counted(type(item).__name__ for item in held), held, strict=True):
            yield f"{name}/{inner}", item


def _counted(class_names: Iterable[str]) -> list[str]:
    """'dense', 'dense_1', … as Keras names the items of a list after their classes."""
    seen: Counter[str] = Counter()
    names = []
    for class_name in class_names:
        name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", class_name)
        name = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
        names.append(f"{name}_{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else -1
