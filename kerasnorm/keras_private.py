"""What this package knows of Keras beyond its public interface; no other file does.

Checked against Keras 3.15: how symbolic calls are recorded, where layers keep the layers and
variables in them, and how the copies of a layer are told apart from it.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import keras
from keras.src.backend.common.variables import AutocastScope
from keras.src.models.functional import Functional
from keras.src.saving.serialization_lib import SafeModeScope

from kerasnorm.errors import SwapError


def has_graph(operation) -> bool:
    """Whether an operation is a model that computes what its graph says, and nothing else."""
    return any(
        isinstance(operation, cls) and type(operation).call is cls.call
        for cls in (Functional, keras.Sequential)
    )


def is_graph_with_code(layer) -> bool:
    """Whether a layer is a Functional or Sequential model with a `call` of its own."""
    return isinstance(layer, (Functional, keras.Sequential)) and not has_graph(layer)


def is_plain(model: keras.Model) -> bool:
    """Whether a model is of Keras's own class, without methods of the user's."""
    return type(model) in (Functional, keras.Sequential)


def stored_dtypes() -> contextlib.AbstractContextManager:
    """A scope in which variables have the values and dtypes that they are stored with.

    In a call under a mixed precision policy they are rounded to the compute dtype, which what a
    norm is taken of must not be.
    """
    return AutocastScope(None)


def sublayers(layer) -> list[keras.Layer]:
    """Every layer inside a layer, to any depth, in Keras's own order; not the layer itself."""
    if not isinstance(layer, keras.Layer):
        return []
    return layer._flatten_layers(include_self=False)


def input_layer(tensor) -> keras.layers.InputLayer:
    """The InputLayer that a model's input comes from."""
    return tensor._keras_history.operation


def attached_mask(tensor):
    """The mask that travels with a tensor, or None."""
    return getattr(tensor, "_keras_mask", None)


def attach_mask(tensor, mask) -> None:
    """Have a mask travel with a tensor."""
    tensor._keras_mask = mask


def copied_operation(operation):
    """A copy of an operation without weights, such as a `keras.ops` call, without its history.

    The copy has the very same attributes: a config would lose arrays and callables.
    """
    clone = copy.copy(operation)
    clone._inbound_nodes = []
    clone._outbound_nodes = []
    return clone


@contextlib.contextmanager
def unrecorded(layers: Iterable[keras.Layer]) -> Iterator[None]:
    """Have some layers forget, in the end, the symbolic calls that are made of them meanwhile."""
    records = [r for layer in layers for r in (layer._inbound_nodes, layer._outbound_nodes)]
    lengths = [len(record) for record in records]
    try:
        yield
    finally:
        for record, length in zip(records, lengths, strict=True):
            del record[length:]


def replace_sublayer(holder: keras.Layer, old: keras.Layer, new: keras.Layer) -> None:
    """Put a layer in the place of another wherever a layer, or one inside it, holds that.

    Attributes are seen, and lists, tuples and dicts in them.

    Raises:
        SwapError: If something else holds on to the old layer.
    """
    for layer in (holder, *sublayers(holder)):
        if has_graph(layer):
            continue
        tracker = layer._tracker
        if tracker.is_in_store("layers", old):
            tracker.replace_tracked_value("layers", old, new)
        for name, value in list(vars(layer).items()):
            if name not in _KERAS_OWN:
                replaced = _with_replaced(value, old, new)
                if replaced is not value:
                    setattr(layer, name, replaced)
    if any(layer is old for layer in sublayers(holder)):
        raise SwapError(
            f"A layer is replaced in attributes, lists and dicts. Received '{old.name}', which "
            f"'{holder.name}' holds in another way.",
            layer=holder.name,
        )


_KERAS_OWN = frozenset(vars(keras.Model(name="any")))


def _with_replaced(value, old, new):
    if value is old:
        return new
    if isinstance(value, (list, dict)):
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            replaced = _with_replaced(item, old, new)
            if replaced is not item:
                value[key] = replaced
    elif isinstance(value, tuple):
        items = [_with_replaced(item, old, new) for item in value]
        if any(a is not b for a, b in zip(items, value, strict=True)):
            # TensorFlow wraps tuples; `__class__` is that of the tuple inside
            return value.__class__(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def built_shapes(model: keras.Model) -> tuple[tuple, dict[str, Any]] | None:
    """The (args, kwargs) of shapes that a model was first called on; None if it was not."""
    config = _untracked(model.get_build_config()) if model.built else None
    if not config:
        return None
    if "shapes_dict" in config:
        return (), {k.removesuffix("_shape"): v for k, v in config["shapes_dict"].items()}
    return (config["input_shape"],), {}


def _untracked(value):
    """Dicts and lists as such, not of the classes by which Keras tracks what is in attributes."""
    if isinstance(value, dict):
        return {key: _untracked(item) for key, item in value.items()}
    return [_untracked(item) for item in value] if isinstance(value, list) else value


def call_parameters(layer: keras.Layer) -> Iterable[str]:
    """The names of the arguments that a layer's `call` takes."""
    return inspect.signature(layer.call).parameters


@contextlib.contextmanager
def trusted_configs() -> Iterator[None]:
    """Let configs hold functions. Only for configs taken from a model in this very process."""
    with SafeModeScope(safe_mode=False):
        yield


def node_of(tensor):
    """The record of the symbolic call that gave a tensor."""
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]


def operations_between(outputs: Iterable[Any], inputs: Iterable[Any]) -> list[Any]:
    """The operations that made some tensors from others, the last first."""
    known, waiting, found = {id(tensor) for tensor in inputs}, list(outputs), []
    while waiting:
        tensor = waiting.pop()
        if id(tensor) not in known:
            known.add(id(tensor))
            node = node_of(tensor)
            found.append(node.operation)
            waiting.extend(node.input_tensors)
    return list(dict.fromkeys(found))


# What Keras hangs on a layer or model when it is compiled, trained, saved.
_OF_TRAINING = {
    "optimizer", "history", "stop_training", "stop_evaluating", "stop_predicting",
    "_compile_config", "_compiled_trainable_state", "_eval_epoch_iterator",
}  # fmt: skip
# What a constructor may have set differently from what every new layer has.
_OF_EVERY_LAYER = (
    "_supports_masking", "_input_spec", "autocast", "supports_jit", "activity_regularizer",
    "_convert_input_args", "_allow_non_tensor_positional_args", "_remat_mode", "built",
    "_build_shapes_dict", "_called",
)  # fmt: skip


def has_default_config(layer: keras.Layer) -> bool:
    """Whether a layer's class leaves `get_config` to Keras."""
    return getattr(layer.get_config, "_is_default", False)


def has_recorded_config(layer: keras.Layer) -> bool:
    """Whether Keras recorded the arguments of a layer's constructor."""
    return getattr(layer, "_auto_config", None) is not None


def bare_instance(source: keras.Layer) -> keras.Layer:
    """A new layer of a layer's class whose own constructor was not run, with Keras's settings."""
    cls: Any = type(source)
    new: Any = cls.__new__(cls)
    base = keras.Model if isinstance(source, keras.Model) else keras.Layer
    base.__init__(new, name=source.name, dtype=source.dtype_policy)
    for name in _OF_EVERY_LAYER:
        if name in vars(source):
            vars(new)[name] = copy.copy(vars(source)[name])
    return new


def own_attributes(source: keras.Layer, bare: keras.Layer) -> dict[str, Any]:
    """What the code of a layer's class hung on it, and a bare instance of the class lacks."""
    return {
        name: value
        for name, value in vars(source).items()
        # `_self_…` are TensorFlow's
        if name not in vars(bare) and name not in _OF_TRAINING and not name.startswith("_self_")
    }


def own_layers(layer: keras.Layer) -> list[keras.Layer]:
    """The layers directly inside a layer."""
    return list(layer._layers)


def add_own_layer(holder: keras.Layer, layer: keras.Layer) -> None:
    """Have a layer hold another, as an attribute would."""
    holder._tracker.add_to_store("layers", layer)


def own_variables(layer: keras.Layer) -> list[keras.Variable]:
    """The variables directly inside a layer."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def add_own_variable(holder: keras.Layer, variable: keras.Variable) -> keras.Variable:
    """Have a layer hold a copy of a variable, as an attribute would; the copy."""
    with holder._open_name_scope():
        new = keras.Variable(
            variable.value,
            dtype=variable.dtype,
            trainable=variable.trainable,
            autocast=variable._autocast,
            aggregation=variable.aggregation,
            name=variable.name,
        )
    new.regularizer, new.constraint = variable.regularizer, variable.constraint
    holder._track_variable(new)
    return new
