"""How far a student's answers are from its teacher's."""

from __future__ import annotations

import functools

import keras
import numpy as np
from keras import ops

from kerasnorm.graph.output_heads import Head
from kerasnorm.math.running_moments import RunningMoments

# Nats below which answers are always the same, but for rounding.
_NOTHING = 1e-6


@keras.saving.register_keras_serializable(package="kerasnorm")
class Disagreement(keras.losses.Loss):
    """How far logits s are from a teacher's logits t.

    - softmax: KL(p‖q) = Σ_i p_i·(log p_i − log q_i), p = softmax(t), q = softmax(s);
    - sigmoid: the same of p = σ(t), q = σ(s), the mean over the units;
    - linear: (s − t)² / `scale`, the mean over the last axis.

    All are 0 where the two agree, and above elsewhere. Masked positions do not count.

    Args:
        kind: "softmax", "sigmoid" or "linear".
        axis: Of the classes.
        scale: The variance of t, for linear outputs: the loss is then 1 − R².
    """

    def __init__(self, kind="linear", axis=-1, scale=1.0, name="disagreement", **kwargs):
        super().__init__(name=name, **kwargs)
        self.kind, self.axis, self.scale = kind, axis, scale

    def call(self, y_true, y_pred):
        if self.kind == "softmax":
            log_p = ops.log_softmax(y_true, self.axis)
            log_q = ops.log_softmax(y_pred, self.axis)
            return ops.sum(ops.exp(log_p) * (log_p - log_q), self.axis)
        if self.kind == "sigmoid":
            p = ops.sigmoid(y_true)
            between = p * (ops.softplus(-y_pred) - ops.softplus(-y_true)) + (1 - p) * (
                ops.softplus(y_pred) - ops.softplus(y_true)
            )
            return ops.mean(between, -1)
        return ops.mean(ops.square(y_pred - y_true), -1) / self.scale

    def get_config(self):
        config = {"kind": self.kind, "axis": self.axis, "scale": self.scale, "name": self.name}
        return {**super().get_config(), **config}


def disagreement(head: Head, logits: np.ndarray) -> Disagreement:
    """The loss against a teacher's logits over a data set."""
    found = RunningMoments()
    found.add_rows(logits.reshape(-1, logits.shape[-1] if logits.ndim > 1 else 1))
    # an output that does not vary is compared in its own units
    return Disagreement(head.kind, head.axis, found.typical_variance or 1.0)


class Distance:
    """How far other logits are from a teacher's: `Disagreement`, of what the teacher says.

    It is infinite where they are not finite. Samples for which the teacher's own are not do not
    count.

    Args:
        head: How to read the output.
        logits: The teacher's logits, sample by sample.
    """

    def __init__(self, head: Head, logits: np.ndarray):
        self._head = head
        self._rows = np.isfinite(logits).reshape(len(logits), -1).all(1)
        self._expected = logits[self._rows]
        self._loss = disagreement(head, self._expected) if len(self._expected) else None

    def of(self, logits: np.ndarray) -> float:
        """That of the logits of another model for the same samples."""
        if self._loss is None:
            return 0.0
        found = float(self._loss(self._expected, logits[self._rows]))
        return found if np.isfinite(found) else np.inf

    @functools.cached_property
    def information(self) -> float:
        """How many nats the teacher's answers are from the mean answer, 1 at most.

        It is 1 for numbers, and where the answer is always the same. What hardly ever says yes says
        little, and all of it may be lost within a small distance.
        """
        head = self._head
        if self._loss is None or head.kind == "linear":
            return 1.0
        expected = self._expected
        p = ops.sigmoid(expected) if head.kind == "sigmoid" else ops.softmax(expected, head.axis)
        others = tuple(n for n in range(expected.ndim) if n != head.axis % expected.ndim)
        mean = head.logits(ops.mean(p, others, keepdims=True))
        found = float(self._loss(expected, ops.broadcast_to(mean, expected.shape)))
        return min(1.0, found) if found > _NOTHING else 1.0


def joined(parts: list[list[np.ndarray]]) -> list[np.ndarray]:
    """The outputs of several parts of the samples as one array each.

    Where the shape of an output goes with the size of a part, those like the first count.
    """
    columns = [[np.atleast_1d(y) for y in column] for column in zip(*parts, strict=True)]
    return [
        np.concatenate([y for y in column if y.shape[1:] == column[0].shape[1:]])
        for column in columns
    ]


def agreement(head: Head) -> keras.metrics.Metric | None:
    """How often two models give the same answer; None for outputs that are no probabilities."""
    if head.kind == "linear":
        return None

    def same(y_true, y_pred):
        found = ops.cast(ops.equal(head.answers(y_true), head.answers(y_pred)), "float32")
        return ops.mean(found, -1) if head.kind == "sigmoid" else found

    return keras.metrics.MeanMetricWrapper(same, name="agreement")
