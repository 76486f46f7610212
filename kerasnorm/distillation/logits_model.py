"""A model as Keras trains and evaluates it here: at inference, from flat inputs to flat logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import tree

from kerasnorm import keras_private
from kerasnorm.distillation.feature_loss import FeatureLoss
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.output_heads import Head


class LogitsModel(keras.Model):
    """A model at inference, from flat inputs to the logits of its outputs, flat.

    What the model's layers do to their own state on the way (statistics of calls fixed to training,
    seeds, penalties) is dropped.

    Args:
        model: The model.
        model_graphs: Its graphs.
        heads: How to read its outputs.
        feature_loss: What to compare with a teacher besides; None for nothing.
    """

    def __init__(
        self,
        model: keras.Model,
        model_graphs: ModelGraphs,
        heads: list[Head],
        feature_loss: FeatureLoss | None = None,
    ):
        super().__init__(name=model.name)
        self.autocast = False  # of the inputs, which the model itself casts
        self.inner = model
        self._pack = packing(model_graphs)
        self._readers = [head.logits for head in heads]
        self._feature_loss = feature_loss
        self._feature_losses: list[Any] = []
        self.built = True

    @property
    def losses(self):
        """How far it is from its teacher inside.

        No penalty on weights, which would pull the student away from what it is to say.
        """
        return self._feature_losses

    def call(self, inputs, training=False):
        args, kwargs = self._pack(tree.flatten(inputs))
        with keras.StatelessScope(initialize_variables=False):
            if self._feature_loss is None:
                outputs = self.inner(*args, **kwargs, training=False)
            else:
                outputs, loss = self._feature_loss(*args, **kwargs)
                self._feature_losses = [loss]
        logits = []
        for read, output in zip(self._readers, tree.flatten(outputs), strict=True):
            logits.append(read(output))
            mask = keras_private.attached_mask(output)
            if mask is not None:
                keras_private.attach_mask(logits[-1], mask)
        return logits


def packing(model_graphs: ModelGraphs) -> Callable[[list], tuple[tuple, dict]]:
    """From flat inputs to what a model is called on."""
    root = model_graphs.root
    if root.arguments is None:
        return lambda flat: ((tree.pack_sequence_as(root.inputs, flat),), {})
    numbers = {id(t): n for n, t in enumerate(root.inputs)}
    return lambda flat: tree.map_structure(
        lambda v: flat[numbers[id(v)]] if id(v) in numbers else v, root.arguments
    )
