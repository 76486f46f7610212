"""Classes that the running program has registered, for files to find."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

# Where a name may be one of Keras's own.
_OF_KERAS = (
    keras.layers,
    keras.models,
    keras.activations,
    keras.constraints,
    keras.initializers,
    keras.regularizers,
)
_FUNCTIONS = ("activation", "recurrent_activation")


def registered_class(stored: dict[str, Any]) -> Any:
    """The layer's class that is registered under a stored name, or None.

    Args:
        stored: Class and configuration, as `{"class_name": …, "config": …}`.
    """
    known = keras.saving.get_custom_objects()
    for key in ("registered_name", "class_name"):
        name = stored.get(key)
        if isinstance(name, str):
            found = known.get(name) or keras.saving.get_registered_object(name)
            if isinstance(found, type) and issubclass(found, keras.Layer):
                return found
    return None


def keras_base(cls: type[keras.Layer]) -> type[keras.Layer] | None:
    """The class of `keras.layers` that a layer's class is, or is derived from.

    None for one that is a layer, or a model, in its own right.
    """
    for base in cls.__mro__[: cls.__mro__.index(keras.Layer)]:
        if getattr(keras.layers, base.__name__, None) is base:
            return base
    return None


def stored_unregistered(config: Any) -> dict[str, Any]:
    """What is registered now, by the bare names that a file has for it.

    A class or function that was not registered when the file was written is in it under its own
    name, and is registered as "package>name".

    Args:
        config: Class and configuration of a model.

    Returns:
        For each name in the configuration that neither Keras nor the program knows, the one
        registered object that is called so; nothing where there are several. Ours are not among
        them: a stranger's class may have the same name.
    """
    known: dict[str, list[Any]] = {}
    for key, value in keras.saving.get_custom_objects().items():
        package, _, name = key.rpartition(">")
        if package and package != "kerasnorm":
            known.setdefault(name, []).append(value)
    return {
        name: known[name][0]
        for name in dict.fromkeys(_names(config))
        if len(known.get(name, ())) == 1
        and keras.saving.get_registered_object(name) is None
        and not any(hasattr(module, name) for module in _OF_KERAS)
    }


def how_to_register(name: str, what: str = "class") -> str:
    """What to do for a file to find a class, or function, that it has under a name."""
    package, _, bare = name.rpartition(">")
    arguments = f'"{package}", "{bare}"' if package else ""
    return (
        f"If it is your own, decorate its {what} with "
        f"`keras.saving.register_keras_serializable({arguments})` and import it first."
    )


def _names(config: Any) -> Iterator[str]:
    """The names of classes, and of functions that are activations, in a configuration."""
    if isinstance(config, list):
        for item in config:
            yield from _names(item)
    elif isinstance(config, dict):
        of_function = config.get("class_name") == "function"
        for key, value in config.items():
            if isinstance(value, str):
                if key in ("class_name", *_FUNCTIONS) or (key == "config" and of_function):
                    yield value
            else:
                yield from _names(value)
