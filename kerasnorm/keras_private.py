"""What this package knows of Keras beyond its public interface; no other file does.

Checked against Keras 3.15: how symbolic calls are recorded, where layers keep the layers and
variables in them, and how the copies of a layer are told apart from it.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.backend.common.variables import AutocastScope
from keras.src.layers.layer import CallContext
from keras.src.models.functional import Functional
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.saving.serialization_lib import SafeModeScope


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


def stored_value(variable: keras.Variable):
    """The value of a variable as it is stored.

    In a call under a mixed precision policy Keras rounds it to the compute dtype, which what a
    norm is taken of must not be.
    """
    with AutocastScope(None):
        return variable.value


def sublayers(layer) -> list[keras.Layer]:
    """Every layer inside a layer, to any depth, in Keras's own order; not the layer itself."""
    return layer._flatten_layers(include_self=False) if isinstance(layer, keras.Layer) else []


def input_layer(tensor) -> keras.layers.InputLayer:
    """The InputLayer that a model's input comes from."""
    return tensor._keras_history.operation


def attached_mask(tensor):
    """The mask that travels with a tensor, or None."""
    return getattr(tensor, "_keras_mask", None)


def attach_mask(tensor, mask) -> None:
    """Have a mask travel with a tensor."""
    tensor._keras_mask = mask


def shallow_copy(value):
    """`copy.copy`, which would save and load what Keras can save, and lose functions and arrays."""
    if not isinstance(value, KerasSaveable):
        return copy.copy(value)
    new = object.__new__(type(value))
    vars(new).update(vars(value))
    return new


def operation_attributes(operation) -> dict[str, Any]:
    """What an operation knows, but for the calls that were made of it."""
    records = ("_inbound_nodes", "_outbound_nodes")
    return {name: value for name, value in vars(operation).items() if name not in records}


def bare_operation(operation):
    """A copy of an operation that is no layer, with the same attributes and no calls yet."""
    new = shallow_copy(operation)
    new._inbound_nodes, new._outbound_nodes = [], []
    return new


_recording = threading.RLock()


@contextlib.contextmanager
def unrecorded(layers: Iterable[keras.Layer]) -> Iterator[None]:
    """Have some layers forget, in the end, the symbolic calls that are made of them meanwhile.

    Other threads wait: in one record their calls would lie between.
    """
    with _recording:
        records = [r for layer in layers for r in (layer._inbound_nodes, layer._outbound_nodes)]
        lengths = [len(record) for record in records]
        try:
            yield
        finally:
            for record, length in zip(records, lengths, strict=True):
                del record[length:]


def in_call_of(layer: keras.Layer, training: bool) -> contextlib.AbstractContextManager[None]:
    """Have layers that are told no `training` take it as inside a call of another layer.

    That is the one of that call, or what a layer called in between was told.
    """
    context = CallContext(layer)
    context.set_value("training", training)
    return _global_attribute("current_call_ctx", context)


@contextlib.contextmanager
def _global_attribute(name: str, value: Any) -> Iterator[None]:
    """Have Keras know something of this thread meanwhile."""
    before = global_state.get_global_attribute(name)
    global_state.set_global_attribute(name, value)
    try:
        yield
    finally:
        global_state.set_global_attribute(name, before)


def run_on(copy, original, counterpart: Callable[[Any], Any]) -> None:
    """Have a shallow copy of a functional model call the counterparts of the original's layers.

    Of other layers nothing is changed: only nodes name the layers that are called.
    """
    if not isinstance(original, Functional):
        return

    def run_through_graph(inputs, operation_fn, **options):
        return original._run_through_graph(
            inputs, operation_fn=lambda op: operation_fn(counterpart(op)), **options
        )

    vars(copy)["_run_through_graph"] = run_through_graph


def replace_own_layer(holder: keras.Layer, old: keras.Layer, new: keras.Layer) -> None:
    """Have a layer hold another in the place of one of those directly inside it, if it is one."""
    if holder._tracker.is_in_store("layers", old):
        holder._tracker.replace_tracked_value("layers", old, new)


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


def call_parameters(layer: keras.Layer) -> Mapping[str, inspect.Parameter]:
    """The arguments that a layer's `call` takes, by name."""
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


# What a constructor may have set differently from what every new layer has.
_SETTINGS = (
    "_supports_masking", "_input_spec", "autocast", "supports_jit", "activity_regularizer",
    "_convert_input_args", "_allow_non_tensor_positional_args", "_remat_mode", "built",
    "_build_shapes_dict", "_called", "_trainable", "_auto_config",
)  # fmt: skip
_OF_EVERY_LAYER = frozenset(vars(keras.Layer(name="any")))
_OF_EVERY_METRIC = frozenset(vars(keras.metrics.Metric(name="any")))
# Also what is hung on a model when it is compiled, trained, saved.
_OF_EVERY_MODEL = frozenset(vars(keras.Model(name="any"))) | {
    "optimizer", "history", "stop_training", "stop_evaluating", "stop_predicting",
    "_compile_config", "_compiled_trainable_state", "_eval_epoch_iterator",
}  # fmt: skip


def has_default_config(layer: keras.Layer) -> bool:
    """Whether a layer's class leaves `get_config` to Keras."""
    return getattr(layer.get_config, "_is_default", False)


def has_recorded_config(layer: keras.Layer) -> bool:
    """Whether Keras recorded the arguments of a layer's constructor."""
    return getattr(layer, "_auto_config", None) is not None


def bare_instance(source):
    """A new layer or metric of another's class whose own constructor was not run."""
    cls: Any = type(source)
    new: Any = cls.__new__(cls)
    if isinstance(source, keras.metrics.Metric):
        keras.metrics.Metric.__init__(new, name=source.name, dtype=source._dtype_policy)
        return new
    base = keras.Model if isinstance(source, keras.Model) else keras.Layer
    base.__init__(new, name=source.name, dtype=source.dtype_policy)
    return new


def settings(layer) -> dict[str, Any]:
    """What Keras itself keeps in every layer, where a constructor may have set it."""
    return {name: vars(layer)[name] for name in _SETTINGS if name in vars(layer)}


def own_attributes(holder) -> dict[str, Any]:
    """What the code of a layer's or metric's class, or a user, hung on it."""
    of_every = _OF_EVERY_LAYER
    if isinstance(holder, keras.Model):
        of_every = _OF_EVERY_MODEL
    elif isinstance(holder, keras.metrics.Metric):
        of_every = _OF_EVERY_METRIC
    return {
        name: value
        for name, value in vars(holder).items()
        # `_self_…` are TensorFlow's
        if name not in of_every and not name.startswith("_self_")
    }


def own_layers(layer: keras.Layer) -> list[keras.Layer]:
    """The layers directly inside a layer."""
    return list(layer._layers)


def own_variables(layer: keras.Layer) -> list[keras.Variable]:
    """The variables directly inside a layer, but for the states of random seeds."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def own_metrics(layer: keras.Layer) -> list[keras.metrics.Metric]:
    """The metrics directly in a layer, which are not in its `variables`."""
    return list(layer._metrics)


def own_state(holder) -> list[tuple[str, Any]]:
    """The layers, variables, metrics and seeds directly in a layer or metric.

    Each with the name of Keras's list of them, which for a variable tells whether it follows the
    `trainable` of its layer.
    """
    lists = holder._tracker.config.items()
    return [(name, value) for name, (_, values) in lists for value in values]


def add_own_state(holder, name: str, value) -> None:
    """Have a layer or metric hold a layer, variable, metric or seed, as an attribute would."""
    holder._tracker.add_to_store(name, value)


def is_untracked(holder, value) -> bool:
    """Whether an attribute has layers, variables, metrics or seeds that Keras does not know of."""
    known = {id(own) for _, own in own_state(holder)}
    kinds = (keras.Layer, keras.Variable, keras.metrics.Metric, keras.random.SeedGenerator)
    leaves = keras.tree.flatten(value)
    return any(isinstance(leaf, kinds) and id(leaf) not in known for leaf in leaves)


def new_variable(variable: keras.Variable) -> keras.Variable:
    """A variable with the value and flags of another, in storage of its own."""
    # `variable.value` would do as a value on other backends; TensorFlow's is the storage itself
    new = keras.Variable(
        keras.ops.convert_to_numpy(variable),
        dtype=variable._dtype,
        trainable=variable.trainable,
        autocast=variable._autocast,
        aggregation=variable.aggregation,
        synchronization=variable.synchronization,
        layout=variable._layout,
        name=variable.name,
    )
    new._path = variable.path
    new.overwrite_with_gradient = variable.overwrite_with_gradient
    return new


def storage(variable: keras.Variable) -> Any:
    """What holds the numbers of a variable: two may share it."""
    return variable._value


@contextlib.contextmanager
def watched_variables(watch: Callable[[Any], None]) -> Iterator[None]:
    """Call a function for each variable of TensorFlow's that this thread makes, before it is made.

    What the function gets has the shape and the dtype that the variable is going to have.
    """
    import tensorflow as tf

    def create(next_creator, **arguments):
        value = arguments["initial_value"]
        if inspect.isfunction(value):  # Keras's draws what one of its variables starts from
            value = inspect.getclosurevars(value).nonlocals.get("self")
        if hasattr(value, "shape"):
            watch(value)
        return next_creator(**arguments)

    with tf.variable_creator_scope(create):
        yield


@contextlib.contextmanager
def deferred_variables(watch: Callable[[Any], None]) -> Iterator[None]:
    """Call a function for each variable that this thread makes, none of which gets a value."""
    listed = _global_attribute("uninitialized_variables", _Watched(watch))
    with listed, keras.StatelessScope(initialize_variables=False):
        yield


class _Watched(list):
    def __init__(self, watch: Callable[[Any], None]):
        super().__init__()
        self._watch = watch

    def append(self, variable: Any) -> None:
        self._watch(variable)


def variable_index(optimizer: keras.optimizers.Optimizer, variable: Any) -> int:
    """Which of an optimizer's variables one is that its `update_step` is called with."""
    return optimizer._get_variable_index(variable)
