"""What of a swapped model no gradient trains, counted and named for the report."""

from __future__ import annotations

import keras

from kerasnorm import keras_private
from kerasnorm.graph.sites import is_batch_norm
from kerasnorm.layers.weight_norm import WeightNorm

_SIGNS = "of fixed signs"
# Layers that a note names of each kind.
_NAMED = 3


def note_non_trainable(model: keras.Model) -> list[str]:
    """A note on the variables that are not trainable, or none.

    There are none where every BatchNorm was swapped, nothing is frozen, and no layer keeps numbers
    or a seed of its own. The signs of a `WeightNorm(Affine)` are constants, and not worth a note
    by themselves.
    """
    left = {id(variable) for variable in model.non_trainable_variables}
    owners: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for layer, wrapper in _with_wrappers(model):
        for variable in keras_private.own_variables(layer):
            if id(variable) in left:
                left.remove(id(variable))
                kind = _kind(variable, layer, wrapper)
                counts[kind] = counts.get(kind, 0) + 1
                owners.setdefault(kind, []).append((wrapper or layer).name)
    if left:  # what is in no layer's own lists
        counts["of random seeds"] = len(left)
    if not set(counts) - {_SIGNS}:
        return []
    total = sum(counts.values())
    parts = ", ".join(f"{n} {kind}{_named(owners.get(kind, []))}" for kind, n in counts.items())
    said = "1 variable is" if total == 1 else f"{total} variables are"
    return [f"{said} not trainable in the swapped model: {parts}"]


def _with_wrappers(model: keras.Model) -> list[tuple[keras.Layer, WeightNorm | None]]:
    """Every layer, the model itself first, each with the WeightNorm that it is wrapped in."""
    every = [model, *keras_private.sublayers(model)]
    wrappers = {id(layer.layer): layer for layer in every if isinstance(layer, WeightNorm)}
    return [(layer, wrappers.get(id(layer))) for layer in every]


def _kind(variable: keras.Variable, layer: keras.Layer, wrapper: WeightNorm | None) -> str:
    if is_batch_norm(layer) and variable.name.startswith("moving_"):
        return "of moving statistics"
    if wrapper is not None and wrapper.trainable and layer.trainable:
        return _SIGNS
    if not layer.trainable:
        return "of frozen layers"
    return "of what a layer keeps"


def _named(names: list[str]) -> str:
    """' ('conv', 'bn' and 4 more)'."""
    unique = list(dict.fromkeys(names))
    if not unique:
        return ""
    more = f" and {len(unique) - _NAMED} more" if len(unique) > _NAMED else ""
    return " (" + ", ".join(f"'{name}'" for name in unique[:_NAMED]) + more + ")"
