"""How far a student is from its teacher at the ends of blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops, tree

from kerasnorm import keras_private
from kerasnorm.distillation.features import Feature
from kerasnorm.graph.graph import Graph
from kerasnorm.layers import masks
from kerasnorm.math import normalize
from kerasnorm.math.running_moments import RunningMoments


class FeatureLoss:
    """The mean over features of mean (s − t)² / var t, which is 1 − R² of each.

    A feature whose t does not vary is left out.

    Args:
        features: Where to compare.
        student: The graph of a model.
        teacher: That of another.
        samples: Batches of inputs, in the structure of the teacher's, to take var t from.
    """

    def __init__(
        self, features: Sequence[Feature], student: Graph, teacher: Graph, samples: Iterable[Any]
    ):
        self._teacher = keras.Model(teacher.inputs, [feature.teacher for feature in features])
        ends = tree.flatten(student.outputs)
        self._student = keras.Model(student.inputs, [*(f.student for f in features), *ends])
        self._scales = [moments.typical_variance for moments in self._moments(features, samples)]

    def _moments(
        self, features: Sequence[Feature], samples: Iterable[Any]
    ) -> Sequence[RunningMoments]:
        found = [RunningMoments() for _ in features]
        for sample in samples:
            with keras.StatelessScope(initialize_variables=False):
                answers = tree.flatten(self._teacher(sample, training=False))
            for moments, answer in zip(found, answers, strict=True):
                moments.add_rows(ops.convert_to_numpy(answer).reshape(-1, answer.shape[-1]))
        return found

    def __call__(self, inputs: Any) -> tuple[list[Any], Any]:
        """The student's outputs, flat, and the loss."""
        expected = tree.flatten(self._teacher(inputs, training=False))
        received = self._student(inputs, training=False)
        outputs = received[len(self._scales) :]
        losses = [
            _mean_square(s, t) / scale
            for s, t, scale in zip(received, expected, self._scales, strict=False)
            if scale > 0
        ]
        return outputs, sum(losses, ops.zeros(())) / max(1, len(losses))


def _mean_square(received: Any, expected: Any) -> Any:
    """The mean of (s − t)²; masked places do not count."""
    wide = keras.backend.result_type(received.dtype, "float32")
    expected = ops.stop_gradient(ops.cast(expected, wide))
    squares = ops.square(ops.cast(received, wide) - expected)
    mask = keras_private.attached_mask(received)
    if mask is None:
        return ops.mean(squares)
    weights = masks.as_weights(mask, squares, None)
    mean = normalize.weighted_mean(squares, tuple(range(len(squares.shape))), weights)
    return ops.reshape(mean, ())
