"""Refuse a clone that still leads to a layer or variable of its source.

Training the one would train the other. What keeps to its layer is cloned with it; what is left are
functions that reach out: through global names, a class's own methods, or objects that cannot be
copied. No comparison of answers can see that.
"""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

import keras

from kerasnorm import keras_private
from kerasnorm.clone import tensorflow_objects
from kerasnorm.clone.objects import LIBRARIES, is_state, module_of, reached
from kerasnorm.errors import SwapError


def check_nothing_shared(source: keras.Layer, clone: keras.Layer) -> None:
    """Check that nothing in a clone leads to a layer or variable in its source.

    Looked at are attributes, regularizers, constraints and the methods of users' classes, and what
    these hold: containers, plain objects and their classes, functions with their closures, defaults
    and the global names in their code, attributes of modules and classes among them.

    Raises:
        SwapError: If something does, by the name of the layer that holds it.
    """
    of_source = _state_in(source)
    own = {id(layer) for layer in (clone, *keras_private.sublayers(clone))}
    seen: dict[int, Any] = {}
    for layer in (clone, *keras_private.sublayers(clone)):
        for where, value in (*_held(layer), *_methods(type(layer))):
            for part in reached([value], _named_by_class_or_code, seen):
                for inner in [part] if id(part) in own else [part, *_inside(part)]:
                    if id(_storage(inner)) in of_source:
                        _refuse(layer, where, of_source[id(_storage(inner))])


def _refuse(layer: keras.Layer, where: str, shared: Any) -> None:
    kind = "layer" if isinstance(shared, keras.Layer) else "variable"
    name = getattr(shared, "path", None) or shared.name
    raise SwapError(
        f"The copy of a layer must use no layer or variable of its source. Received a "
        f"{type(layer).__name__} whose {where} leads to the source's {kind} '{name}'.",
        layer=layer.name,
        hint="Have the code take layers and variables from `self`, and from no global name, class "
        "or object that does not belong to the layer.",
    )


def _state_in(source: keras.Layer) -> dict[int, Any]:
    """The layers and variables of a layer, by the `id` of their storage."""
    found: dict[int, Any] = {}
    waiting: list[Any] = [source]
    while waiting:
        part = waiting.pop()
        if id(_storage(part)) in found:
            continue
        if isinstance(part, keras.Layer) or _is_variable(part):
            found[id(_storage(part))] = part
        if isinstance(part, (keras.Layer, keras.metrics.Metric)):
            waiting += filter(is_state, reached([value for _, value in _held(part)]))
        else:
            waiting += _inside(part)
    return found


def _inside(part: Any) -> list[Any]:
    """The layers and variables of something that is not opened."""
    if isinstance(part, keras.random.SeedGenerator):
        return [part.state]
    if isinstance(part, (keras.metrics.Metric, keras.optimizers.Optimizer)):
        return part.variables
    return keras_private.sublayers(part)


def _is_variable(part: Any) -> bool:
    return isinstance(part, keras.Variable) or tensorflow_objects.is_variable(part)


def _storage(part: Any) -> Any:
    return keras_private.storage(part) if isinstance(part, keras.Variable) else part


def _held(layer: Any) -> Iterator[tuple[str, Any]]:
    """What a layer holds, and where; what is in the graph of a model is held by its layers.

    Of what hangs on layers of Keras's own, only what is a user's can lead elsewhere.
    """
    are_all = module_of(type(layer)) not in LIBRARIES
    for _, value in keras_private.own_state(layer):
        yield f"'{value.name}'", value
        if isinstance(value, keras.Variable):
            for kind in ("regularizer", "constraint"):
                if are_all or _is_users(getattr(value, kind)):
                    yield f"{kind} of '{value.name}'", getattr(value, kind)
    if keras_private.has_graph(layer) or keras_private.is_graph_with_code(layer):
        return
    settings = keras_private.settings(layer)
    for name, value in {**settings, **keras_private.own_attributes(layer)}.items():
        if are_all or _is_users(value):
            yield f"attribute `{name}`", value


def _is_users(value: Any) -> bool:
    if isinstance(value, (types.MethodType, functools.partial)):
        return True
    is_function = isinstance(value, types.FunctionType)
    return module_of(value if is_function else type(value)) not in LIBRARIES


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
    """What is in the body of a user's class and its bases, functions above all."""
    for base in cls.__mro__:
        if module_of(base) not in LIBRARIES:
            for name, value in vars(base).items():
                yield f"method `{name}`", _function_of(value)


def _function_of(member: Any) -> Any:
    """The function in a member of a class's body, or the member itself."""
    if isinstance(member, property):
        return member.fget
    return member.__func__ if isinstance(member, (staticmethod, classmethod)) else member


def _named_by_class_or_code(value: Any) -> list[Any]:
    """What the class of a user's object holds; what a user's function reads by global names."""
    if not isinstance(value, types.FunctionType):
        return [member for _, member in _methods(type(value))]
    codes, found = [value.__code__], []
    for code in codes if module_of(value) not in LIBRARIES else ():
        named: Any = None
        for step in dis.get_instructions(code):
            if step.opname == "LOAD_GLOBAL":
                named = value.__globals__.get(step.argval)
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and _is_namespace(named):
                named = _function_of(inspect.getattr_static(named, step.argval, None))
            elif step.opname != "EXTENDED_ARG":
                named = None
            found.append(named)
        codes += filter(lambda constant: isinstance(constant, types.CodeType), code.co_consts)
    return found


def _is_namespace(value: Any) -> bool:
    """Whether something is a module or class of the user's."""
    if isinstance(value, types.ModuleType):
        return value.__name__.split(".")[0] not in LIBRARIES
    return isinstance(value, type) and module_of(value) not in LIBRARIES
