"""What `distill` hands to Keras: a model of logits, batches of answers, and a judge of weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import numpy as np
from keras import tree

from kerasnorm.calibrate.answers import Head
from kerasnorm.rewrite import internals
from kerasnorm.rewrite.forest import Forest

# As many epochs in a row that bring nothing end the training.
PATIENCE = 5


class Flat(keras.Model):
    """A model at inference, from flat inputs to the logits of its outputs, flat."""

    def __init__(self, model: keras.Model, forest: Forest, heads: list[Head]):
        super().__init__(name=model.name)
        self.autocast = False  # of the inputs, which the model itself casts
        self.inner = model
        self._pack = _packing(forest)
        self._readers = [head.logits for head in heads]
        self.built = True

    @property
    def losses(self):
        """None: a penalty on weights would pull the student away from what it is to say."""
        return []

    def call(self, inputs):
        args, kwargs = self._pack(tree.flatten(inputs))
        outputs = tree.flatten(self.inner(*args, **kwargs, training=False))
        logits = []
        for read, output in zip(self._readers, outputs, strict=True):
            logits.append(read(output))
            mask = internals.attached_mask(output)
            if mask is not None:
                internals.attach_mask(logits[-1], mask)
        return logits


def _packing(forest: Forest) -> Callable[[list], tuple[tuple, dict]]:
    """From flat inputs to what a model is called on."""
    root = forest.root
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

    Attributes:
        found: What was measured with the best weights so far.
        first: The values of the trained variables as they were.
        best: Those of the best weights so far.
    """

    def __init__(self, before: dict[str, float]):
        super().__init__()
        self.found = before
        self.waited = 0

    def set_model(self, model):
        super().set_model(model)
        self.variables = list(model.trainable_variables)
        self.first = self.best = [np.array(v) for v in self.variables]

    def on_epoch_end(self, epoch, logs=None):
        now = {k.removeprefix("val_"): v for k, v in (logs or {}).items() if k.startswith("val_")}
        least = self.found["loss"]
        if now["loss"] < least or (np.isnan(least) and np.isfinite(now["loss"])):
            self.found, self.waited = now, 0
            self.best = [np.array(v) for v in self.variables]
        else:
            self.waited += 1
        if self.waited >= PATIENCE or not np.isfinite(logs["loss"]):
            self.model.stop_training = True

    def restore(self, values):
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)
