"""A layer called as Keras 2 called it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import tree

from kerasnorm import keras_private
from kerasnorm.errors import LoadError
from kerasnorm.graph.keras_add import is_added_in_place
from kerasnorm.loading.legacy.built_layer import BuiltLayer
from kerasnorm.loading.legacy.legacy_layers import (
    BIASED,
    MERGES,
    SUMS,
    InTraining,
    adds_bias_elsewhere,
)

_RECURRENT = (keras.layers.RNN, keras.layers.Bidirectional)
# Keras 3 hands a mask on through these, Keras 2 did not.
_STOP_MASKS = (keras.layers.Identity, keras.layers.Normalization, keras.layers.Rescaling)
_IN_PLACE = "adds along the axis that Keras 2 added along, which is another in Keras 3"


def call_as_keras2(
    built: BuiltLayer, log_repair: Callable[[str], None], inputs: Any, /, **arguments: Any
) -> Any:
    """What a layer gives for some tensors; where Keras 3 would do otherwise, it is replaced.

    Args:
        built: The layer, replaced in place.
        log_repair: Tells the log of a repair to it.
        inputs: The first argument.
        **arguments: The others; None counts as not given.

    Raises:
        LoadError: If Keras 3 cannot be made to do what Keras 2 did.
    """
    given = {key: value for key, value in arguments.items() if value is not None}
    training = given.pop("training", None)
    if training is not None and bool(training):
        _fix_training(built, log_repair)
    if isinstance(inputs, list) and _is_recurrent(built.layer):
        inputs, given["initial_state"] = inputs[0], inputs[1:]  # as further inputs
    if type(built.layer) in MERGES and not isinstance(inputs, list):
        inputs = [inputs]  # unpacked from a list of one
    masks = [keras_private.attached_mask(tensor) for tensor in tree.flatten(inputs)]
    if any(mask is not None for mask in masks):
        _keep_masks(built, log_repair, masks)
    if type(built.layer) in SUMS:
        _sum_in_place(built, log_repair, inputs)
    elif isinstance(inputs, keras.KerasTensor):
        add_bias_in_place(built, log_repair, inputs.shape)
    assert built.layer is not None  # operations are called otherwise
    layer = built.replacement or built.layer
    return layer(inputs, **given)


def _is_recurrent(layer: Any) -> bool:
    return isinstance(layer, _RECURRENT) or isinstance(getattr(layer, "cell", None), keras.Layer)


def _fix_training(built: BuiltLayer, log_repair: Callable[[str], None]) -> None:
    if built.replacement is None and built.layer is not None:
        built.replacement = InTraining(built.layer, name=f"{built.layer.name}_in_training")
        log_repair(
            "called with `training=True`, which Keras 3 does not keep: wrapped to run so always"
        )


def _sum_in_place(built: BuiltLayer, log_repair: Callable[[str], None], inputs: Any) -> None:
    first, *others = [tuple(tensor.shape) for tensor in inputs]
    layer = built.layer
    if layer is None or built.replacement is not None:
        return
    if not all(is_added_in_place(first, other) for other in others):
        built.replacement = SUMS[type(layer)].from_config(layer.get_config())
        log_repair(_IN_PLACE)


def add_bias_in_place(
    built: BuiltLayer, log_repair: Callable[[str], None], input_shape: tuple[int | None, ...]
) -> None:
    """Have a layer that is going to be called add its bias where Keras 2 added it.

    Args:
        built: The layer, replaced in place where Keras 3 would not.
        log_repair: Tells the log of a repair to it.
        input_shape: Of its input, batch included.

    Raises:
        LoadError: If it would have to be replaced after it was called, or in another layer.
    """
    layer: Any = built.layer
    if isinstance(layer, keras.layers.TimeDistributed):
        refused = adds_bias_elsewhere(layer.layer, (input_shape[0], *input_shape[2:]))
    elif adds_bias_elsewhere(layer, input_shape):
        if not layer.built:
            built.layer = BIASED[type(layer)].from_config(layer.get_config())
            log_repair(_IN_PLACE)
        refused = layer.built
    else:
        return
    if refused:
        raise LoadError(
            "Keras 3 would add its bias along another axis.",
            layer=built.name,
            hint="Build that part of the model anew and load the weights into it.",
        )


def _keep_masks(built: BuiltLayer, log_repair: Callable[[str], None], masks: list[Any]) -> None:
    layer = built.layer
    if isinstance(layer, _STOP_MASKS):
        raise LoadError(
            f"{type(layer).__name__} ended a mask in Keras 2 and hands it on in Keras 3.",
            layer=built.name,
            hint="Build that part of the model anew and load the weights into it.",
        )
    same = all(mask is masks[0] for mask in masks)
    merge = MERGES.get(type(layer)) if layer is not None and not same else None
    if merge is not None and layer is not None and built.replacement is None:
        built.replacement = merge.from_config(layer.get_config())
        log_repair("masks are joined as in Keras 2: true where all of them are")
