"""Which layers of a model to listen to, and what they are called on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from kerasnorm import keras_private
from kerasnorm.callbacks.shallow_copy import shallow_copies
from kerasnorm.errors import KerasNormError
from kerasnorm.layers import CosineNorm, WeightNorm
from kerasnorm.layers.kernels import has_kernels, is_cell


def build(model: keras.Model, data: Any) -> None:
    """Build what of a model would be built by the first training step."""
    if not all(layer.built for layer in (model, *keras_private.sublayers(model))):
        with keras.StatelessScope():  # with which assignments to variables end
            model(data, training=False)


def inputs_of(
    watched: dict[str, keras.Layer], model: keras.Model, data: Any, training: bool
) -> dict[str, np.ndarray]:
    """What layers are called on, as rows of channels."""
    seen: dict[str, list[np.ndarray]] = {name: [] for name in watched}
    copy, layers = shallow_copies(model, watched.values())
    for name, layer in zip(watched, layers, strict=True):
        _record_inputs(layer, seen[name])
    with keras.StatelessScope():
        copy(data, training=training)
    for name, arrays in seen.items():
        if not arrays:
            raise KerasNormError(
                "A layer whose inputs are recorded must be called by the model, from an attribute "
                "of what calls it or a list, tuple or dict in one. It was not.",
                model=model.name,
                layer=name,
                hint="Leave it out of `layers`.",
            )
    return {name: np.concatenate(arrays) for name, arrays in seen.items()}


def _record_inputs(layer: keras.Layer, seen: list[np.ndarray]) -> None:
    """Have what a shallow copy of a layer is called on appended to a list.

    The method is shadowed in the instance's dict: Keras would track an attribute.
    """
    method = "call" if layer.quantization_mode is None else "quantized_call"
    call = getattr(layer, method)

    def recording(*args, **kwargs):
        given = args[0] if args else next(iter(kwargs.values()), None)
        seen.append(_rows(layer, given))
        return call(*args, **kwargs)

    vars(layer)[method] = recording


def _rows(layer: keras.Layer, given: Any) -> np.ndarray:
    if given is None or tree.is_nested(given):
        raise KerasNormError(
            "A layer whose inputs are recorded must have one input. "
            f"Received {0 if given is None else len(tree.flatten(given))}.",
            layer=layer.name,
            hint="Leave it out of `layers`, or name the layers before it.",
        )
    kind = keras.backend.standardize_dtype(given.dtype)
    if kind == "bfloat16":
        given = keras.ops.cast(given, "float32")
    values = np.asarray(keras.ops.convert_to_numpy(given))
    if getattr(layer, "data_format", None) == "channels_first":
        values = np.moveaxis(values, 1, -1)
    return values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)


def chosen(
    model: keras.Model, layers: Sequence[str | keras.Layer] | None
) -> dict[str, keras.Layer]:
    """The layers to record, by their names."""
    known = dict(_named(model, ""))
    if layers is None:
        found = dict(_with_kernels(model, ""))
        if not found:
            raise KerasNormError(
                "The model must have layers with a kernel.",
                model=model.name,
                hint=f"Name the `layers` to record; there are: {listed(known)}.",
            )
        return found
    if isinstance(layers, (str, keras.Layer)):
        layers = [layers]
    found = {}
    for wanted in layers:
        names = [
            name
            for name, layer in known.items()
            if layer is wanted or wanted in (name, name.rpartition("/")[2])
        ]
        names = [wanted] if wanted in names else names
        if len(names) != 1:
            raise KerasNormError(
                f"`layers` must name layers of the model: {listed(names or known)}. Received: "
                f"{wanted!r}{', which is several of them' if names else ''}.",
                model=model.name,
            )
        found[names[0]] = known[names[0]]
    return found


def listed(names: Any) -> str:
    return ", ".join(map(repr, names))


def _named(layer: keras.Layer, path: str) -> Iterator[tuple[str, keras.Layer]]:
    for inner in keras_private.own_layers(layer):
        if not isinstance(inner, keras.layers.InputLayer):
            yield path + inner.name, inner
            yield from _named(inner, f"{path}{inner.name}/")


def _with_kernels(layer: keras.Layer, path: str) -> Iterator[tuple[str, keras.Layer]]:
    for inner in keras_private.own_layers(layer):
        if _is_linear(inner):
            yield path + inner.name, inner
        else:
            yield from _with_kernels(inner, f"{path}{inner.name}/")


def _is_linear(layer: keras.Layer) -> bool:
    if isinstance(layer, (WeightNorm, CosineNorm, keras.layers.RNN)):
        return True
    if isinstance(layer, keras.layers.Wrapper):
        return _is_linear(layer.layer)
    # an Embedding reads numbers of words
    kernels = has_kernels(layer) and not is_cell(layer)
    return kernels and not isinstance(layer, keras.layers.Embedding)
