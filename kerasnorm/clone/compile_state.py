"""Compile a cloned model as its source is."""

from __future__ import annotations

import keras

from kerasnorm.clone.state import carry_values


def carry_compile_state(source: keras.Model, target: keras.Model) -> list[str]:
    """Compile a model anew with the loss, metrics and optimizer settings of another.

    Returns:
        Why it is not compiled, where its source is.
    """
    if not source.compiled:
        return []
    try:
        config = source.get_compile_config()
        if config:
            target.compile_from_config(config)
    except Exception as error:
        # a loss or metric of the user's own may fail in any way when it is made anew
        return [f"not compiled: the source's compile state cannot be copied ({error})"]
    if not target.compiled:
        return ["not compiled: the source does not tell how it was compiled"]
    losses = [keras.tree.flatten(model.loss) for model in (source, target)]
    for loss, new in zip(*losses, strict=True):
        if isinstance(loss, keras.losses.Loss):
            carry_values(loss, new)
    return []
