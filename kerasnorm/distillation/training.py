"""What `distill` hands to Keras: a model of logits, batches of answers, and a judge of weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from kerasnorm import keras_private
from kerasnorm.distillation.features import Feature
from kerasnorm.graph.graph import Graph
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.output_heads import Head
from kerasnorm.layers import masks
from kerasnorm.math import normalize
from kerasnorm.math.running_moments import RunningMoments

# What each answer counts beside the features. Answers to a few hundred samples are soon known by
# heart, and what is right inside gives right answers.
OF_ANSWERS = 0.1
# As many epochs in a row that bring nothing end the training, but no fewer than half of them: the
# first steps, which are large, often lead away from a start that was fitted.
_PATIENCE = 5


class Flat(keras.Model):
    """A model at inference, from flat inputs to the logits of its outputs, flat.

    Args:
        model: The model.
        model_graphs: Its graphs.
        heads: How to read its outputs.
        compared: What to compare with a teacher besides (`compared_at`); None for nothing.
    """

    def __init__(
        self, model: keras.Model, model_graphs: ModelGraphs, heads: list[Head], compared=None
    ):
        super().__init__(name=model.name)
        self.autocast = False  # of the inputs, which the model itself casts
        self.inner = model
        self._pack = packing(model_graphs)
        self._readers = [head.logits for head in heads]
        self._compared = compared
        self._errors: list[Any] = []
        self.built = True

    @property
    def losses(self):
        """How far it is from its teacher inside.

        No penalty on weights, which would pull the student away from what it is to say.
        """
        return self._errors

    def call(self, inputs, training=False):
        args, kwargs = self._pack(tree.flatten(inputs))
        if self._compared is not None:
            outputs, error = self._compared(*args, **kwargs)
            self._errors = [error]
        else:
            outputs = self.inner(*args, **kwargs, training=False)
        logits = []
        for read, output in zip(self._readers, tree.flatten(outputs), strict=True):
            logits.append(read(output))
            mask = keras_private.attached_mask(output)
            if mask is not None:
                keras_private.attach_mask(logits[-1], mask)
        return logits


def compared_at(
    features: Sequence[Feature], student: Graph, teacher: Graph, samples: Iterable[Any]
) -> Callable[..., tuple[Any, Any]]:
    """A function from a student's inputs to (its outputs, how far it is from its teacher inside).

    The mean over the features of mean (s − t)² / var t, which is 1 − R² of each.

    Args:
        features: Where to compare them.
        student: The graph of a model.
        teacher: That of another.
        samples: Batches of inputs, in the structure of the teacher's, to take var t from.
    """
    inside = keras.Model(teacher.inputs, [feature.teacher for feature in features])
    ends = tree.flatten(student.outputs)
    own = keras.Model(student.inputs, [*(f.student for f in features), *ends])
    seen = [RunningMoments() for _ in features]
    for sample in samples:
        for moments, tensor in zip(seen, tree.flatten(inside(sample, training=False)), strict=True):
            moments.add_rows(ops.convert_to_numpy(tensor).reshape(-1, tensor.shape[-1]))
    scales = [moments.typical_variance for moments in seen]
    kept = [number for number, scale in enumerate(scales) if scale > 0]

    def compared(inputs):
        expected = tree.flatten(inside(inputs, training=False))
        found = own(inputs, training=False)
        errors = [_mean_square(found[k], expected[k]) / scales[k] for k in kept]
        return found[len(features) :], sum(errors) / max(1, len(errors))

    return compared


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


def packing(model_graphs: ModelGraphs) -> Callable[[list], tuple[tuple, dict]]:
    """From flat inputs to what a model is called on."""
    root = model_graphs.root
    if root.arguments is None:
        return lambda flat: ((tree.pack_sequence_as(root.inputs, flat),), {})
    numbers = {id(t): n for n, t in enumerate(root.inputs)}
    return lambda flat: tree.map_structure(
        lambda v: flat[numbers[id(v)]] if id(v) in numbers else v, root.arguments
    )


class Batches(keras.utils.PyDataset):
    """Some samples of (inputs, targets) in batches.

    With a seed, in a new order for each epoch, and every batch full.
    """

    def __init__(self, inputs, targets, chosen, batch_size, seed=None):
        super().__init__()
        self._arrays = (tuple(inputs), tuple(targets))
        self._chosen = chosen
        self._size = min(batch_size, len(chosen))
        self._random = None if seed is None else np.random.default_rng(seed)

    def __len__(self):
        whole = len(self._chosen) / self._size
        return math.ceil(whole) if self._random is None else int(whole)

    def __getitem__(self, number):
        if self._random is not None and number == 0:
            self._chosen = self._random.permutation(self._chosen)
        rows = self._chosen[number * self._size : (number + 1) * self._size]
        return tree.map_structure(lambda a: a[rows], self._arrays)


class Best(keras.callbacks.Callback):
    """Keeps the weights whose loss on held-out samples is least; the first count too.

    Args:
        before: What was measured before the first epoch.
        epochs: How many there are to be.

    Attributes:
        found: What was measured with the best weights so far.
        first: The values of the trained variables as they were.
        best: Those of the best weights so far.
    """

    def __init__(self, before: dict[str, float], epochs: int):
        super().__init__()
        self.found = before
        self.waited = 0
        self.patience = max(_PATIENCE, epochs // 2)

    def set_model(self, model):
        super().set_model(model)
        self.variables = list(model.trainable_variables)
        self.first = self.best = [keras.ops.convert_to_numpy(v).copy() for v in self.variables]

    def on_epoch_end(self, epoch, logs=None):
        now = {k.removeprefix("val_"): v for k, v in (logs or {}).items() if k.startswith("val_")}
        least = self.found["loss"]
        if now["loss"] < least or (np.isnan(least) and np.isfinite(now["loss"])):
            self.found, self.waited = now, 0
            self.best = [keras.ops.convert_to_numpy(v).copy() for v in self.variables]
        else:
            self.waited += 1
        if self.waited >= self.patience or not np.isfinite(logs["loss"]):
            self.model.stop_training = True

    def restore(self, values):
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)
