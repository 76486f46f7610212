"""Calling a layer with other values in place of its variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras


def functional_call(layer: keras.Layer, values: Mapping[int, Any], *args, **kwargs):
    """Call a built layer with other values in place of some of its variables, for this call only.

    Gradients flow into `values`, the variables themselves stay as they are, and what the call
    leaves behind (losses, seeds, statistics) is kept.

    Args:
        layer: A built layer.
        values: Tensors by the `id` of the variable that each stands in for.

    Raises:
        ValueError: If one of these is not a variable of the layer: the layer would not notice.
    """
    # a stateful recurrent layer does not list its states among its variables
    variables = [*layer.variables, *keras.tree.flatten(getattr(layer, "states", None) or [])]
    strange = len(values.keys() - {id(v) for v in variables})
    if strange:
        raise ValueError(
            "Values can stand in for variables of the layer only. Received: "
            f"{len(values)} value(s) for layer '{layer.name}', {strange} of them for something "
            "that is no variable of it, as a kernel is with LoRA or quantized. Use "
            "kerasnorm.fold_norms first, and enable LoRA or quantize the folded layer."
        )
    with keras.StatelessScope(
        [(v, values.get(id(v), v)) for v in variables],
        collect_losses=True,
        initialize_variables=False,
    ) as scope:
        before = [scope.get_current_value(v) for v in variables]
        outputs = layer(*args, **kwargs)
        after = [scope.get_current_value(v) for v in variables]
    for variable, old, new in zip(variables, before, after, strict=True):
        if new is not old:
            variable.assign(new)
    for loss in scope.losses:
        layer.add_loss(loss)
    return outputs
