"""Random models for property tests: graphs that nobody designed, with BatchNorm in odd places.

A model is grown step by step from one input. Every step takes a tensor made so far, and most put
a new one beside it, so that branches, skips, shared layers and several outputs come about.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from hypothesis import strategies as st
from keras import layers

SHAPES = {"vector": (5,), "sequence": (6, 4), "image": (6, 7, 4)}


@dataclass
class Growth:
    """A model in the making: the tensors so far, and the layers that may be called again."""

    draw: Any
    depth: int
    tensors: list = field(default_factory=list)
    read: list = field(default_factory=list)
    norms: list = field(default_factory=list)
    linears: list = field(default_factory=list)
    submodels: list = field(default_factory=list)

    def pick(self):
        """A tensor made so far, the latest half of the time."""
        latest = self.draw(st.booleans())
        tensor = self.tensors[-1] if latest else self.draw(st.sampled_from(self.tensors))
        self.read.append(tensor)
        return tensor


def _rank(tensor) -> int:
    return len(tensor.shape)


def batch_norm(growth: Growth, x):
    draw = growth.draw
    axis = -1 if draw(st.integers(0, 4)) else draw(st.integers(1, _rank(x) - 1))
    layer = layers.BatchNormalization(
        axis=axis,
        scale=draw(st.integers(0, 3)) > 0,
        center=draw(st.integers(0, 3)) > 0,
        epsilon=draw(st.sampled_from([1e-3, 1e-5])),
        trainable=draw(st.integers(0, 4)) > 0,
    )
    growth.norms.append((layer, x.shape))
    keywords = {"training": draw(st.booleans())} if not draw(st.integers(0, 9)) else {}
    return layer(x, **keywords)


def batch_norm_again(growth: Growth, x):
    fitting = [layer for layer, shape in growth.norms if shape[1:] == x.shape[1:]]
    return growth.draw(st.sampled_from(fitting))(x) if fitting else batch_norm(growth, x)


def hidden_batch_norm(growth: Growth, x):
    if _rank(x) < 3:
        return batch_norm(growth, x)
    return layers.TimeDistributed(layers.BatchNormalization())(x)


def linear(growth: Growth, x):
    draw = growth.draw
    units = draw(st.integers(1, 5))
    common = {
        "use_bias": draw(st.booleans()),
        "activation": draw(st.sampled_from([None, None, None, "relu"])),
        "trainable": draw(st.integers(0, 4)) > 0,
    }
    room = min((size for size in x.shape[1:-1] if size), default=0) > 2
    padding = draw(st.sampled_from(["same", "valid"])) if room else "same"
    kinds = {
        2: [lambda: layers.Dense(units, **common)],
        3: [
            lambda: layers.Dense(units, **common),
            lambda: layers.Conv1D(units, 2, padding="causal", **common),
            lambda: layers.Conv1DTranspose(units, 2, padding="same", **common),
            lambda: layers.SeparableConv1D(units, 2, padding=padding, **common),
            lambda: layers.DepthwiseConv1D(2, padding=padding, **common),
            lambda: layers.EinsumDense("abc,cd->abd", (x.shape[1], units), bias_axes="d"),
        ],
        4: [
            lambda: layers.Conv2D(units, 2, padding=padding, **common),
            lambda: layers.Conv2D(units, 1, strides=1, **common),
            lambda: layers.DepthwiseConv2D(2, padding=padding, depth_multiplier=2, **common),
            lambda: layers.SeparableConv2D(units, 2, padding=padding, **common),
            lambda: layers.Conv2DTranspose(units, 2, padding="same", **common),
        ],
    }
    layer = draw(st.sampled_from(kinds[_rank(x)]))()
    growth.linears.append((layer, x.shape))
    return layer(x)


def linear_again(growth: Growth, x):
    fitting = [layer for layer, shape in growth.linears if shape[1:] == x.shape[1:]]
    return growth.draw(st.sampled_from(fitting))(x) if fitting else linear(growth, x)


def linear_and_norm(growth: Growth, x):
    y = linear(growth, x)
    if growth.draw(st.booleans()):
        growth.tensors.append(y)  # so that something else may read it too
        growth.read.append(y)
    return batch_norm(growth, y)


def pointwise(growth: Growth, x):
    return growth.draw(
        st.sampled_from(
            [
                lambda: layers.ReLU()(x),
                lambda: layers.Activation("tanh")(x),
                lambda: layers.Activation("linear")(x),
                lambda: layers.Dropout(0.2)(x),
                lambda: 0.5 * x + 1.0,
                lambda: keras.ops.sigmoid(x),
                lambda: keras.ops.maximum(x, -0.2 * x),
            ]
        )
    )()


def merge(growth: Growth, x):
    twins = [t for t in growth.tensors if t.shape == x.shape]
    wide = [t for t in growth.tensors if _rank(t) == _rank(x) and t.shape[:-1] == x.shape[:-1]]
    if growth.draw(st.booleans()):
        return layers.Add()([x, growth.draw(st.sampled_from(twins))])
    return layers.Concatenate()([x, growth.draw(st.sampled_from(wide))])


def pool(growth: Growth, x):
    if _rank(x) == 4 and min(x.shape[1:3]) > 1:
        kinds = [
            lambda: layers.MaxPooling2D(2),
            lambda: layers.AveragePooling2D(2),
            lambda: layers.GlobalAveragePooling2D(),
        ]
        return growth.draw(st.sampled_from(kinds))()(x)
    if _rank(x) == 3:
        return layers.GlobalAveragePooling1D()(x)
    return pointwise(growth, x)


def submodel(growth: Growth, x):
    fitting = [m for m in growth.submodels if m.input_shape[1:] == x.shape[1:]]
    if fitting and growth.draw(st.booleans()):
        return growth.draw(st.sampled_from(fitting))(x)
    if not growth.depth:
        return linear_and_norm(growth, x)
    inner = grow(growth.draw, x.shape[1:], growth.depth - 1, steps=3, outputs=1)
    growth.submodels.append(inner)
    return inner(x)


STEPS = (
    batch_norm, batch_norm, linear_and_norm, linear_and_norm, linear_and_norm, linear, pointwise,
    merge, pool, batch_norm_again, linear_again, linear_again, hidden_batch_norm, submodel,
)  # fmt: skip


def grow(draw, shape, depth: int, steps: int, outputs: int) -> keras.Model:
    inputs = keras.Input(shape)
    growth = Growth(draw, depth, [inputs])
    x = layers.Masking()(inputs) if len(shape) == 2 and draw(st.booleans()) else inputs
    growth.tensors.append(x)
    for _ in range(draw(st.integers(1, steps))):
        growth.tensors.append(draw(st.sampled_from(STEPS))(growth, growth.pick()))
    made = growth.tensors[2:]
    others = [made[k] for k in range(len(made) - 1) if outputs > 1 and not draw(st.integers(0, 4))]
    results = [*others, made[-1]]
    # What nothing reads would not be part of the model: let most of it reach an output.
    read = {id(tensor) for tensor in growth.read}
    results += [t for t in made[:-1] if id(t) not in read and t not in others and outputs > 1]
    if outputs > 1 and draw(st.booleans()):
        structure: Any = {f"out_{k}": tensor for k, tensor in enumerate(results)}
    else:
        structure = results[0] if len(results) == 1 else results
    return keras.Model(inputs, structure)


def random_model(draw) -> keras.Model:
    """A random model, its weights random too. `draw` is that of `st.data()`."""
    keras.utils.set_random_seed(draw(st.integers(0, 2**16)))
    shape = SHAPES[draw(st.sampled_from(sorted(SHAPES)))]
    model = grow(draw, shape, depth=2, steps=8, outputs=3)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    for variable in model.variables:
        if variable.path.endswith("bias"):
            variable.assign(rng.normal(size=variable.shape))
    return model


def batch(model: keras.Model, seed: int) -> np.ndarray:
    """Eight inputs, a few steps of the sequences masked."""
    x = np.random.default_rng(seed).normal(size=(8, *model.inputs[0].shape[1:])).astype("float32")
    if x.ndim == 3:
        x[2:5, -2:] = 0
    return x
