"""Layers of the user's own classes that a saved file would not bring back as they are now.

A file keeps such a layer as its class and the arguments of its constructor. A class that makes
BatchNorm by itself makes it again, whatever stands in its place now.
"""

from __future__ import annotations

from collections import Counter

import keras

from kerasnorm import keras_private
from kerasnorm.graph.sites import is_batch_norm

_NAMED = 3
INSTEAD = (
    "save its weights with `save_weights`, and load them into a model that is newly made by the "
    "code of the source and swapped, or folded, in the same way"
)


def note_what_does_not_load(model: keras.Model) -> list[str]:
    """A note on the layers of a swapped or folded model that its file would not bring back."""
    every = [model, *keras_private.sublayers(model)]
    remade = [layer for layer in every if _is_own(layer) and _is_other_when_loaded(layer)]
    if not remade:
        return []
    named = ", ".join(f"'{layer.name}' ({type(layer).__name__})" for layer in remade[:_NAMED])
    more = f" and {len(remade) - _NAMED} more" if len(remade) > _NAMED else ""
    return [
        f"a file that `save` writes does not load, for {named}{more} would be made anew with "
        f"BatchNorm: {INSTEAD}"
    ]


def _is_own(layer: keras.Layer) -> bool:
    package = type(layer).__module__.split(".")[0]
    return package not in ("keras", "kerasnorm") and not keras_private.has_graph(layer)


def _is_other_when_loaded(layer: keras.Layer) -> bool:
    held = _norms(layer)
    try:
        with keras_private.trusted_configs():
            remade = type(layer).from_config(layer.get_config())
    except Exception:  # any code of any user
        return bool(held)
    try:
        with keras_private.deferred_variables(lambda variable: None):
            remade.build_from_config(layer.get_build_config() or {})
    except Exception:  # what cannot be built so is compared as its constructor leaves it
        return bool(held - _norms(remade))
    return _norms(remade) != held


def _norms(layer: keras.Layer) -> Counter[type]:
    """How many BatchNorm and layers of ours it holds, of each class."""
    inner = keras_private.sublayers(layer)
    ours = [part for part in inner if type(part).__module__.split(".")[0] == "kerasnorm"]
    return Counter(map(type, [*ours, *filter(is_batch_norm, inner)]))
