"""Small models of Keras 2 (`tf_keras`): one for each kind of layer, odd ones, and random ones."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

import numpy as np
import pytest

tk = pytest.importorskip("tf_keras", reason="needs tf_keras, of the test extra")
L = tk.layers

SHAPES = {
    "vector": (6,),
    "sequence": (7, 4),
    "image": (8, 8, 4),
    "volume": (5, 6, 5, 2),
    "words": (7,),
    "frames": (3, 6, 6, 2),
}

# Of a kind of input: layers for it, each with what makes it unlike its defaults.
LAYERS: dict[str, dict[str, Callable[[], object]]] = {
    "vector": {
        "Dense": lambda: L.Dense(5, activation="relu", kernel_regularizer="l2"),
        "Dense without bias": lambda: L.Dense(5, use_bias=False, kernel_constraint="max_norm"),
        "BatchNormalization": lambda: L.BatchNormalization(epsilon=1e-5),
        "BatchNormalization, neither": lambda: L.BatchNormalization(center=False, scale=False),
        "BatchNormalization, renorm": lambda: L.BatchNormalization(renorm=True),
        "LayerNormalization": lambda: L.LayerNormalization(),
        "UnitNormalization": lambda: L.UnitNormalization(),
        "Normalization": lambda: L.Normalization(mean=[1.0] * 6, variance=[4.0] * 6),
        "adapted Normalization": lambda: L.Normalization(),
        "LeakyReLU": lambda: L.LeakyReLU(0.2),
        "PReLU": lambda: L.PReLU(),
        "ELU": lambda: L.ELU(0.7),
        "ReLU": lambda: L.ReLU(max_value=1.0, negative_slope=0.1, threshold=0.2),
        "ThresholdedReLU": lambda: L.ThresholdedReLU(0.4),
        "Softmax": lambda: L.Softmax(),
        "hard_sigmoid": lambda: L.Activation("hard_sigmoid"),
        "swish": lambda: L.Activation("swish"),
        "gelu": lambda: L.Activation("gelu"),
        "Dropout": lambda: L.Dropout(0.4),
        "AlphaDropout": lambda: L.AlphaDropout(0.4),
        "GaussianNoise": lambda: L.GaussianNoise(0.4),
        "GaussianDropout": lambda: L.GaussianDropout(0.4),
        "RepeatVector": lambda: L.RepeatVector(3),
        "Reshape": lambda: L.Reshape((2, 3)),
        "ActivityRegularization": lambda: L.ActivityRegularization(0.1, 0.1),
        "EinsumDense": lambda: L.EinsumDense("ab,bc->ac", output_shape=5, bias_axes="c"),
        "Rescaling": lambda: L.Rescaling(0.1, 3.0),
        "Discretization": lambda: L.Discretization(bin_boundaries=[-0.5, 0.0, 0.5]),
    },
    "sequence": {
        "Conv1D": lambda: L.Conv1D(5, 3, padding="causal", dilation_rate=2, activation="elu"),
        "DepthwiseConv1D": lambda: L.DepthwiseConv1D(3, depth_multiplier=2),
        "SeparableConv1D": lambda: L.SeparableConv1D(5, 3, padding="same"),
        "Conv1DTranspose": lambda: L.Conv1DTranspose(5, 3, strides=2),
        "MaxPooling1D": lambda: L.MaxPooling1D(2),
        "AveragePooling1D": lambda: L.AveragePooling1D(2, padding="same"),
        "GlobalAveragePooling1D": lambda: L.GlobalAveragePooling1D(),
        "GlobalMaxPooling1D": lambda: L.GlobalMaxPooling1D(keepdims=True),
        "UpSampling1D": lambda: L.UpSampling1D(2),
        "ZeroPadding1D": lambda: L.ZeroPadding1D((1, 2)),
        "Cropping1D": lambda: L.Cropping1D((1, 2)),
        "SpatialDropout1D": lambda: L.SpatialDropout1D(0.3),
        "Permute": lambda: L.Permute((2, 1)),
        "Masking": lambda: L.Masking(0.5),
        "SimpleRNN": lambda: L.SimpleRNN(3, return_sequences=True),
        "LSTM": lambda: L.LSTM(3, recurrent_activation="hard_sigmoid", go_backwards=True),
        "GRU": lambda: L.GRU(3, reset_after=True, return_sequences=True),
        "GRU, reset before": lambda: L.GRU(3, reset_after=False),
        "RNN": lambda: L.RNN(L.StackedRNNCells([L.LSTMCell(3), L.GRUCell(4)])),
        "Bidirectional": lambda: L.Bidirectional(L.LSTM(3, return_sequences=True)),
        "Bidirectional, two": lambda: L.Bidirectional(
            L.GRU(3), backward_layer=L.GRU(3, go_backwards=True), merge_mode="sum"
        ),
        "TimeDistributed": lambda: L.TimeDistributed(L.Dense(3)),
        "TimeDistributed model": lambda: L.TimeDistributed(
            tk.Sequential([L.Dense(3, input_shape=(4,)), L.BatchNormalization()])
        ),
        "Flatten": lambda: L.Flatten(),
    },
    "image": {
        "Conv2D": lambda: L.Conv2D(6, (3, 2), strides=2, padding="same", activation="relu"),
        "Conv2D, groups": lambda: L.Conv2D(6, 3, groups=2, dilation_rate=2),
        "DepthwiseConv2D": lambda: L.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
        "SeparableConv2D": lambda: L.SeparableConv2D(5, 3, depth_multiplier=2),
        "Conv2DTranspose": lambda: L.Conv2DTranspose(5, 3, strides=2, output_padding=1),
        "BatchNormalization, axis": lambda: L.BatchNormalization(axis=1),
        "BatchNormalization, frozen": lambda: L.BatchNormalization(trainable=False),
        "GroupNormalization": lambda: L.GroupNormalization(groups=2),
        "LayerNormalization, axes": lambda: L.LayerNormalization(axis=[1, 2, 3]),
        "MaxPooling2D": lambda: L.MaxPooling2D(3, strides=2, padding="same"),
        "AveragePooling2D": lambda: L.AveragePooling2D(3, strides=1, padding="same"),
        "GlobalAveragePooling2D": lambda: L.GlobalAveragePooling2D(),
        "GlobalMaxPooling2D": lambda: L.GlobalMaxPooling2D(),
        "UpSampling2D": lambda: L.UpSampling2D(2, interpolation="bilinear"),
        "ZeroPadding2D": lambda: L.ZeroPadding2D(((1, 0), (0, 2))),
        "Cropping2D": lambda: L.Cropping2D(((1, 0), (0, 2))),
        "SpatialDropout2D": lambda: L.SpatialDropout2D(0.3),
        "Resizing": lambda: L.Resizing(5, 6),
        "CenterCrop": lambda: L.CenterCrop(5, 6),
        "RandomFlip": lambda: L.RandomFlip(),
        "RandomRotation": lambda: L.RandomRotation(0.2),
        "PReLU, shared": lambda: L.PReLU(shared_axes=[1, 2]),
    },
    "volume": {
        "Conv3D": lambda: L.Conv3D(3, 2, activation="tanh"),
        "Conv3DTranspose": lambda: L.Conv3DTranspose(3, 2, strides=2),
        "MaxPooling3D": lambda: L.MaxPooling3D(2),
        "AveragePooling3D": lambda: L.AveragePooling3D(2),
        "GlobalAveragePooling3D": lambda: L.GlobalAveragePooling3D(),
        "GlobalMaxPooling3D": lambda: L.GlobalMaxPooling3D(),
        "UpSampling3D": lambda: L.UpSampling3D(2),
        "ZeroPadding3D": lambda: L.ZeroPadding3D(1),
        "Cropping3D": lambda: L.Cropping3D(1),
        "SpatialDropout3D": lambda: L.SpatialDropout3D(0.3),
    },
    "words": {
        "Embedding": lambda: L.Embedding(9, 4, mask_zero=True, input_length=7),
        "CategoryEncoding": lambda: L.CategoryEncoding(9, output_mode="count"),
    },
    "frames": {
        "ConvLSTM2D": lambda: L.ConvLSTM2D(3, 3, recurrent_activation="hard_sigmoid"),
        "TimeDistributed Conv2D": lambda: L.TimeDistributed(L.Conv2D(3, 3)),
    },
}
CASES = [(shape, name) for shape, table in LAYERS.items() for name in table]


def batch(kind: str, seed: int = 0, rows: int = 3) -> np.ndarray:
    """Inputs of a kind."""
    draw = np.random.default_rng(seed)
    if kind == "words":
        return draw.integers(1, 9, (rows, *SHAPES[kind])).astype("int32")
    return draw.normal(size=(rows, *SHAPES[kind])).astype("float32")


def alive(model, seed: int = 0):
    """The model with weights that hide nothing: no zeros, no ones, variances above 0."""
    draw = np.random.default_rng(seed)
    for weight in model.weights:
        value = draw.normal(0.2, 0.6, weight.shape)
        if "variance" in weight.name or "stddev" in weight.name:
            value = np.abs(value) + 0.1
        adapted = weight.name in ("mean:0", "variance:0")  # to data
        if weight.dtype.is_floating and not adapted:
            weight.assign(value)
    return model


def of_layer(kind: str, name: str):
    """A model of one layer between two others where these can be."""
    layer = LAYERS[kind][name]()
    x = inputs = tk.Input(SHAPES[kind], dtype="int32" if kind == "words" else None)
    if name == "adapted Normalization":
        layer.adapt(batch(kind, 5, 20))
    x = layer(x)
    if x.dtype.is_floating and len(x.shape) > 1:
        x = L.Dense(3, name="dense/last")(x)
    return alive(tk.Model(inputs, x))


def several():
    """Two inputs, three outputs, a shared layer, a shared nested model and arithmetic."""
    a, b = tk.Input((6,), name="a"), tk.Input((6,), name="in/b")
    shared = L.Dense(6, activation="relu")
    inner = tk.Sequential([L.Dense(6, input_shape=(6,)), L.BatchNormalization()], name="inner")
    x, y = inner(shared(a)), inner(shared(b))
    z = x * 2.0 + y - 1.0
    z = L.Concatenate()([z, 1.0 / (1.0 + x * x), L.Dot(1)([x, y])])
    return alive(tk.Model([a, b], [L.Dense(2)(z), x, L.Add()([x, y, y])]))


def nested_functional(trainable: bool = True):
    """A functional model in a functional model in a Sequential one, with BatchNorm in each."""

    def block(name, width):
        inputs = tk.Input((width,))
        x = L.BatchNormalization(name=f"{name}_bn")(L.Dense(5, name=f"{name}_dense")(inputs))
        return inputs, x, name

    inputs, x, name = block("innermost", 5)
    innermost = tk.Model(inputs, [x], name=name)  # a list of one
    innermost.trainable = trainable
    inputs, x, name = block("inner", 6)
    inner = tk.Model(inputs, [L.Dense(4, name="last")(innermost(x))], name=name)
    inner.layers[1].trainable = False
    return alive(tk.Sequential([inner, L.BatchNormalization(), L.Dense(2)]))


def functions():
    """TensorFlow functions between layers."""
    import tensorflow as tf

    x = inputs = tk.Input((8, 8, 4))
    x = L.Conv2D(4, 3, padding="same")(x)
    x = x * tf.nn.relu6(x + 3.0) / 6.0
    x = tf.pad(x, [[0, 0], [1, 1], [0, 2], [0, 0]])
    x = tf.concat([x[:, 1:-1, :-2], -x[:, 1:-1, :-2], 1.0 - x[:, 1:-1, 2:]], axis=-1)
    y = tf.reduce_mean(x, axis=[1, 2], keepdims=True)
    x = tf.transpose(x - y, [0, 2, 1, 3]) * tf.sigmoid(y)
    x = tf.reshape(tf.clip_by_value(x, -2.0, 2.0), [-1, 64, 12])
    x = tf.nn.l2_normalize(x, axis=-1) + tf.nn.softmax(x) + tf.maximum(x, 0.1) ** 2
    x = tf.squeeze(tf.expand_dims(x, 1), [1]) + tf.nn.leaky_relu(x, alpha=0.3)
    x = x * np.linspace(0.5, 1.5, 12).astype("float32")
    a, b, _ = tf.split(x, [4, -1, 4], axis=-1)
    a = tf.where(a > 0.0, a, 0.1 * tf.gather(b, [3, 2, 1, 0], axis=-1)) / (
        1.0 + tf.norm(b, axis=-1, keepdims=True)
    )
    return alive(tk.Model(inputs, L.Dense(3)(tf.stack([a, tf.exp(-tf.abs(b))], axis=1))))


def masked_merges(merge: str, both: bool):
    """Masked words and others, merged, read by a recurrent layer that minds the mask."""
    a, b = tk.Input((7,)), tk.Input((7,))
    x = L.Embedding(9, 4, mask_zero=True, name="words")(a)
    y = L.Embedding(9, 4, mask_zero=both, name="others")(b)
    joined = getattr(L, merge)()([x, y])
    return alive(tk.Model([a, b], [L.LSTM(3)(joined), L.GlobalAveragePooling1D()(joined)]))


def in_training():
    """BatchNorm that runs on the statistics of the batch, whoever calls the model."""
    x = inputs = tk.Input((8, 8, 4))
    x = L.BatchNormalization(name="bn")(L.Conv2D(4, 3)(x), training=True)
    return alive(tk.Model(inputs, L.Conv2D(2, 3)(x)))


def attention():
    """Attention of all kinds."""
    a, b = tk.Input((5, 4)), tk.Input((6, 4))
    x = L.MultiHeadAttention(2, 3)(a, b)
    y = L.Attention(use_scale=True)([a, b])
    z = L.AdditiveAttention()([x, b])
    return alive(tk.Model([a, b], [x, L.Add()([y, z])]))


def states():
    """An encoder's state handed to a decoder."""
    a, b = tk.Input((5, 4)), tk.Input((6, 4))
    _, h, c = L.LSTM(3, return_state=True)(a)
    x = L.LSTM(3, return_sequences=True)(b, initial_state=[h, c])
    return alive(tk.Model([a, b], L.Dense(2)(x)))


def merges():
    """Every layer that joins tensors."""
    a, b = tk.Input((6,)), tk.Input((6,))
    joined = [
        kind()([a, b])
        for kind in (L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum, L.Concatenate)
    ]
    return alive(tk.Model([a, b], [*joined, L.Dot(axes=1, normalize=True)([a, b])]))


def renamed():
    """Variables that are not called after their layers, as after a copy under new names."""
    model = tk.Sequential(
        [L.Dense(6, input_shape=(6,)), L.BatchNormalization(), L.Dense(2), L.BatchNormalization()]
    )
    for layer, name in zip(model.layers, ("d", "c", "b", "a"), strict=True):
        layer._name = name
    return alive(model)


def without_input():
    """A Sequential model whose shape became known in training."""
    model = tk.Sequential([L.Conv2D(3, 3), L.BatchNormalization(), L.Flatten(), L.Dense(2)])
    model.build((None, 8, 8, 4))
    return alive(model)


def mixed_precision():
    """Under the policy mixed_float16."""
    policy = tk.mixed_precision.Policy("mixed_bfloat16")
    inputs = tk.Input((8, 8, 4))
    x = L.Conv2D(4, 3, dtype=policy)(inputs)
    x = L.BatchNormalization(dtype=policy)(x)
    return alive(tk.Model(inputs, L.Dense(2, dtype="float32")(x)))


ODD = {
    "several": several,
    "nested": nested_functional,
    "nested, frozen": lambda: nested_functional(trainable=False),
    "functions": functions,
    "attention": attention,
    "states": states,
    "merges": merges,
    "renamed": renamed,
    "without input": without_input,
    "mixed precision": mixed_precision,
}


def inputs_of(model, seed: int = 0, rows: int = 3):
    """A batch for any of the models."""
    draw = np.random.default_rng(seed)
    made = [draw.normal(size=(rows, *t.shape[1:])).astype("float32") for t in model.inputs]
    return made if len(made) > 1 else made[0]


def saved(model, path: os.PathLike[str] | str):
    """Save as Keras 2 does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that HDF5 is legacy, that it was never compiled
        model.save(path)
    return path


def random_model(draw):
    """A model grown layer by layer, with branches, shared layers and models in it.

    Args:
        draw: What draws from a Hypothesis strategy.
    """
    from hypothesis import strategies as st

    kind = draw(st.sampled_from(["vector", "sequence", "image"]))
    inputs = tk.Input(SHAPES[kind])
    seen, layers = [inputs], []
    names = [name for name in LAYERS[kind] if name not in _NOT_IN_A_ROW]
    for _ in range(draw(st.integers(1, 6))):
        x = draw(st.sampled_from(seen[-3:]))
        fitting = [layer for layer, shape in layers if shape == x.shape]
        how = draw(st.sampled_from(["new", "new", "new", "norm", "shared", "model", "add"]))
        alike = [y for y in seen if y.shape == x.shape and y is not x]
        if how == "shared" and fitting:
            y = draw(st.sampled_from(fitting))(x)
        elif how == "add" and alike:
            y = L.Add()([x, draw(st.sampled_from(alike))])
        elif how == "model":
            inner = tk.Input(x.shape[1:])
            model = tk.Model(inner, [L.BatchNormalization()(L.Dense(4)(inner))])
            model.trainable = draw(st.booleans())
            layers.append((model, x.shape))
            y = model(x)
        elif how == "norm" or x.shape[1:] != SHAPES[kind]:
            layer = L.BatchNormalization(trainable=draw(st.booleans()))
            layers.append((layer, x.shape))
            y = layer(x)
        else:
            layer = LAYERS[kind][draw(st.sampled_from(names))]()
            layers.append((layer, x.shape))
            y = layer(x)
        seen.append(y)
    return alive(tk.Model(inputs, seen[-1] if draw(st.booleans()) else seen[-2:]))


# Their answer is whole numbers, or no number, or they want data first.
_NOT_IN_A_ROW = frozenset(
    {"Discretization", "Masking", "RandomFlip", "RandomRotation", "adapted Normalization"}
)
