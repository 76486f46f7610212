"""Random models for property tests: graphs that nobody designed, with BatchNorm in odd places.

A model is grown step by step from its inputs. Every step takes a tensor made so far, and most put
a new one beside it, so that branches, skips, shared layers and several outputs come about.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from fidelity import all_layers, randomize
from hypothesis import assume
from hypothesis import strategies as st
from keras import layers, ops
from random_layers import Chain, ChainWithConfig, Net

SHAPES = {"vector": (5,), "sequence": (6, 4), "image": (6, 7, 4), "words": (6,)}
WORDS = 7
DEPTH = 2  # of models in models
# Mostly float64, in which rounding hides nothing: exact means exact there.
POLICIES = ("float64",) * 5 + ("float32",) * 5 + ("mixed_float16", "mixed_bfloat16")
# Those for which TensorFlow has no convolution with channels first, on some CPUs at least.
CHANNELS_LAST = ("float64", "mixed_float16", "mixed_bfloat16")


@dataclass
class Growth:
    """A model in the making: the tensors so far, and what may be called again."""

    draw: Any
    depth: int
    forced: list
    tensors: list = field(default_factory=list)
    read: list = field(default_factory=list)
    norms: list = field(default_factory=list)
    linears: list = field(default_factory=list)
    models: list = field(default_factory=list)

    def pick(self):
        """A tensor made so far, the latest half of the time."""
        latest = self.draw(st.booleans())
        tensor = self.tensors[-1] if latest else self.of(self.tensors)
        self.read.append(tensor)
        return tensor

    def of(self, choices):
        return self.draw(st.sampled_from(choices))

    def one_in(self, number: int) -> bool:
        return not self.draw(st.integers(0, number - 1))

    def again(self, made, x):
        """One of the (layer, shape) made before that takes tensors like x, or None."""
        fitting = [layer for layer, shape in made if shape[1:] == x.shape[1:]]
        return self.of(fitting) if fitting else None


def _rank(tensor) -> int:
    return len(tensor.shape)


def _space(tensor) -> int:
    """The smallest size in space or time."""
    return min((size for size in tensor.shape[1:-1] if size), default=0)


def _norm(growth: Growth, axis: int) -> layers.Layer:
    draw = growth.draw
    return layers.BatchNormalization(
        axis=axis,
        scale=not growth.one_in(4),
        center=not growth.one_in(4),
        epsilon=growth.of([1e-3, 1e-5]),
        renorm=growth.one_in(10),
        trainable=draw(st.integers(0, 4)) > 0,
    )


def batch_norm(growth: Growth, x):
    axis = growth.draw(st.integers(1, _rank(x) - 1)) if growth.one_in(5) else -1
    layer = _norm(growth, axis)
    growth.norms.append((layer, x.shape))
    keywords = {"training": growth.draw(st.booleans())} if growth.one_in(4) else {}
    return layer(x, **keywords)


def batch_norm_again(growth: Growth, x):
    layer = growth.again(growth.norms, x)
    return layer(x) if layer else batch_norm(growth, x)


def _linear(growth: Growth, x, plain: bool = False, first: bool = False) -> layers.Layer:
    """A linear layer; `plain` has no activation, `first` has its channels on axis 1."""
    units = growth.draw(st.integers(1, 5))
    common: dict[str, Any] = {
        "use_bias": growth.draw(st.booleans()),
        "activation": None if plain else growth.of([None, None, None, "relu"]),
        "trainable": not growth.one_in(5),
    }
    sizes = x.shape[2:] if first else x.shape[1:-1]
    room = min((size for size in sizes if size), default=0) > 2
    padding = growth.of(["same", "valid"]) if room else "same"
    conv = {**common, **({"data_format": "channels_first"} if first else {})}
    kinds = {
        2: [lambda: layers.Dense(units, **common)],
        3: [
            lambda: layers.Conv1DTranspose(units, 2, padding="same", **conv),
            lambda: layers.SeparableConv1D(units, 2, padding=padding, **conv),
            lambda: layers.DepthwiseConv1D(2, padding=padding, **conv),
            lambda: layers.Conv1D(units, 2, padding=padding, **conv),
        ],
        4: [
            lambda: layers.Conv2D(units, 2, padding=padding, **conv),
            lambda: layers.Conv2D(units, 1, **conv),
            lambda: layers.DepthwiseConv2D(2, padding=padding, depth_multiplier=2, **conv),
            lambda: layers.SeparableConv2D(units, 2, padding=padding, **conv),
            lambda: layers.Conv2DTranspose(units, 2, padding="same", **conv),
        ],
    }
    if _rank(x) == 3 and not first:
        kinds[3] += [
            lambda: layers.Dense(units, **common),
            lambda: layers.Conv1D(units, 2, padding="causal", **common),
            lambda: layers.EinsumDense(
                "abc,cd->abd", (x.shape[1], units), bias_axes=growth.of(["d", "bd", None])
            ),
            lambda: layers.EinsumDense("abc,bcd->abd", (x.shape[1], units), bias_axes="bd"),
        ]
    return growth.of(kinds[_rank(x)])()


def linear(growth: Growth, x):
    layer = _linear(growth, x)
    growth.linears.append((layer, x.shape))
    return layer(x)


def linear_again(growth: Growth, x):
    layer = growth.again(growth.linears, x)
    return layer(x) if layer else linear(growth, x)


def linear_and_norm(growth: Growth, x):
    y = linear(growth, x)
    if growth.draw(st.booleans()):
        growth.tensors.append(y)  # so that something else may read it too
        growth.read.append(y)
    return batch_norm(growth, y)


def _between(growth: Growth, x, first: bool) -> layers.Layer:
    """A layer that some affine map may cross, and now and then one that none may."""
    size = _rank(x) - 2
    if growth.one_in(8):
        others = [layers.ReLU, layers.LayerNormalization, lambda: layers.Rescaling(0.5, offset=1)]
        return growth.of(others)()
    anywhere = [
        lambda: layers.Dropout(0.2),
        lambda: layers.Identity(),
        lambda: layers.Activation("linear"),
    ]
    if not size:
        return growth.of(anywhere)()
    by_format = {"data_format": "channels_first"} if first else {}
    sizes = x.shape[2:] if first else x.shape[1:-1]

    def make(kind, *args, **kwargs):
        layer = getattr(layers, f"{kind}{size}D")
        return lambda: layer(*args, **kwargs, **by_format)

    spatial = [
        make("AveragePooling", 2, padding="same"),
        make("MaxPooling", 2, padding="same"),
        make("MaxPooling", 3, strides=1, padding="same"),
        make("GlobalAveragePooling", keepdims=True),
        make("GlobalMaxPooling", keepdims=True),
        make("GlobalAveragePooling"),
        make("GlobalMaxPooling"),
        *([make("ZeroPadding", 1), make("ZeroPadding", 2)] if size > 1 or not first else []),
    ]
    if not (first and size == 1):  # which have no data_format
        spatial.append(make("SpatialDropout", 0.2))
        if min(sizes) > 2:
            spatial.append(make("Cropping", 1))
        if max(sizes) < 8:
            spatial.append(make("UpSampling", 2))
    # TensorFlow interpolates in float32, whatever it is given
    if size == 2 and keras.config.dtype_policy().name != "float64":
        kind = growth.of(["bilinear", "bilinear", "bicubic"])
        spatial.append(make("UpSampling", 2, interpolation=kind))
    return growth.of([*anywhere, *spatial, *spatial])()


def across(growth: Growth, x):
    """A linear layer, one or two that may be crossed, a BatchNorm of some sign and shift."""
    first = growth.one_in(3) and _rank(x) > 2 and min(x.shape[2:]) > 1
    first = first and keras.config.dtype_policy().name not in CHANNELS_LAST
    y = _linear(growth, x, plain=not growth.one_in(6), first=first)(x)
    for _ in range(growth.draw(st.integers(1, 2))):
        y = _between(growth, y, first and _rank(y) > 2)(y)
    axis = 1 if first else _rank(y) - 1
    # another axis of that size, which a layer in front may be mistaken for the channels of
    pairs = [k for k in range(1, _rank(y)) if y.shape[k] == y.shape[axis]]
    layer = _norm(growth, growth.of([axis, *pairs]))
    sign = growth.of([None, "positive", "negative"])
    growth.forced.append((layer, sign, growth.draw(st.booleans())))
    return layer(y)


def einsum_and_norm(growth: Growth, x):
    """Units along several axes, and a BatchNorm over one of them."""
    units = growth.draw(st.integers(1, 5))
    if _rank(x) == 2:
        biases = growth.of(["cd", "d", "c", None, None])
        y = layers.EinsumDense("ab,bcd->acd", (3, units), bias_axes=biases)(x)
    elif _rank(x) == 3:
        biases = growth.of(["bd", "d", "b", None, None])
        y = layers.EinsumDense("abc,bcd->abd", (x.shape[1], units), bias_axes=biases)(x)
    else:
        return across(growth, x)
    layer = _norm(growth, growth.draw(st.integers(1, 2)))
    growth.forced.append((layer, None, True))
    return layer(y)


def pointwise(growth: Growth, x):
    return growth.of(
        [
            lambda: layers.ReLU()(x),
            lambda: layers.Activation("tanh")(x),
            lambda: layers.Activation("linear")(x),
            lambda: layers.LayerNormalization()(x),
            lambda: 0.5 * x + 1.0,
            lambda: ops.sigmoid(x),
            lambda: ops.maximum(x, -0.2 * x),
            lambda: ops.where(x > 0, x, ops.tanh(x)),
            lambda: ops.concatenate([x[..., :1], -x], axis=-1),
        ]
    )()


def merge(growth: Growth, x):
    pairs = [t for t in growth.tensors if t.shape == x.shape]
    wide = [t for t in growth.tensors if _rank(t) == _rank(x) and t.shape[:-1] == x.shape[:-1]]
    if growth.draw(st.booleans()):
        return layers.Add()([x, growth.of(pairs)])
    return layers.Concatenate()([x, growth.of(wide)])


def pool(growth: Growth, x):
    if _rank(x) == 4 and _space(x) > 1:
        kinds = [
            lambda: layers.MaxPooling2D(2),
            lambda: layers.AveragePooling2D(2),
            lambda: layers.GlobalAveragePooling2D(),
        ]
        return growth.of(kinds)()(x)
    if _rank(x) == 3:
        return layers.GlobalAveragePooling1D()(x)
    return pointwise(growth, x)


def _chain(growth: Growth, shape, depth: int = 1) -> layers.Layer:
    """A layer with code that keeps the shape, given without the batch axis."""
    channels = shape[-1]
    steps: list[layers.Layer] = []
    kinds = [
        lambda: [layers.Dense(channels, use_bias=growth.draw(st.booleans())), _norm(growth, -1)],
        lambda: [layers.Dense(channels, activation="tanh")],
        lambda: [_norm(growth, -1)],
        lambda: [layers.Dropout(0.2)],
        lambda: [layers.ReLU()],
        lambda: [_shared(growth, shape)],
        lambda: [_shared(growth, shape), _norm(growth, -1)],
    ]
    if len(shape) == 3:
        kinds += [
            lambda: [
                layers.Conv2D(channels, 2, padding="same"),
                layers.AveragePooling2D(3, strides=1, padding="same"),
                _norm(growth, -1),
            ],
        ]
    if depth:
        kinds += [
            lambda: [_chain(growth, shape, depth - 1)],
            lambda: [_stack(growth, shape)],
        ]
    for _ in range(growth.draw(st.integers(1, 4))):
        steps += [step for step in growth.of(kinds)() if step not in steps]
    order = list(range(len(steps)))
    if growth.draw(st.booleans()):
        order += [growth.of(order) for _ in range(growth.draw(st.integers(1, 3)))]
    return growth.of([Chain, ChainWithConfig])(
        steps,
        order,
        hold=growth.of(["list", "dict", "tuple", "attributes"]),
        skip=growth.one_in(3),
    )


def _shared(growth: Growth, shape) -> layers.Layer:
    """A layer of the graph around that keeps the shape, or a new one."""
    fitting = [
        layer
        for layer, own in (*growth.linears, *growth.norms)
        if own[1:] == shape and layer.compute_output_shape(own)[1:] == shape
    ]
    if fitting:
        return growth.of(fitting)
    growth.linears.append((layers.Dense(shape[-1]), (None, *shape)))
    return growth.linears[-1][0]


def _stack(growth: Growth, shape) -> keras.Sequential:
    dense = layers.Dense(shape[-1])
    return keras.Sequential([keras.Input(shape), dense, layers.BatchNormalization()])


def code(growth: Growth, x):
    layer = growth.again(growth.models, x) if growth.one_in(4) else None
    if layer is None:
        if growth.draw(st.booleans()):  # a layer that the code may call again
            growth.linears.append((layers.Dense(x.shape[-1]), x.shape))
            x = growth.linears[-1][0](x)
        layer = _chain(growth, x.shape[1:])
        growth.models.append((layer, x.shape))
    return layer(x)


def time_distributed(growth: Growth, x):
    if _rank(x) < 3:
        return batch_norm(growth, x)
    shape = x.shape[2:]
    inner = growth.of(
        [
            lambda: layers.BatchNormalization(),
            lambda: _chain(growth, shape),
            lambda: _stack(growth, shape),
            lambda: layers.Dense(3),
        ]
    )
    return layers.TimeDistributed(inner())(x)


def _masked_stack(growth: Growth, entry: keras.KerasTensor) -> keras.Sequential:
    """A Sequential through which a mask may pass, or in which one begins, from sequences on."""
    draw, shape = growth.draw, entry.shape[1:]
    stack = [entry]
    if "int" in entry.dtype:
        stack.append(layers.Embedding(WORDS, 4, mask_zero=draw(st.booleans())))
    elif draw(st.booleans()):
        stack.append(layers.Masking())
    kinds = [
        lambda: [layers.Dense(3, use_bias=draw(st.booleans())), _norm(growth, -1)],
        lambda: [_norm(growth, growth.of([1, 2, -1, -1]))],
        lambda: [layers.Conv1D(3, 2, padding="same"), _norm(growth, -1)],
        lambda: [layers.Dense(3), layers.Dropout(0.2), _norm(growth, -1)],
        lambda: [layers.GRU(3, return_sequences=True)],
        lambda: [layers.Bidirectional(layers.LSTM(2, return_sequences=True))],
        lambda: [layers.TimeDistributed(layers.Dense(3))],
        lambda: [layers.LayerNormalization(), layers.ReLU()],
    ]
    for _ in range(draw(st.integers(1, 3))):
        stack += growth.of(kinds)()
    ends = [
        lambda: [layers.LSTM(3), _norm(growth, -1)],
        lambda: [layers.GlobalAveragePooling1D()],
        lambda: [layers.Flatten(), layers.Dense(3)] if None not in shape else [],
        lambda: [],
    ]
    return keras.Sequential([*stack, *growth.of(ends)()])


def masked_stack(growth: Growth, x):
    if _rank(x) != 3:
        return pointwise(growth, x)
    layer = growth.again(growth.models, x) if growth.one_in(4) else None
    if layer is None:
        layer = _masked_stack(growth, keras.Input(x.shape[1:], dtype=x.dtype))
        growth.models.append((layer, x.shape))
    return layer(x)


def submodel(growth: Growth, x):
    layer = growth.again(growth.models, x)
    if layer and growth.draw(st.booleans()):
        return layer(x)
    if not growth.depth:
        return linear_and_norm(growth, x)
    inner = grow(growth.draw, [x.shape[1:]], growth.depth - 1, 3, 1, growth.forced)
    growth.models.append((inner, x.shape))
    return inner(x)


STEPS = (
    batch_norm, linear_and_norm, linear_and_norm, across, across, across, across, einsum_and_norm,
    linear, pointwise, merge, pool, batch_norm_again, linear_again, linear_again,
    time_distributed, submodel, code, code, masked_stack, masked_stack,
)  # fmt: skip


def grow(draw, shapes, depth: int, steps: int, outputs: int, forced: list) -> keras.Model:
    growth = Growth(draw, depth, forced)
    inputs = []
    for number, shape in enumerate(shapes):
        if shape == SHAPES["words"] and depth == DEPTH:  # further in they are numbers
            inputs.append(keras.Input(shape, dtype="int32", name=f"in_{number}"))
            x = layers.Embedding(WORDS, 4, mask_zero=draw(st.booleans()))(inputs[-1])
        else:
            inputs.append(keras.Input(shape, name=f"in_{number}"))
            masked = len(shape) == 2 and draw(st.booleans())
            x = layers.Masking()(inputs[-1]) if masked else inputs[-1]
        growth.tensors.append(x)
    entries = len(growth.tensors)
    for _ in range(draw(st.integers(1, steps))):
        growth.tensors.append(growth.of(STEPS)(growth, growth.pick()))
    made = growth.tensors[entries:]
    others = [made[k] for k in range(len(made) - 1) if outputs > 1 and growth.one_in(5)]
    results = [*others, made[-1]]
    # What nothing reads would not be part of the model: let most of it reach an output.
    read = {id(tensor) for tensor in growth.read}
    results += [t for t in made[:-1] if id(t) not in read and t not in others and outputs > 1]
    structure: Any = results[0] if len(results) == 1 else results
    if outputs > 1 and draw(st.booleans()):
        names = [f"out_{k}" for k in range(len(results))]
        structure = dict(zip(reversed(names), results, strict=True))
    entry: Any = inputs[0] if len(inputs) == 1 else inputs
    if len(inputs) > 1 and draw(st.booleans()):
        entry = {tensor.name: tensor for tensor in reversed(inputs)}
    return keras.Model(entry, structure)


@dataclass
class Drawn:
    """A random model.

    Attributes:
        model: The model, its weights random, those of BatchNorm aside.
        x: A batch of its inputs, a few steps of the sequences masked.
        forced: (BatchNorm, sign of its gamma or None, whether it shifts at all).
        code: Whether classes of this module are in it.
        policy: The dtype policy that it was made under.
        extreme: Whether it is to have weights of all sizes.
    """

    model: keras.Model
    x: Any
    forced: list
    code: bool
    policy: str
    extreme: bool

    def randomize(self) -> None:
        """Give every BatchNorm weights to be told apart; draw another model where one overflows.

        In an extreme model γ is 1e-3 to 1e3, and what is normalized has variances of 1e-12 to 1e6,
        and means of up to 10^4 deviations; in float16, which holds no such numbers, a third of the
        powers of ten.
        """
        decades = 0 if not self.extreme else 1 if self.policy == "mixed_float16" else 3
        if self.extreme:
            rng = np.random.default_rng(0)
            for variable in self.model.variables:
                if variable.path.endswith("kernel"):
                    variable.assign(
                        variable * 10 ** rng.uniform(-2 * decades, decades, variable.shape[-1])
                    )
                elif variable.path.endswith("bias") and rng.random() < 0.25:
                    variable.assign(10 ** (decades + 1) * variable)
        assume(randomize(self.model, self.x, decades=decades))
        self.force()

    def force(self) -> None:
        """Give some BatchNorm one sign of gamma, or no shift."""
        for layer, sign, shift in self.forced:
            if sign and layer.gamma is not None:
                layer.gamma.assign((1 if sign == "positive" else -1) * ops.abs(layer.gamma))
            if not shift:
                layer.moving_mean.assign(ops.zeros_like(layer.moving_mean))
                if layer.beta is not None:
                    layer.beta.assign(ops.zeros_like(layer.beta))


def random_model(draw) -> Drawn:
    """A random model. `draw` is that of `st.data()`."""
    keras.utils.set_random_seed(draw(st.integers(0, 2**16)))
    names = [draw(st.sampled_from(sorted(SHAPES))) for _ in range(draw(st.sampled_from([1, 1, 2])))]
    policy = draw(st.sampled_from(POLICIES))
    keras.config.set_dtype_policy(policy)
    try:
        forced: list = []
        if not draw(st.integers(0, 9)):
            kind, dtype = draw(st.sampled_from([("sequence", None), ("words", "int32")]))
            entry = keras.Input(SHAPES[kind], dtype=dtype, name="in_0")
            model = _masked_stack(Growth(draw, 0, forced), entry)
        else:
            model = grow(draw, [SHAPES[name] for name in names], DEPTH, 8, 3, forced)
        x = _batch(model, seed=0)
        if not draw(st.integers(0, 7)):
            model = _in_code(draw, model, x)
    finally:
        keras.config.set_dtype_policy("float32")
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    if not draw(st.integers(0, 2)):
        _enable_lora(draw, model)
    for variable in model.variables:
        if variable.path.endswith("bias") or "lora" in variable.name:
            variable.assign(rng.normal(size=variable.shape))
        elif variable.path.endswith("kernel") and rng.random() < 0.2:
            dead = rng.random(variable.shape[-1]) < 0.4  # units without a direction
            variable.assign(np.where(dead, 0.0, variable))
    inside = model._flatten_layers()
    code = any(isinstance(layer, (Chain, Net)) for layer in inside)
    return Drawn(model, x, forced, code, policy, extreme=not draw(st.integers(0, 3)))


def _in_code(draw, model: keras.Model, x) -> keras.Model:
    last = model.outputs[-1]
    net = Net(model, _chain(Growth(draw, 0, []), last.shape[1:]), name="net")
    net(x)
    return net


def _enable_lora(draw, model: keras.Model) -> None:
    for layer in all_layers(model):
        kinds = (layers.Dense, layers.EinsumDense, layers.Conv1D, layers.Conv2D, layers.Embedding)
        if type(layer) in kinds and layer.trainable and draw(st.booleans()):
            layer.enable_lora(1)


def _batch(model: keras.Model, seed: int):
    rng = np.random.default_rng(seed)

    def of(tensor):
        shape = (8, *tensor.shape[1:])
        if "int" in tensor.dtype:
            return rng.integers(0, WORDS, shape).astype("int32")
        x = rng.normal(size=shape).astype("float32")
        if x.ndim == 3:
            x[2:5, -2:] = 0
        return x

    entry = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.map_structure(of, entry)
