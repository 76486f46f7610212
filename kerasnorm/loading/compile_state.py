"""The compile state of an old file, as far as Keras 3 has all of it."""

from __future__ import annotations

import inspect
from typing import Any

import keras

_ACCURACY = ("acc", "accuracy", "ce", "crossentropy")
_RENAMED = {"lr": "learning_rate", "rho_1": "beta_1"}
# Of optimizers: what Keras 3 has no more, and did nothing at these values.
_NEUTRAL = {"decay": (0.0,), "is_legacy_optimizer": (False, True), "jit_compile": (False, True)}


def compile_as_stored(model: keras.Model, training: dict[str, Any]) -> None:
    """Compile a model with the stored optimizer, loss and metrics.

    The optimizer starts without the state it had.

    Args:
        model: The model, changed in place.
        training: The `training_config` of the file, or a `compile_config` of Keras 2.13 to 2.15.

    Raises:
        Exception: Whatever Keras says to what it does not know; the model is then not compiled.
    """
    optimizer = training.get("optimizer_config") or training.get("optimizer")
    model.compile(
        optimizer=_optimizer(optimizer),
        loss=_resolved(training.get("loss"), keras.losses),
        metrics=_metrics(training.get("metrics")),
        loss_weights=training.get("loss_weights"),
        weighted_metrics=_metrics(training.get("weighted_metrics")),
    )


def _optimizer(stored: Any) -> Any:
    if not isinstance(stored, dict):
        return keras.optimizers.get(stored)
    class_name = str(stored["class_name"]).removeprefix("Custom>")
    cls = getattr(keras.optimizers, class_name)
    if not (isinstance(cls, type) and issubclass(cls, keras.optimizers.Optimizer)):
        raise ValueError(f"unknown optimizer {class_name}")
    known = {key for base in cls.__mro__ for key in inspect.signature(base).parameters}
    arguments = {}
    for key, value in stored["config"].items():
        key = _RENAMED.get(key, key)
        if key in known:
            arguments[key] = _known(value, keras.optimizers.schedules)
        elif value is not None and value not in _NEUTRAL.get(key, ()):
            raise ValueError(f"{class_name} has no argument {key}={value!r}")
    return cls(**arguments)


def _metrics(stored: Any) -> Any:
    return _resolved(stored, keras.metrics)


def _resolved(stored: Any, module: Any) -> Any:
    """A loss, a metric, or a structure of them; an unknown name is an error now, not in `fit`.

    Args:
        stored: As the file has it.
        module: `keras.losses` or `keras.metrics`: many names are in both, and mean two things.
    """
    if isinstance(stored, list):
        return [_resolved(item, module) for item in stored]
    if isinstance(stored, dict) and "class_name" not in stored:
        return {key: _resolved(value, module) for key, value in stored.items()}
    known = _known(stored, module)
    # Keras resolves "accuracy" by the loss it goes with.
    if isinstance(known, str) and known not in _ACCURACY and module.get(known) is None:
        raise ValueError(f"unknown {known}")
    return known


def _known(stored: Any, module: Any) -> Any:
    """An object of a module by its class and configuration; names and numbers as they are."""
    if not isinstance(stored, dict):
        return stored
    if "class_name" not in stored:
        return {key: _known(value, module) for key, value in stored.items()}
    class_name, config = str(stored["class_name"]), stored.get("config")
    if class_name == "MeanMetricWrapper" and isinstance(config, dict):
        config = config.get("fn") or config.get("name")
    if not isinstance(config, dict):  # the name of a function
        return config
    cls = getattr(module, class_name, None)
    if not (isinstance(cls, type) and hasattr(cls, "from_config")):
        raise ValueError(f"unknown {class_name}")
    # What says nothing: the function of a class that has its own, and the last axis.
    config = {k: v for k, v in config.items() if k != "fn" and (k, v) != ("axis", -1)}
    if config.get("reduction") == "auto":
        config["reduction"] = "sum_over_batch_size"
    return cls.from_config(config)
