"""What a model keeps its numbers in, and whether two models keep them in the same place."""

from __future__ import annotations

import collections
import functools
import types
import weakref

import keras
import numpy as np
import tensorflow as tf

# Of every layer: what Keras records of graphs, which lead to whatever was called before or behind.
_RECORDS = {"_inbound_nodes", "_outbound_nodes", "_tracker", "_dtype_policy", "_call_signature"}


def assert_shares_no_storage(source, clone) -> None:
    """Writing into every variable of one model changes no bit of the other; nor into arrays.

    All variables are written to: weights, states, seeds, those of metrics and of TensorFlow, and
    whatever a function or object that hangs on a layer holds. What is written is taken back.
    """
    variables, others = storage_of(source), storage_of(clone)
    assert variables
    for written, watched in ((variables, others), (others, variables)):
        before, unwritten = bits(watched), bits(written)
        values = [variable.numpy() for variable in written]
        for variable, value in zip(written, values, strict=True):
            variable.assign(_flipped(value))
        after = bits(watched)
        assert not [v.name for v, a, b in zip(watched, before, after, strict=True) if a != b]
        changed = zip(written, unwritten, bits(written), strict=True)
        assert not [v.name for v, a, b in changed if a == b and v.shape.num_elements()]
        for variable, value in zip(written, values, strict=True):
            variable.assign(value)
    parts = {id(part) for part in held(source) if isinstance(part, keras.Operation)}
    assert not [part.name for part in held(clone) if id(part) in parts]
    arrays = [part for part in held(clone) if isinstance(part, np.ndarray)]
    for part in held(source):
        if isinstance(part, np.ndarray):
            assert not any(np.shares_memory(part, array) for array in arrays)


def storage_of(model) -> list[tf.Variable]:
    """TensorFlow's own variables in a model, each once."""
    found = [*model.variables, *getattr(model, "metrics_variables", []), *held(model)]
    raw = [v.value if isinstance(v, keras.Variable) else v for v in found]
    return list({id(v): v for v in raw if isinstance(v, tf.Variable)}.values())


def bits(variables) -> list[bytes]:
    return [variable.numpy().tobytes() for variable in variables]


def held(model) -> list:
    """Every object that hangs on a model, on a layer in it, or on what hangs there."""
    waiting, seen = [model], {}
    while waiting:
        part = waiting.pop()
        if id(part) not in seen and not isinstance(part, (type, types.ModuleType)):
            seen[id(part)] = part
            waiting += _directly_in(part)
    return list(seen.values())


def _directly_in(part) -> list:
    if isinstance(part, types.FunctionType):
        cells = [cell.cell_contents for cell in part.__closure__ or ()]
        return [*cells, *(part.__defaults__ or ()), *(part.__kwdefaults__ or {}).values()]
    if isinstance(part, types.MethodType):
        return [part.__self__]
    if isinstance(part, functools.partial):
        return [part.func, *part.args, *part.keywords.values()]
    if isinstance(part, weakref.ref):
        return [part()]
    if isinstance(part, dict):
        return [*part.keys(), *part.values()]
    if isinstance(part, (list, tuple, set, frozenset, collections.deque)):
        return list(part)
    if isinstance(part, (tf.Tensor, tf.Variable, keras.KerasTensor, np.ndarray)):
        return []
    inside = [value for name, value in _attributes(part).items() if name not in _RECORDS]
    if isinstance(part, keras.Operation):
        nodes = [node.arguments for node in part._inbound_nodes]
        inside += [leaf for node in nodes for leaf in keras.tree.flatten((node.args, node.kwargs))]
    return inside


def _attributes(part) -> dict:
    module = type(part).__module__
    if module.startswith("tensorflow") and not isinstance(part, tf.Module | tf.random.Generator):
        return {}
    slots = [name for cls in type(part).__mro__ for name in getattr(cls, "__slots__", ())]
    own = {name: getattr(part, name) for name in slots if hasattr(part, name)}
    return {**own, **getattr(part, "__dict__", {})}


def _flipped(value: np.ndarray) -> np.ndarray:
    """Another value, in every bit but for booleans."""
    if value.dtype == bool:
        return ~value
    return np.frombuffer((~np.frombuffer(value.tobytes(), "uint8")).tobytes(), value.dtype).reshape(
        value.shape
    )
