"""Stand-ins for Sequential models that were never told the shape of their inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from kerasnorm.clone.by_config import copy_layer
from kerasnorm.errors import SwapError
from kerasnorm.graph.graph import graph_of

# Sizes in space or time and numbers of channels to try, unknown sizes first.
_SIZES = (None, 32, 64, 96, 224)
_CHANNELS = (3, 1, 16)


def is_unbuilt(model: keras.Model) -> bool:
    """Whether a model is a Sequential one whose layers do not know their shapes."""
    return isinstance(model, keras.Sequential) and not model.built


def stand_in(model: keras.Sequential) -> tuple[keras.Sequential, tuple]:
    """A copy of an unbuilt model, built for inputs that its layers take, and their shape.

    Raises:
        SwapError: If none of the shapes that are tried goes through all layers.
    """
    problem: Exception | None = None
    for shape in _shapes(model.layers[0] if model.layers else None):
        copy = keras.Sequential([copy_layer(layer) for layer in model.layers], name=model.name)
        try:
            copy.build((None, *shape))
            graph_of(copy)  # which a layer of the user's may leave a model without
        except Exception as error:
            # any layer may refuse a shape in any way
            problem = error
        else:
            return copy, (None, *shape)
    raise SwapError(
        "A Sequential model must be built before it has a graph, and no usual input shape goes "
        "through its layers.",
        model=model.name,
        hint="Call `model.build(input_shape)` or give it an `Input` first.",
    ) from problem


def _shapes(first: Any) -> Iterator[tuple]:
    spec = getattr(first, "input_spec", None)
    rank, least = getattr(spec, "ndim", None), getattr(spec, "min_ndim", None) or 2
    channels_first = getattr(first, "data_format", None) == "channels_first"
    for axes in [rank - 1] if rank else range(least - 1, max(least, 5)):
        for size in _SIZES if axes > 1 else _SIZES[:1]:
            for channels in _CHANNELS:
                space = (size,) * (axes - 1)
                yield (channels, *space) if channels_first else (*space, channels)
