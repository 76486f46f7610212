"""The model that a configuration of Keras 1 or 2 describes, built from Keras 3 layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras

from kerasnorm.errors import LoadError
from kerasnorm.loading.legacy import operations
from kerasnorm.loading.legacy.built_layer import BuiltLayer
from kerasnorm.loading.legacy.calls import add_bias_in_place
from kerasnorm.loading.legacy.functional import FunctionalBuilder
from kerasnorm.loading.legacy.inputs import input_of
from kerasnorm.loading.legacy.legacy_config import LegacyConfig
from kerasnorm.loading.legacy.legacy_layers import can_add_bias_elsewhere
from kerasnorm.loading.legacy.repairs import REPAIRS, repair_own_class
from kerasnorm.loading.registered import how_to_register, keras_base, registered_class
from kerasnorm.loading.repair_log import RepairLog
from kerasnorm.loading.safety import CODE_CLASSES, Limits

_FUNCTIONAL = ("Container", "Functional", "Model", "Network")
MODELS = (*_FUNCTIONAL, "Sequential")
# Arguments that can be layers; an activation mostly is a name.
_LAYERS_IN_ARGUMENTS = ("activation", "backward_layer", "cell", "layer", "recurrent_activation")
# What a first layer says of the model's input, see `inputs`.
_OF_THE_INPUT = ("batch_input_shape", "batch_shape", "input_shape", "input_dtype")


class Builder:
    """Builds layer after layer.

    Args:
        version: The Keras that wrote the configuration, "2.2.4-tf", or None.
        major: Its major version.
        log: Is told of every repair.
        limits: How much the configuration may ask for.
        allow_custom_code: Whether functions in the configuration may become layers.
    """

    def __init__(
        self,
        version: str | None,
        major: int,
        log: RepairLog,
        limits: Limits,
        allow_custom_code: bool = False,
    ):
        self._major = major
        self._before_half_pixels = _before_half_pixels(version)
        self._log = log
        self._limits = limits
        self._allow_custom_code = allow_custom_code
        self._depth = 0

    def build(self, stored: dict[str, Any]) -> BuiltLayer:
        """A model, or a layer, with all that is in it.

        Args:
            stored: Class and configuration, as `{"class_name": …, "config": …}`.

        Raises:
            LoadError: If something in it has no counterpart in this Keras, or is code.
        """
        class_name, config = stored["class_name"], stored["config"]
        self._depth += 1
        if self._depth > self._limits.models:
            raise LoadError("The configuration is damaged: too many models in models.")
        try:
            if class_name in _FUNCTIONAL:
                return self._functional(class_name, config)
            if _is_functional(config) and registered_class(stored) is None:
                self._log.add(f"{class_name}, a class of its own, is built as its graph says")
                return self._functional(class_name, config)
            if class_name == "Sequential":
                return self._sequential(config)
            return self._layer(stored)
        finally:
            self._depth -= 1

    def _layer(self, stored: dict[str, Any]) -> BuiltLayer:
        layer = self._legacy_config(stored)
        name, class_name = layer.name, layer.class_name
        for key in _OF_THE_INPUT:
            layer.config.pop(key, None)
        if layer.class_name in CODE_CLASSES:
            return BuiltLayer(name, class_name, self._code(layer))
        registered = registered_class(stored)
        if registered is not None:
            layer.registered, base = registered, keras_base(registered)
            if base is None or _has_own_from_config(registered, base):
                repair_own_class(layer)
                return BuiltLayer(name, class_name, registered.from_config(layer.config))
            layer.class_name = base.__name__
        inner = self._inner_layers(layer)
        for repair in REPAIRS:
            repair(layer)
        built = BuiltLayer(name, class_name, self._instance(layer), _holding_weights(layer, inner))
        if isinstance(built.layer, keras.layers.Bidirectional):
            # It makes its two layers from the one it is given.
            kinds = [child.class_name for child in inner] * 2
            parts = zip(
                kinds, (built.layer.forward_layer, built.layer.backward_layer), strict=False
            )
            built.children = [BuiltLayer(part.name, kind, part) for kind, part in parts]
        if class_name == "Deconvolution2D":  # of Keras 1, where it could be chosen
            built.output_shape = stored["config"].get("output_shape")
        return built

    def _instance(self, layer: LegacyConfig) -> keras.Layer:
        cls = layer.layer_class()
        if cls is None:
            raise layer.refused(
                "is no layer that this Keras knows.",
                hint=how_to_register(layer.class_name),
            )
        arguments = {key: value for key, value in layer.config.items() if key != "name"}
        return cls(**arguments, name=self._name(layer.name))

    def _legacy_config(self, stored: dict[str, Any]) -> LegacyConfig:
        config = dict(stored["config"])
        name = config.get("name") or stored.get("name")
        return LegacyConfig(
            str(stored["class_name"]),
            {**config, "name": name},
            self._major,
            functools.partial(self._log.add, layer=str(name)),
            functools.partial(self._log.warn, layer=str(name)),
            self._before_half_pixels,
        )

    def _inner_layers(self, layer: LegacyConfig) -> list[BuiltLayer]:
        """Build the layers and cells among the arguments in place."""
        children = []
        for key, value in layer.config.items():
            if key == "cells":
                layer.config[key] = [self.build(cell).layer for cell in value]
            elif key in _LAYERS_IN_ARGUMENTS and _is_layer(value):
                children.append(self.build(value))
                layer.config[key] = children[-1].layer
        return children

    def _code(self, layer: LegacyConfig) -> keras.Layer:
        if not self._allow_custom_code:
            raise layer.refused(
                "would run code that is kept in the file.",
                hint="If you trust its author, allow it (--allow-custom-code).",
            )
        config = {key: value for key, value in layer.config.items() if value is not None}
        function = config.get("function")
        if isinstance(function, list):  # bytecode, defaults and closure
            code = dict(zip(("code", "defaults", "closure"), function, strict=True))
            config["function"] = {"class_name": "__lambda__", "config": code}
        for key in ("function_type", "module", "output_shape_type", "output_shape_module"):
            config.pop(key, None)
        return getattr(keras.layers, layer.class_name).from_config(config, safe_mode=False)

    def _sequential(self, config: Any) -> BuiltLayer:
        if isinstance(config, list):
            self._log.add("the Sequential model's configuration was a list of layers")
            config = {"layers": config}
        name = config.get("name") or "sequential"
        stored = list(config["layers"])
        children = []
        if stored and stored[0]["class_name"] == "InputLayer":
            first = input_of(stored.pop(0))
        else:
            first = input_of(config)
            if first is not None and stored[0]["class_name"] not in MODELS:
                self._log.add("an input was put before the first layer", _name_of(stored[0]))
        for item in stored:
            children.append(self.build(item))
        model = self._row(name, first, children)
        if config.get("trainable") is False:
            model.trainable = False
        if model.built:
            _check_output_shapes(children)
        return BuiltLayer(name, "Sequential", model, children)

    def _row(self, name: str, first: dict[str, Any] | None, children: list[BuiltLayer]) -> Any:
        """A Sequential model of some layers, on an input where it is known."""
        row = [] if first is None else [keras.Input(**first)]
        if first is None or not any(can_add_bias_elsewhere(child.layer) for child in children):
            return keras.Sequential([*row, *(c.layer for c in children)], name=self._name(name))
        model = keras.Sequential(row, name=self._name(name))
        for child in children:  # one by one: it depends on the shape of its input
            shape = model.output_shape if model.layers else first["batch_shape"]
            add_bias_in_place(child, functools.partial(self._log.add, layer=child.name), shape)
            model.add(child.layer)
        return model

    def _functional(self, class_name: str, config: dict[str, Any]) -> BuiltLayer:
        functional = FunctionalBuilder(self.build, self._operation, self._name, self._log)
        for stored in config["layers"]:
            functional.add(stored)
        functional.call_all(config["output_layers"])
        name = config.get("name") or "model"
        inputs, outputs = map(functional.tensors, (config["input_layers"], config["output_layers"]))
        functional.name_operations(outputs)
        model = keras.Model(inputs, outputs, name=self._name(name))
        _check_output_shapes(functional.children)
        if config.get("trainable") is False:
            model.trainable = False
        return BuiltLayer(name, class_name, model, functional.children)

    def _operation(self, stored: dict[str, Any]) -> Callable[..., Any] | None:
        if stored["class_name"] not in operations.CLASSES:
            return None
        return operations.operation(self._legacy_config(stored))

    def _name(self, name: str) -> str:
        """A name that Keras 3 allows; in the paths of weights "/" separates layers."""
        if not name.isprintable():
            raise LoadError(f"The configuration is damaged: a layer's name is {name!r}.")
        if "/" not in name:
            return name
        self._log.add("“/” in a layer's name became “_”", name)
        return name.replace("/", "_")


def _before_half_pixels(version: str | None) -> bool:
    """Whether a Keras may be older than 2.3: TensorFlow 2.0 and 2.1 call theirs 2.2.4-tf too."""
    numbers = (version or "2.0").split("-")[0].split(".")
    return [int(n) for n in numbers[:2] if n.isdecimal()] < [2, 3]


def _holding_weights(layer: LegacyConfig, inner: list[BuiltLayer]) -> list[BuiltLayer]:
    """What a wrapper around one layer or model shows of it."""
    return inner if layer.class_name == "TimeDistributed" else []


def _check_output_shapes(children: list[BuiltLayer]) -> None:
    """Refuse where a layer that said how large its output is gives another."""
    for child in children:
        if child.output_shape is None or not isinstance(child.layer, keras.Layer):
            continue
        given = child.layer.output.shape
        if any(
            None not in (a, b) and a != b for a, b in zip(child.output_shape, given, strict=True)
        ):
            raise LoadError(
                f"{child.class_name} gave {tuple(child.output_shape)} where the file is from, and "
                f"gives {given} here.",
                layer=child.name,
                hint="Build that part of the model anew and load the weights into it.",
            )


def _has_own_from_config(cls: Any, base: Any) -> bool:
    return cls.from_config.__func__ is not base.from_config.__func__


def _is_layer(value: Any) -> bool:
    return isinstance(value, dict) and value.get("class_name") != "function"


def _is_functional(config: Any) -> bool:
    return isinstance(config, dict) and {"layers", "output_layers"} <= config.keys()


def _name_of(stored: dict[str, Any]) -> str:
    return str(stored["config"].get("name") if isinstance(stored["config"], dict) else "?")
