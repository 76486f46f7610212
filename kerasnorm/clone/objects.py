"""Clone what hangs on a layer beside layers and weights: containers, functions, plain objects."""

from __future__ import annotations

import collections
import functools
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from kerasnorm import keras_private
from kerasnorm.clone import tensorflow_objects

# Of the standard library, what holds things for a user: loggers, threads and the like do not.
_HOLDERS = frozenset({"builtins", "collections", "functools", "types", "weakref"})
_SERVICES = sys.stdlib_module_names - _HOLDERS
# Top-level modules whose classes and functions are no user's.
LIBRARIES = sys.stdlib_module_names | {"keras", "kerasnorm", "numpy", "tensorflow", "jax", "torch"}
_CONTAINERS = (list, dict, set, collections.deque)
_WITHOUT_PARTS = (
    bool, int, float, complex, str, bytes, type(None), type, types.ModuleType, keras.KerasTensor,
)  # fmt: skip


class Objects:
    """Clones objects, each once, so that what is held in two places stays one thing.

    Containers and instances of a user's or Keras's own classes are copied with all that they hold,
    as `copy.deepcopy` does. Unlike there, so are functions that keep something: they get closures
    and defaults of their own, and a bound method the clone of its object. All else is the same
    object.

    Args:
        clone_state: Gives the clone of what `is_state` is true of.
        needs: Which objects there have to be clones of, in place of those above.
    """

    def __init__(
        self, clone_state: Callable[[Any], Any], needs: Callable[[Any], bool] | None = None
    ):
        self._clone_state = clone_state
        self._needs = needs or _is_copied
        # by id; what was cloned is kept, so that no other object gets its id meanwhile
        self._clones: dict[int, tuple[Any, Any]] = {}

    def remember(self, value: Any, clone: Any) -> Any:
        """Have `clone` stand for an object; the clone."""
        self._clones[id(value)] = (value, clone)
        return clone

    def clone(self, value: Any) -> Any:
        """The clone of an object, or the object itself where there need not be another."""
        if isinstance(value, _WITHOUT_PARTS):
            return value
        if id(value) in self._clones:
            return self._clones[id(value)][1]
        if not leads_to([value], lambda part: id(part) in self._clones or self._needs(part)):
            return value
        if is_state(value):
            return self.remember(value, self._clone_state(value))
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(self.clone(value.__func__), self.clone(value.__self__))
        if isinstance(value, types.BuiltinMethodType):
            return getattr(self.clone(value.__self__), value.__name__)
        if isinstance(value, weakref.ref):
            return type(value)(self.clone(value()))
        if isinstance(value, functools.partial):
            keywords = {name: self.clone(item) for name, item in value.keywords.items()}
            return type(value)(self.clone(value.func), *map(self.clone, value.args), **keywords)
        if isinstance(value, (tuple, frozenset)):
            items = [self.clone(item) for item in value]
            # TensorFlow wraps tuples; `__class__` is that of the tuple inside
            return value.__class__(*items) if hasattr(value, "_fields") else value.__class__(items)
        return self._object(value)

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        cells = function.__closure__ or ()
        clone = types.FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            closure=tuple(map(self._cell, cells)),
        )
        self.remember(function, clone)
        for cell in cells:
            for content in _content(cell):
                self._cell(cell).cell_contents = self.clone(content)
        for name in (*functools.WRAPPER_ASSIGNMENTS, "__defaults__", "__kwdefaults__"):
            setattr(clone, name, self.clone(getattr(function, name)))
        vars(clone).update({name: self.clone(item) for name, item in vars(function).items()})
        return clone

    def _cell(self, cell: types.CellType) -> types.CellType:
        """A new cell: functions that have a variable in common still have."""
        if id(cell) not in self._clones:
            self.remember(cell, types.CellType())
        return self._clones[id(cell)][1]

    def _object(self, value: Any) -> Any:
        plain = _plain_container(value)
        try:
            clone = plain() if plain else keras_private.shallow_copy(value)
        except Exception:
            # a class of the user's, or of a library, may refuse to be copied in any way
            clone = value
        self.remember(value, clone)
        if clone is value:
            return value
        if isinstance(value, dict):
            clone.clear()
            for key, item in value.items():
                clone[self.clone(key)] = self.clone(item)
        elif isinstance(value, _CONTAINERS):
            clone.clear()
            for item in value:
                (clone.add if isinstance(value, set) else clone.append)(self.clone(item))
        for name, item in {} if plain else _attributes(value).items():
            if name in getattr(value, "__dict__", ()):
                vars(clone)[name] = self.clone(item)
            else:
                object.__setattr__(clone, name, self.clone(item))
        return clone


def copied(value: Any) -> Any:
    """A copy of what hangs on a layer, such as a penalty; layers and variables stay the same."""
    return Objects(lambda part: part.copy() if isinstance(part, np.ndarray) else part).clone(value)


def is_state(value: Any) -> bool:
    """Whether something has values of its own, which training or a user may change."""
    kinds = (
        keras.Operation,
        keras.Variable,
        keras.metrics.Metric,
        keras.optimizers.Optimizer,
        keras.random.SeedGenerator,
        np.ndarray,
    )
    return (
        isinstance(value, kinds)
        or tensorflow_objects.is_variable(value)
        or tensorflow_objects.is_table(value)
    )


def reached(
    values: Iterable[Any],
    more: Callable[[Any], Iterable[Any]] = lambda value: (),
    seen: dict[int, Any] | None = None,
) -> Iterator[Any]:
    """Some objects and all that they hold, to any depth; what `is_state` is true of is not opened.

    Args:
        more: Gives what else an object leads to.
        seen: Objects by `id` that are left out, and to which those that were reached are added.
    """
    waiting, seen = list(values), {} if seen is None else seen
    while waiting:
        value = waiting.pop()
        if isinstance(value, _WITHOUT_PARTS) or id(value) in seen:
            continue
        seen[id(value)] = value
        yield value
        if not is_state(value) and not _is_registered(value):
            waiting += _parts(value)
            waiting += more(value)


def leads_to(values: Iterable[Any], found: Callable[[Any], bool]) -> bool:
    """Whether `found` is true of one of some objects, or of what they hold, to any depth."""
    return any(map(found, reached(values)))


def module_of(thing: Any) -> str:
    """The top-level module of a class or function."""
    return (getattr(thing, "__module__", None) or "").split(".")[0]


def _parts(value: Any) -> list[Any]:
    """What a container, a function or another object holds directly."""
    if isinstance(value, types.FunctionType):
        contents = [content for cell in value.__closure__ or () for content in _content(cell)]
        more = [*(value.__kwdefaults__ or {}).values(), *vars(value).values()]
        return [*contents, *(value.__defaults__ or ()), *more]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.BuiltinMethodType):
        return [value.__self__]
    if isinstance(value, weakref.ref):
        return [value()]
    if tensorflow_objects.is_compiled_function(value):
        return [value.python_function]
    parts = list(_attributes(value).values())
    if isinstance(value, functools.partial):
        parts += [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, (dict, types.MappingProxyType)):
        parts += [*value.keys(), *value.values()]
    elif isinstance(value, (*_CONTAINERS, tuple, frozenset)):
        parts.extend(value)  # which may be a tuple in a wrapper of TensorFlow's
    return parts


def _content(cell: types.CellType) -> list[Any]:
    """What the variable of a closure holds; nothing where it was not set yet."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


def _attributes(value: Any) -> dict[str, Any]:
    module = module_of(type(value))
    if module in _SERVICES or (module == "tensorflow" and not tensorflow_objects.is_module(value)):
        return {}
    attributes = getattr(value, "__dict__", {})
    if module in LIBRARIES:
        return attributes
    slots = [name for cls in type(value).__mro__ for name in _slots(cls) if hasattr(value, name)]
    return {**{name: getattr(value, name) for name in slots}, **attributes}


def _slots(cls: type) -> list[str]:
    slots = vars(cls).get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _is_copied(value: Any) -> bool:
    if is_state(value) or isinstance(value, _CONTAINERS):
        return True
    if isinstance(value, types.FunctionType):
        is_users = module_of(value) not in LIBRARIES
        return is_users and bool(value.__closure__) and not _is_registered(value)
    is_copied = module_of(type(value)) not in LIBRARIES - {"keras", "kerasnorm"}
    return is_copied and bool(_attributes(value))


def _plain_container(value: Any) -> type | None:
    """The class of Python's that a container has, where it has no other than Keras gave it."""
    if module_of(type(value)) not in ("builtins", "keras", "tensorflow"):
        return None
    kinds = (collections.OrderedDict, dict, list, set)
    return next((kind for kind in kinds if isinstance(value, kind)), None)


def _is_registered(value: Any) -> bool:
    """Whether Keras knows a function by a name of its own: there is one of it for all models."""
    return isinstance(value, types.FunctionType) and (
        keras.saving.get_registered_name(value) != value.__name__
    )
