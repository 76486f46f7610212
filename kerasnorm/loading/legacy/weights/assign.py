"""The weights of an HDF5 file of Keras 1 and 2, put into the layers that they belong to.

A file has a group for each layer of the model, and in it a list of arrays: the trainable ones of
all layers inside, then the others. Files of models that were frozen, renamed or put together by
hand have other orders, so that three are tried, and the one is taken whose shapes fit and whose
arrays are named most like the weights (see `_score`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from kerasnorm.errors import LoadError
from kerasnorm.loading.hdf5 import Hdf5
from kerasnorm.loading.legacy.built_layer import BuiltLayer
from kerasnorm.loading.legacy.inputs import shape_by_kernel
from kerasnorm.loading.legacy.weights.layouts import Conversion, Origin, conversion
from kerasnorm.loading.repair_log import RepairLog

_ROLES_OF_KERAS_1 = {
    "W": "kernel",
    "b": "bias",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",  # it was named so and was the variance
}
# Exchanging any two of these would fit in shape and be wrong.
_VECTORS = frozenset({"beta", "bias", "gamma", "mean", "moving_mean", "moving_variance"})
_VECTORS |= {"variance"}
# What a layer counted or drew with; Keras 3 has them elsewhere or not at all.
_NO_WEIGHTS = frozenset({"StateVar", "count", "initialized", "seed", "state_var"})
# In the names of what Addons' WeightNormalization kept a second time.
_COPIES = "data_dep_init"


@dataclass(frozen=True)
class StoredArray:
    """An array of the file."""

    name: str
    value: np.ndarray

    @property
    def role(self) -> str:
        """What it is to its layer: "kernel", "gamma", …, without scope and numbers."""
        last = self.name.rsplit("/", 1)[-1].split(":", 1)[0]
        return _without_number(last)


@dataclass(frozen=True)
class _Leaf:
    """A layer that holds weights, and how many arrays the file should have for it."""

    layer: keras.Layer
    conversion: Conversion | None

    @property
    def trainable(self) -> int:
        """The trainable arrays."""
        if self.conversion is not None and self.layer.trainable:
            return self.conversion.count
        return len(self.layer.trainable_weights)

    @property
    def others(self) -> int:
        """The arrays that are not trained."""
        if self.conversion is not None and not self.layer.trainable:
            return self.conversion.count
        return len(self.layer.non_trainable_weights)

    def weights(self) -> list[keras.Variable]:
        """Its weights in the order of a file."""
        return self.layer.trainable_weights + self.layer.non_trainable_weights


def load_groups(file: Hdf5, root: str, model: BuiltLayer, origin: Origin, log: RepairLog) -> None:
    """Put the weights below a group of the file into a model.

    Raises:
        LoadError: If they do not fit it.
    """
    groups = _groups(file, root)
    if model.layer is not None and not model.layer.built:
        _build_for(model, groups, log)
    layers = [
        (child.name, leaves) for child in model.children if (leaves := _leaves(child, origin))
    ]
    if not layers and not groups:
        return
    by_name = {name for name, _ in layers} == groups.keys()
    if not by_name and len(layers) != len(groups):
        raise LoadError(
            f"'{file.name}' has weights for {len(groups)} layers, and the model has "
            f"{len(layers)} with weights.",
            hint=_unlike([name for name, _ in layers], list(groups)),
        )
    if not by_name:
        log.add("weights were found by the order of the layers, since their names are others")
    elif [name for name, _ in layers] != list(groups):
        log.add("weights were found by the names of the layers, whose order is another")
    if origin.keras == 1 and origin.backend is None and _has_channels_first(model):
        log.warn("the backend is not stored: if it was Theano, the kernels are mirrored")
    for (name, leaves), in_order in zip(layers, groups.values(), strict=True):
        _put(name, leaves, groups[name] if by_name else in_order, log)


def _build_for(model: BuiltLayer, groups: dict[str, list[StoredArray]], log: RepairLog) -> None:
    """Build a Sequential model that does not say what it takes for what its first kernel takes."""
    first = model.children[0] if model.children else None
    entries = groups.get(first.name) if first else None
    shape = shape_by_kernel(first, entries[0].value.shape) if first and entries else None
    if shape is None or model.layer is None:
        raise LoadError(
            "The file does not say what shape of input its model takes.",
            hint="Save it after `model.build(input_shape)`.",
        )
    model.layer.build(shape)
    log.add(f"an input of shape {shape} was worked out from the first kernel")


def _has_channels_first(model: BuiltLayer) -> bool:
    leaves = [leaf.layer for leaf in model.leaves()]
    return any(getattr(layer, "data_format", None) == "channels_first" for layer in leaves)


def _leaves(built: BuiltLayer, origin: Origin) -> list[_Leaf]:
    found = []
    for leaf in built.leaves():
        assert leaf.layer is not None
        found.append(_Leaf(leaf.layer, conversion(leaf, origin)))
    return found


def _groups(file: Hdf5, root: str) -> dict[str, list[StoredArray]]:
    """The arrays of each layer that has some."""
    names = file.names("layer_names", root)
    if names is None:
        raise LoadError(f"'{file.name}' is damaged: it does not say which layers it has.")
    groups = {}
    for name in names:
        path = f"{root.rstrip('/')}/{name}"
        arrays = file.names("weight_names", path) or []
        entries = [StoredArray(array, file.array(f"{path}/{array}")) for array in arrays]
        if entries:
            groups[name] = entries
    return groups


def _put(name: str, leaves: list[_Leaf], entries: list[StoredArray], log: RepairLog) -> None:
    wanted = {_role(weight) for leaf in leaves for weight in leaf.weights()}
    if any(e.role == "initialized" and not e.value.all() for e in entries):
        log.warn("it was saved before its first call, which would have set its gain by data", name)
    entries = [
        entry
        for entry in entries
        if (entry.role not in _NO_WEIGHTS or entry.role in wanted)
        and _COPIES not in entry.name.split("/")
    ]
    candidates = []
    for order, parts in _orders(leaves, entries):
        score = _score(leaves, parts)
        if score is not None:
            candidates.append((score, order, parts))
    if not candidates:
        raise LoadError(
            f"The weights of the file do not fit: it has {_shapes(e.value for e in entries)}, "
            f"the layer needs {_shapes(w for leaf in leaves for w in leaf.weights())}.",
            layer=name,
        )
    _, order, parts = max(candidates, key=lambda candidate: candidate[0])
    if order != _ORDER_OF_KERAS:
        log.add(f"weights were found {order}", name)
    for leaf, part in zip(leaves, parts, strict=True):
        for weight, value in zip(leaf.weights(), _converted(leaf, part), strict=True):
            weight.assign(value)
        finalize(leaf.layer)


def finalize(layer: keras.Layer) -> None:
    """Have a layer that was adapted to data take in the weights it was given."""
    if hasattr(layer, "finalize_state"):
        layer.finalize_state()


_ORDER_OF_KERAS = "where Keras puts them"


def _orders(
    leaves: list[_Leaf], entries: list[StoredArray]
) -> Iterator[tuple[str, list[list[StoredArray]]]]:
    """The arrays of each leaf, in all orders in which files are known to have them."""
    trainable, others = sum(leaf.trainable for leaf in leaves), sum(leaf.others for leaf in leaves)
    if trainable + others == len(entries):
        first = _cut(entries[:trainable], [leaf.trainable for leaf in leaves])
        last = _cut(entries[trainable:], [leaf.others for leaf in leaves])
        yield _ORDER_OF_KERAS, [a + b for a, b in zip(first, last, strict=True)]
        sizes = [leaf.trainable + leaf.others for leaf in leaves]
        yield "layer after layer", _cut(entries, sizes)
    by_name = [
        [entry for entry in entries if leaf.layer.name in entry.name.split("/")] for leaf in leaves
    ]
    yield (
        "by their names",
        [_by_role(leaf, found) for leaf, found in zip(leaves, by_name, strict=True)],
    )


def _cut(entries: list[StoredArray], sizes: Sequence[int]) -> list[list[StoredArray]]:
    ends = np.cumsum([0, *sizes])
    return [entries[ends[n] : ends[n + 1]] for n in range(len(sizes))]


def _by_role(leaf: _Leaf, entries: list[StoredArray]) -> list[StoredArray]:
    roles = {entry.role: entry for entry in entries}
    return [roles[role] for weight in leaf.weights() if (role := _role(weight)) in roles]


def _score(leaves: list[_Leaf], parts: list[list[StoredArray]]) -> int | None:
    """How many arrays are named like the weight they would go to; None where one cannot go."""
    alike = 0
    for leaf, part in zip(leaves, parts, strict=True):
        weights = leaf.weights()
        expected = leaf.trainable + leaf.others
        if len(part) != expected:
            return None
        values = _converted(leaf, part)
        if [v.shape for v in values] != [tuple(w.shape) for w in weights]:
            return None
        if leaf.conversion is not None:
            continue
        for weight, entry in zip(weights, part, strict=True):
            role = _role(weight)
            if {role, entry.role} <= _VECTORS and role != entry.role:
                return None
            alike += role == entry.role
    return alike


def _converted(leaf: _Leaf, part: list[StoredArray]) -> list[np.ndarray]:
    values = [entry.value for entry in part]
    if leaf.conversion is None:
        return values
    try:
        return leaf.conversion.convert(values)
    except (IndexError, ValueError):  # another layout; the shapes will not fit
        return values


def _role(weight: keras.Variable) -> str:
    return _without_number(weight.name)


def _without_number(name: str) -> str:
    name = re.sub(r"_\d+$", "", name)
    last = name.rsplit("_", 1)[-1]
    for old, new in _ROLES_OF_KERAS_1.items():
        if name.endswith(f"_{old}") or last == old:
            return new
    return name


def _shapes(arrays: Iterator[keras.Variable | np.ndarray]) -> str:
    listed = [str(tuple(array.shape)) for array in arrays]
    return ", ".join(listed[:8]) + (", …" if len(listed) > 8 else "")


def _unlike(wanted: list[str], found: list[str]) -> str | None:
    missing = [name for name in wanted if name not in found]
    return f"It has none for {missing[:3]}." if missing else None
