"""How fast a student learns: learning rate, optimizer, and whether XLA compiles the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from kerasnorm import keras_private

# The learning rate rises over one step in ten.
_WARM_UP = 0.1
# The highest, as a share of each variable's size.
LEARNING_RATE = 1e-2


@keras.saving.register_keras_serializable(package="kerasnorm")
class RelativeAdam(keras.optimizers.Adam):
    """Adam whose learning rate is a share of each variable's size.

    Args:
        *args: See `keras.optimizers.Adam`.
        sizes: What a learning rate of 1 is for each of the variables, in their order.
        **kwargs: See `keras.optimizers.Adam`.

    Attributes:
        factor: A variable that every step is multiplied by, 1 at first.
    """

    def __init__(self, *args, sizes=(), **kwargs):
        # the gradient of a variable is as small as the variable is large
        super().__init__(*args, **{"epsilon": 1e-12, **kwargs})
        self.sizes = [float(size) for size in sizes]
        self.factor: Any = None

    def build(self, variables):
        if self.factor is None:
            self.factor = self.add_variable((), initializer="ones", name="factor")
        super().build(variables)

    @property
    def slots(self) -> list[Any]:
        """What is kept of past gradients."""
        first = [self.factor, self.iterations, getattr(self, "_learning_rate", None)]
        return [v for v in self.variables if all(v is not other for other in first)]

    def update_step(self, gradient, variable, learning_rate):
        size = self.sizes[keras_private.variable_index(self, variable)]
        super().update_step(gradient, variable, learning_rate * size * self.factor)

    def get_config(self):
        return {**super().get_config(), "sizes": self.sizes}


def optimizer_for(
    student: keras.Model, given: Any, learning_rate: float, steps: int, sizes: Sequence[float]
) -> Any:
    """The optimizer that was asked for, or `RelativeAdam`; float16 gets a scaled loss.

    Args:
        student: The model that is trained.
        given: Anything `Model.compile` takes; None for `RelativeAdam`.
        learning_rate: The highest that this gets.
        steps: How many there are.
        sizes: What a learning rate of 1 is for each trainable variable of the student.
    """
    if given is not None:
        own = keras.optimizers.get(given)
        optimizer = own.from_config(own.get_config())  # the caller's knows no variables yet
    else:
        warm_up = max(1, int(_WARM_UP * steps))
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0, max(1, steps - warm_up), warmup_target=learning_rate, warmup_steps=warm_up
        )
        optimizer = RelativeAdam(schedule, sizes=sizes)
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    low = any(layer.compute_dtype == "float16" for layer in keras_private.sublayers(student))
    return keras.optimizers.LossScaleOptimizer(optimizer) if low and not scales else optimizer


def jit_compile_for(given: bool | None) -> Any:
    """XLA's gradients of convolutions are slow on a CPU, those of depthwise ones very slow."""
    if given is not None:
        return given
    import tensorflow as tf

    return "auto" if tf.config.list_logical_devices("GPU") else False
