"""Layers and models with code of their own, for random models."""

from __future__ import annotations

import keras
from keras import layers


class Chain(layers.Layer):
    """Other layers one after the other, by code. It tells no config.

    Args:
        steps: The layers, which keep the shape.
        order: The numbers of the steps in the order in which they are called.
        hold: Whether they are held in a list, a dict, a tuple or in attributes.
        skip: Whether the input is added to what comes out.
    """

    def __init__(self, steps, order, hold="list", skip=False, **kwargs):
        super().__init__(**kwargs)
        self.order, self.hold, self.skip = list(order), hold, skip
        self.count = len(steps)
        if hold == "attributes":
            for number, step in enumerate(steps):
                setattr(self, f"step_{number}", step)
        elif hold == "dict":
            self.steps = {f"step_{number}": step for number, step in enumerate(steps)}
        else:
            self.steps = {"list": list, "tuple": tuple}[hold](steps)

    def build(self, shape):
        for step in self.all_steps():
            if not step.built:
                step.build(shape)

    def all_steps(self):
        if self.hold == "attributes":
            return [getattr(self, f"step_{number}") for number in range(self.count)]
        return list(self.steps.values() if self.hold == "dict" else self.steps)

    def call(self, x, training=None):
        y = x
        steps = self.all_steps()
        for step in [steps[number] for number in self.order]:
            y = step(y, training=training) if step._call_has_training_arg else step(y)
        return x + y if self.skip else y

    def compute_output_shape(self, shape):
        return shape


class ChainWithConfig(Chain):
    """The same with a config."""

    def get_config(self):
        steps = [keras.saving.serialize_keras_object(step) for step in self.all_steps()]
        more = {"steps": steps, "order": list(self.order), "hold": self.hold, "skip": self.skip}
        return {**super(Chain, self).get_config(), **more}

    @classmethod
    def from_config(cls, config):
        steps = [keras.saving.deserialize_keras_object(step) for step in config.pop("steps")]
        return cls(steps, **config)


class Net(keras.Model):
    """A model by code: another model, and a chain behind its last output."""

    def __init__(self, body, tail, **kwargs):
        super().__init__(**kwargs)
        self.body, self.tail = body, tail

    def call(self, x):
        outputs = self.body(x)
        return {"body": outputs, "tail": self.tail(keras.tree.flatten(outputs)[-1])}
