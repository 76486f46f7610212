"""How fast a student learns: learning rate, optimizer, and whether XLA compiles the steps."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kerasnorm import keras_private

# The learning rate rises over one step in twenty.
_WARM_UP = 0.05


def learning_rate_for(loss: float, steps: int) -> float:
    """What fits how far the student is from its teacher; a loss that is no number asks for little.

    Of those tried, 0.001 to 0.003 was best for networks swapped to layer norm (loss 0.02), 0.01
    for the same to cosine norm (0.05 to 0.2); a network at 0.3 got lost with 0.01 in 21 steps.
    """
    least, most = 3e-4, 1e-2
    rate = float(np.clip(0.1 * loss, least, most)) if np.isfinite(loss) else least
    return rate * min(1.0, (steps / 400) ** 0.5)


def optimizer_for(student: keras.Model, given: Any, learning_rate: float, steps: int) -> Any:
    """The optimizer that was asked for, or Adam; float16 gets a scaled loss.

    Args:
        student: The model that is trained.
        given: Anything `Model.compile` takes; None for Adam.
        learning_rate: The highest that Adam gets.
        steps: How many there are.
    """
    if given is not None:
        own = keras.optimizers.get(given)
        optimizer = own.from_config(own.get_config())  # the caller's knows no variables yet
    else:
        warm_up = max(1, int(_WARM_UP * steps))
        optimizer = keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(
                0.0, max(1, steps - warm_up), warmup_target=learning_rate, warmup_steps=warm_up
            )
        )
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    low = any(layer.compute_dtype == "float16" for layer in keras_private.sublayers(student))
    return keras.optimizers.LossScaleOptimizer(optimizer) if low and not scales else optimizer


def jit_compile_for(given: bool | None) -> Any:
    """XLA's gradients of convolutions are slow on a CPU, those of depthwise ones very slow."""
    if given is not None:
        return given
    import tensorflow as tf

    return "auto" if tf.config.list_logical_devices("GPU") else False
