"""Penalties and constraints that mean a weight as it was before a scale was folded into it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import constraints, ops, regularizers


@keras.saving.register_keras_serializable(package="kerasnorm")
class RescaledRegularizer(regularizers.Regularizer):
    """The penalty of a weight W that is kept as U = a·W + c: R((U − c) · factor), factor = 1/a.

    Args:
        regularizer: R, in any form that Keras takes.
        factor: Numbers that broadcast against the weight; 0 for what a = 0 has erased.
        offset: c, numbers that broadcast against the weight.

    Example:

    >>> penalty = RescaledRegularizer(keras.regularizers.L2(0.1), [0.5, 2.0])
    >>> round(float(penalty(np.array([[2.0, 1.0]], "float32"))), 6)
    0.5
    """

    def __init__(self, regularizer: Any, factor: Any, offset: Any = 0.0):
        self.regularizer = regularizers.get(regularizer)
        self.factor = np.asarray(factor, "float64")
        self.offset = np.asarray(offset, "float64")

    def __call__(self, x):
        factor, offset = (ops.cast(value, x.dtype) for value in (self.factor, self.offset))
        return self.regularizer((x - offset) * factor)

    def get_config(self):
        return {
            "regularizer": regularizers.serialize(self.regularizer),
            "factor": self.factor.tolist(),
            "offset": self.offset.tolist(),
        }


@keras.saving.register_keras_serializable(package="kerasnorm")
class RescaledConstraint(constraints.Constraint):
    """The constraint of a weight W that is kept as U = a·W + c: a · C((U − c)/a) + c.

    Args:
        constraint: C, in any form that Keras takes.
        scale: a, numbers that broadcast against the weight; entries where it is 0 stay.
        offset: c, numbers that broadcast against the weight.

    Example:

    >>> constraint = RescaledConstraint(keras.constraints.MaxNorm(1.0), [2.0])
    >>> float(constraint(np.array([[4.0]], "float32"))[0, 0])
    2.0
    """

    def __init__(self, constraint: Any, scale: Any, offset: Any = 0.0):
        self.constraint = constraints.get(constraint)
        self.scale = np.asarray(scale, "float64")
        self.offset = np.asarray(offset, "float64")

    def __call__(self, w):
        scale, offset = (ops.cast(value, w.dtype) for value in (self.scale, self.offset))
        erased = ops.equal(scale, 0)
        divisor = ops.where(erased, ops.ones_like(scale), scale)
        constrained = self.constraint((w - offset) / divisor) * divisor + offset
        return ops.where(erased, w, constrained)

    def get_config(self):
        return {
            "constraint": constraints.serialize(self.constraint),
            "scale": self.scale.tolist(),
            "offset": self.offset.tolist(),
        }
