"""Layers that keep state, and functions of themselves, in all the ways that Python has.

Each kind is what a constructor keeps (`keep(layer)`) and how `call` uses it (`use(layer, x)`).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import weakref
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers


class Pair(NamedTuple):
    first: Any
    second: Any


class Holder:
    """An object of the user's own."""

    def __init__(self, held):
        self.held = held


@dataclasses.dataclass(slots=True)
class SlottedHolder:
    held: Any


class Caller:
    """A function of a layer as an object."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        return self.layer.scaled(x)


def weight(layer, name="scale", **arguments):
    return layer.add_weight(
        shape=(4,), initializer=keras.initializers.Constant(2.0), name=name, **arguments
    )


def kept(name, make, factor):
    """A kind that keeps one thing, of which `factor` gives what the input is multiplied by."""

    def keep(layer):
        setattr(layer, name, make(layer))

    return keep, lambda layer, x: x * factor(getattr(layer, name))


def _variable():
    return keras.Variable([1.0, 2.0, 3.0, 4.0])


def _array():
    return np.arange(1.0, 5.0, dtype="float32")


def _dense():
    dense = layers.Dense(4, name="hidden")
    dense.build((None, 4))
    return dense


def _keep_seed(layer):
    layer.seeds = [keras.random.SeedGenerator(3)]
    layer.seeds[0].next()
    layer.seeds.append(keras.random.SeedGenerator())


def _keep_metric(layer):
    layer.seen = {"mean": keras.metrics.Mean()}
    layer.seen["mean"].update_state([1.0, 2.0])


def _keep_untracked(layer):
    vars(layer)["hidden"] = _dense()


def _keep_penalized(layer):
    layer.scale = weight(layer, regularizer=lambda w: keras.ops.sum(w * layer.other))
    layer.other = weight(layer, name="other", trainable=False)


STATE = {
    "a weight": kept("scale", weight, lambda w: w),
    "a weight that is not trained": kept(
        "scale", lambda layer: weight(layer, trainable=False), lambda w: w
    ),
    "a variable": kept("scale", lambda _: _variable(), lambda w: w),
    "a variable in a list": kept("scales", lambda _: [_variable()], lambda w: w[0]),
    "a variable in a dict": kept("scales", lambda _: {"a": [_variable()]}, lambda w: w["a"][0]),
    "a variable in an ordered dict": kept(
        "scales", lambda _: collections.OrderedDict(a=_variable()), lambda w: w["a"]
    ),
    "a variable in a named tuple": kept(
        "scales", lambda _: Pair(_variable(), 1), lambda w: w.first
    ),
    "a variable in a deque": kept(
        "scales", lambda _: collections.deque([_variable()], 3), lambda w: w[0]
    ),
    "a variable in an object": kept("holder", lambda _: Holder(_variable()), lambda h: h.held),
    "a variable in slots": kept("holder", lambda _: SlottedHolder(_variable()), lambda h: h.held),
    "a variable of TensorFlow": kept("raw", lambda _: tf.Variable(_array()), lambda w: w),
    "a module of TensorFlow": (
        lambda layer: setattr(layer, "module", tf.Module()) or setattr(
            layer.module, "raw", tf.Variable(_array())
        ),
        lambda layer, x: x * layer.module.raw,
    ),
    "a generator of TensorFlow": (
        lambda layer: setattr(layer, "random", tf.random.Generator.from_seed(3)),
        lambda layer, x: x,
    ),
    "an array": kept("array", lambda _: _array(), lambda w: w),
    "an array in a tuple": kept("arrays", lambda _: (1, (_array(),)), lambda w: w[1][0]),
    "an array in an object": kept("holder", lambda _: Holder([_array()]), lambda h: h.held[0]),
    "seeds": (_keep_seed, lambda layer, x: x),
    "a metric": (_keep_metric, lambda layer, x: x),
    "an optimizer": (
        lambda layer: setattr(layer, "optimizers", [keras.optimizers.Adam()]),
        lambda layer, x: x,
    ),
    "a layer in a set": (
        lambda layer: setattr(layer, "steps", {_dense()}),
        lambda layer, x: next(iter(layer.steps))(x),
    ),
    "a layer as a key": (
        lambda layer: setattr(layer, "steps", {_dense(): 2.0}) or setattr(
            layer, "step", next(iter(layer.steps))
        ),
        lambda layer, x: layer.step(x) * layer.steps[layer.step],
    ),
    "a layer in an object": (
        lambda layer: setattr(layer, "holder", Holder({"dense": _dense()})),
        lambda layer, x: layer.holder.held["dense"](x),
    ),
    "a layer that Keras does not know of": (_keep_untracked, lambda layer, x: layer.hidden(x)),
    "a model": (
        lambda layer: setattr(layer, "model", keras.Sequential([keras.Input((4,)), _dense()])),
        lambda layer, x: layer.model(x),
    ),
    "a model with a constant": (
        lambda layer: setattr(layer, "model", _with_a_constant()),
        lambda layer, x: layer.model(x),
    ),
    "a penalty over another weight": (_keep_penalized, lambda layer, x: x * layer.scale),
}  # fmt: skip


def _with_a_constant():
    inputs = keras.Input((4,))
    return keras.Model(inputs, _dense()(inputs * _array()), name="inner")


def _nested(layer):
    def scaled(x):
        return x * layer.scale

    def outer(x):
        return scaled(x)

    return outer


def _decorated(layer):
    @functools.wraps(layer.scaled)
    def scaled(x):
        return layer.scaled(x)

    return scaled


def _recursive(layer):
    def scaled(x, times=1):
        return x * layer.scale if times == 1 else scaled(x, times - 1)

    return functools.partial(scaled, times=3)


def _of_weight(layer):
    scale = layer.scale
    return lambda x: x * scale


def _of_layer(layer):
    inner = layer.inner
    return lambda x: inner(x)


def _by_reference(layer):
    reference = weakref.ref(layer)
    return lambda x: x * reference().scale


# What a constructor makes of its layer.
FUNCTIONS = {
    "a lambda": lambda layer: lambda x: x * layer.scale,
    "a partial": lambda layer: functools.partial(layer.scaled, by=3.0),
    "a bound method": lambda layer: layer.scaled,
    "a bound method of a layer in it": lambda layer: layer.inner.call,
    "a closure over its weight": _of_weight,
    "a closure over a layer in it": _of_layer,
    "a nested function": _nested,
    "a decorated function": _decorated,
    "a function that calls itself": _recursive,
    "a default": lambda layer: lambda x, own=layer: x * own.scale,
    "a keyword default": lambda layer: lambda x, *, own=layer.inner: own(x),
    "a callable object": Caller,
    "a weak reference": _by_reference,
    "a partial of a lambda": lambda layer: functools.partial(lambda s, x: x * s, layer.scale),
}
# Where it keeps that, and finds it again.
PLACES = {
    "": (lambda f: f, lambda held: held),
    " in a list": (lambda f: [1, [f]], lambda held: held[1][0]),
    " in a dict": (lambda f: {"a": {"b": f}}, lambda held: held["a"]["b"]),
    " in a named tuple": (lambda f: Pair(1, f), lambda held: held.second),
    " in an object": (Holder, lambda held: held.held),
}


class Scale(layers.Layer):
    """Keeps a function of itself, and calls that."""

    def __init__(self, function="a lambda", place="", **kwargs):
        super().__init__(**kwargs)
        self.function, self.place = function, place
        self.scale = weight(self)
        self.inner = layers.Dense(4, name="inner")
        self.apply = PLACES[place][0](FUNCTIONS[function](self))

    def build(self, shape):
        self.inner.build(shape)

    def scaled(self, x, by=1.0):
        return by * x * self.scale

    def call(self, x):
        return PLACES[self.place][1](self.apply)(x)

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        raise NotImplementedError


@keras.saving.register_keras_serializable(package="tiny_state")
class ScaleWithConfig(Scale):
    """The same with a config."""

    def get_config(self):
        own = {"function": self.function, "place": self.place}
        return {**super(Scale, self).get_config(), **own}


class Keeping(layers.Layer):
    """Keeps state of a kind; it has no config."""

    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        self.kind = kind
        STATE[kind][0](self)

    def call(self, x):
        return STATE[self.kind][1](self, x)

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        raise NotImplementedError


class KeepingNet(keras.Model):
    """A model that keeps state of a kind, and a BatchNorm."""

    def __init__(self, kind):
        super().__init__(name="net")
        self.kind = kind
        STATE[kind][0](self)
        self.dense = layers.Dense(3, name="dense")
        self.norm = layers.BatchNormalization(name="norm")

    def call(self, x):
        return self.norm(self.dense(STATE[self.kind][1](self, x)))
