"""Samples and the teacher's answers to them, batch by batch."""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import tree


class DistillationDataset(keras.utils.PyDataset):
    """Some samples of (inputs, targets) in batches.

    With a seed, in a new order for each epoch, and every batch full. The order depends on the
    number of the epoch alone, however often Keras looks at a batch in between.

    Args:
        inputs: The model's inputs, flat.
        targets: The teacher's logits for each output, flat.
        samples: The numbers of the samples.
        batch_size: Of the batches, at most.
        seed: Of the order; None for that of `samples`.
    """

    def __init__(self, inputs, targets, samples, batch_size, seed=None):
        super().__init__()
        self._arrays = (tuple(inputs), tuple(targets))
        self._samples = samples
        self._size = min(batch_size, len(samples))
        self._seed, self._epoch = seed, 0
        self._order = samples
        self.on_epoch_begin()

    def __len__(self):
        batches = len(self._samples) / self._size
        return math.ceil(batches) if self._seed is None else int(batches)

    def on_epoch_begin(self):
        if self._seed is not None:
            random = np.random.default_rng((self._seed, self._epoch))
            self._order = random.permutation(self._samples)

    def on_epoch_end(self):
        self._epoch += 1

    def __getitem__(self, number):
        rows = self._order[number * self._size : (number + 1) * self._size]
        return tree.map_structure(lambda a: a[rows], self._arrays)
