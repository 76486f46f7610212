"""Small models whose layers are called by code of the user's own."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

BN = layers.BatchNormalization


class Block(layers.Layer):
    """Dense and BatchNorm as attributes."""

    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units, name="dense")
        self.norm = BN(name="norm")

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((*shape[:-1], self.units))

    def call(self, x, training=None):
        return ops.relu(self.norm(self.dense(x), training=training))

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Outer(layers.Layer):
    """A block in a layer of the user's own."""

    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.block = Block(units, name="block")
        self.norm = BN(name="norm")

    def call(self, x):
        return self.norm(self.block(x))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class InAttributes(keras.Model):
    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.norm = layers.Dense(units, name="dense"), BN(name="norm")
        self.head = layers.Dense(3, name="head")

    def call(self, x):
        return self.head(ops.relu(self.norm(self.dense(x))))


class InList(keras.Model):
    def __init__(self, depth=2, **kwargs):
        super().__init__(**kwargs)
        self.steps = []
        for number in range(depth):
            self.steps.append(layers.Dense(4, name=f"dense_{number}"))
            self.steps.append([BN(name=f"norm_{number}")])

    def call(self, x):
        for step in self.steps:
            x = step[0](x) if isinstance(step, list) else ops.tanh(step(x))
        return x


class InTuple(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pair = (layers.Dense(4, name="dense"), BN(name="norm"))

    def call(self, x):
        for step in self.pair:
            x = step(x)
        return x


class InDict(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = {"dense": layers.Dense(4, name="dense"), "norm": BN(name="norm")}

    def call(self, x):
        return self.parts["norm"](self.parts["dense"](x))


class TwoDeep(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.outer = Outer(4, name="outer")
        self.head = layers.Dense(2, name="head")

    def call(self, x):
        return self.head(self.outer(x))


class BlockTwice(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.block = Block(4, name="block")

    def call(self, x):
        return self.block(self.block(x))


class NormTwice(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.norm = layers.Dense(4, name="dense"), BN(name="norm")

    def call(self, x):
        return self.norm(ops.relu(self.norm(self.dense(x))))


@keras.saving.register_keras_serializable("tiny_code")
class OneHot(layers.Layer):
    """Code that takes whole numbers only."""

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size, self.norm = size, BN(name="norm")

    def build(self, shape):
        self.norm.build((*shape, self.size))

    def call(self, x):
        if not keras.backend.is_int_dtype(x.dtype):
            raise TypeError(x.dtype)
        return self.norm(ops.one_hot(x, self.size))

    def compute_output_shape(self, shape):
        return (*shape, self.size)


class RawTensorFlow(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = BN(name="norm")

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x):
        return tf.nn.relu(self.norm(x))

    def compute_output_shape(self, shape):
        return shape


class Branching(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = BN(name="norm")

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x):
        return self.norm(x) if ops.max(x) > -1e9 else x

    def compute_output_shape(self, shape):
        return shape


class NoKeywords(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.units = units
        self.dense, self.norm = layers.Dense(units, name="dense"), BN(name="norm")

    def call(self, x):
        return self.norm(self.dense(x))

    def get_config(self):
        return {"units": self.units}


class DictInput(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.left, self.right = layers.Dense(4, name="left"), layers.Dense(4, name="right")
        self.norm_left, self.norm_right = BN(name="norm_left"), BN(name="norm_right")

    def call(self, inputs):
        left = self.norm_left(self.left(inputs["b"]))
        right = self.norm_right(self.right(inputs["a"]))
        return {"sum": left + right, "left": left}


class Arguments(layers.Layer):
    """Several call arguments, tensors and constants."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.left, self.right = layers.Dense(4, name="left"), layers.Dense(4, name="right")
        self.norm = BN(name="norm")

    def call(self, a, b=None, scale=1.0):
        return self.norm(self.left(a)) + scale * self.right(b)


class Either(layers.Layer):
    """Code that calls other layers for other arguments."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.norm = layers.Dense(4, name="dense"), BN(name="norm")

    def call(self, x, plain=False):
        return self.dense(x) if plain else self.norm(self.dense(x))


class TrainingInside(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.live = layers.Dense(4, name="dense"), BN(name="live")
        self.stored = BN(name="stored")

    def call(self, x, training=None):
        x = self.live(self.dense(x), training=True)
        return self.stored(ops.relu(x), training=training)


class Within(layers.Layer):
    """A BatchNorm in code that knows no `training`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = BN(name="norm")

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x):
        return self.norm(x)


class Steps(layers.Layer):
    """Dense, and then layers by the names of attributes, each told its own `training`."""

    def __init__(self, steps, **kwargs):
        super().__init__(**kwargs)
        self.steps = steps
        self.dense = layers.Dense(4, name="dense")
        self.dropout = layers.Dropout(0.5, name="dropout")
        self.norm, self.within = BN(name="norm"), Within(name="within")

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build(shape)
        self.within.build(shape)

    def call(self, x):
        x = self.dense(x)
        for name, training in self.steps.items():
            told = {} if training is None else {"training": training}
            if name == "aside":
                self.dropout(x, **told)
            else:
                x = getattr(self, name)(x, **told)
        return x


class WithSubmodels(keras.Model):
    """Models with graphs inside a model with code."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stem = keras.Sequential(
            [keras.Input((6, 6, 3)), layers.Conv2D(4, 3, name="conv"), BN(name="norm")],
            name="stem",
        )
        inputs = keras.Input((4, 4, 4))
        x = BN(name="norm")(layers.ReLU(name="relu")(inputs))
        self.body = keras.Model(inputs, x, name="body")
        self.pool = layers.GlobalAveragePooling2D(name="pool")

    def call(self, x):
        return self.pool(self.body(self.stem(x)))


class NormCell(layers.Layer):
    """A recurrent cell with a BatchNorm in it."""

    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units
        self.kernel = layers.Dense(units, name="kernel")
        self.norm = BN(name="norm")

    def build(self, shape):
        self.kernel.build(shape)
        self.norm.build((None, self.units))

    def call(self, x, states, training=None):
        h = ops.tanh(self.norm(self.kernel(x)) + states[0])
        return h, [h]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Named(BN):
    """A BatchNorm subclass that computes as its base does."""


class Doubled(BN):
    """A BatchNorm subclass that computes in its own way."""

    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


def called(model: keras.Model, x) -> keras.Model:
    """The model, called once, its weights random."""
    model(x)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if variable.path.endswith("bias"):
            variable.assign(rng.normal(size=variable.shape))
    return model


def _rows(*shape):
    return np.random.default_rng(3).normal(size=(16, *shape)).astype("float32")


# name: the model and the batch it was first called on
SUBCLASSED = {
    "in attributes": lambda: (InAttributes(5, name="net"), _rows(4)),
    "in a list": lambda: (InList(name="net"), _rows(4)),
    "in a tuple": lambda: (InTuple(name="net"), _rows(4)),
    "in a dict": lambda: (InDict(name="net"), _rows(4)),
    "two deep": lambda: (TwoDeep(name="net"), _rows(4)),
    "a block called twice": lambda: (BlockTwice(name="net"), _rows(4)),
    "a norm called twice": lambda: (NormTwice(name="net"), _rows(4)),
    "a constructor without keywords": lambda: (NoKeywords(4), _rows(4)),
    "a dict of inputs": lambda: (DictInput(name="net"), {"a": _rows(3), "b": _rows(5)}),
    "training inside": lambda: (TrainingInside(name="net"), _rows(4)),
    "models inside": lambda: (WithSubmodels(name="net"), _rows(6, 6, 3)),
    "a sequence": lambda: (InAttributes(name="net"), _rows(6, 4)),
}


def subclassed(kind: str):
    """A subclassed model of the table, called on the batch that is returned beside it."""
    keras.utils.set_random_seed(0)
    model, x = SUBCLASSED[kind]()
    return called(model, x), x
