"""Small models with names, one for each shape of graph that the rewriter must know."""

from __future__ import annotations

import keras
import numpy as np
import tiny_code
from keras import layers

BN = layers.BatchNormalization


def dense_bn():
    inputs = keras.Input((5,))
    x = layers.Dense(4, name="dense")(inputs)
    x = layers.ReLU()(BN(name="bn")(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="dense_bn")


def conv_bn_relu():
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, use_bias=False, name="conv")(inputs)
    x = layers.ReLU()(BN(name="bn")(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(
        inputs, layers.Dense(3, activation="softmax", name="head")(x), name="conv_bn_relu"
    )


def sequential():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="conv"),
            BN(name="bn"),
            layers.Activation("relu"),
            layers.Flatten(),
            BN(name="bn_flat"),
            layers.Dense(3, name="head"),
        ],
        name="sequential",
    )


def _behind(linear, shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, BN(name="bn")(linear(inputs)), name="behind_linear")


LINEAR = {
    "Dense": (lambda **k: layers.Dense(4, name="linear", **k), (5,)),
    "Dense on a sequence": (lambda **k: layers.Dense(4, name="linear", **k), (6, 5)),
    "EinsumDense": (
        lambda **k: layers.EinsumDense("abc,cd->abd", (None, 4), name="linear", **k),
        (6, 5),
    ),
    "EinsumDense, two output axes": (
        lambda **k: layers.EinsumDense("ab,bcd->acd", (3, 4), name="linear", **k),
        (5,),
    ),
    "EinsumDense, biases": (
        lambda **k: layers.EinsumDense("ab,bcd->acd", (3, 4), bias_axes="cd", name="linear", **k),
        (5,),
    ),
    "EinsumDense, dots": (
        lambda **k: layers.EinsumDense("...x,xy->...y", 4, bias_axes="y", name="linear", **k),
        (6, 5),
    ),
    "Conv1D": (lambda **k: layers.Conv1D(4, 3, name="linear", **k), (9, 3)),
    "Conv1D causal": (
        lambda **k: layers.Conv1D(4, 3, padding="causal", name="linear", **k),
        (9, 3),
    ),
    "Conv2D": (lambda **k: layers.Conv2D(4, 3, strides=2, name="linear", **k), (9, 9, 3)),
    "Conv2D groups": (lambda **k: layers.Conv2D(4, 3, groups=2, name="linear", **k), (9, 9, 6)),
    "Conv3D": (lambda **k: layers.Conv3D(4, 2, name="linear", **k), (5, 5, 5, 2)),
    "Conv1DTranspose": (lambda **k: layers.Conv1DTranspose(4, 3, name="linear", **k), (9, 3)),
    "Conv2DTranspose": (lambda **k: layers.Conv2DTranspose(4, 3, name="linear", **k), (5, 5, 3)),
    "Conv3DTranspose": (
        lambda **k: layers.Conv3DTranspose(4, 2, name="linear", **k),
        (4, 4, 4, 2),
    ),
    "DepthwiseConv1D": (lambda **k: layers.DepthwiseConv1D(3, name="linear", **k), (9, 3)),
    "DepthwiseConv2D": (
        lambda **k: layers.DepthwiseConv2D(3, depth_multiplier=2, name="linear", **k),
        (9, 9, 3),
    ),
    "SeparableConv1D": (lambda **k: layers.SeparableConv1D(4, 3, name="linear", **k), (9, 3)),
    "SeparableConv2D": (
        lambda **k: layers.SeparableConv2D(4, 3, depth_multiplier=2, name="linear", **k),
        (9, 9, 3),
    ),
}


def behind_linear(kind: str, **arguments):
    make, shape = LINEAR[kind]
    return _behind(make(**arguments), shape)


def bn_on_input():
    inputs = keras.Input((5,))
    return keras.Model(
        inputs, layers.Dense(2, name="head")(BN(name="bn")(inputs)), name="bn_on_input"
    )


def bn_after_activation():
    inputs = keras.Input((5,))
    x = layers.Dense(4, activation="relu", name="dense")(inputs)
    return keras.Model(
        inputs, layers.Dense(2, name="head")(BN(name="bn")(x)), name="bn_after_activation"
    )


def pre_activation():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    y = layers.Conv2D(4, 3, padding="same", name="conv")(layers.ReLU()(BN(name="bn_1")(x)))
    x = layers.Add()([x, y])
    return keras.Model(inputs, layers.ReLU()(BN(name="bn_2")(x)), name="pre_activation")


def conv_with_two_readers():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    return keras.Model(inputs, layers.Add()([x, BN(name="bn")(x)]), name="two_readers")


def conv_that_is_an_output():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    return keras.Model(inputs, [x, BN(name="bn")(x)], name="conv_is_output")


def two_bn_on_one_conv():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    outputs = layers.Add()([BN(name="bn_1")(x), BN(name="bn_2")(x)])
    return keras.Model(inputs, outputs, name="two_bn_on_one_conv")


def shared_conv():
    a, b = keras.Input((8, 8, 3), name="a"), keras.Input((8, 8, 3), name="b")
    conv = layers.Conv2D(4, 3, name="conv")
    outputs = [BN(name="bn_a")(conv(a)), BN(name="bn_b")(conv(b))]
    return keras.Model([a, b], outputs, name="shared_conv")


def shared_bn():
    inputs = keras.Input((6,))
    norm = BN(name="bn")
    x = layers.Dense(6, name="first")(inputs)
    x = layers.ReLU()(norm(x))
    x = norm(layers.Add()([x, inputs]))
    return keras.Model(inputs, norm(x), name="shared_bn")


def half_live():
    inputs = keras.Input((6,))
    norm = BN(name="bn")
    x = layers.Dense(6, name="first")(norm(layers.ReLU()(inputs)))
    return keras.Model(inputs, [norm(x, training=True), norm(x)], name="half_live")


def nested():
    inner_in = keras.Input((8, 8, 4))
    x = BN(name="first")(inner_in)
    x = layers.Conv2D(4, 3, padding="same", name="conv")(x)
    inner = keras.Model(inner_in, BN(name="second")(x), name="block")
    tail = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.Conv2D(2, 3, name="conv"), BN(name="bn")], name="tail"
    )
    inputs = keras.Input((8, 8, 4))
    x = inner(layers.ReLU()(inner(inputs)))
    return keras.Model(inputs, BN(name="bn")(tail(x)), name="nested")


def structured():
    inputs = {"b": keras.Input((4,), name="b"), "a": keras.Input((4,), name="a")}
    x = BN(name="bn")(layers.Dense(4, name="dense")(inputs["a"]))
    y = keras.ops.concatenate([x, inputs["b"] * 2.0 + 1.0], axis=-1)
    z = keras.ops.where(y > 0, y, -0.1 * y)
    outputs = {"z": z, "list": [x, layers.Dense(2, name="head")(z)]}
    return keras.Model(inputs, outputs, name="structured")


def called_by_name():
    """A model of a list of inputs, called on a dict."""
    ends = keras.Input((4,), name="z"), keras.Input((3,), name="a")
    x = layers.Concatenate()([layers.Dense(2, name=f"of_{end.name}")(end) for end in ends])
    inner = keras.Model(ends, BN(name="bn")(x), name="inner")
    inputs = keras.Input((4,)), keras.Input((3,))
    return keras.Model(inputs, inner({"z": inputs[0], "a": inputs[1]}), name="called_by_name")


def masked():
    inputs = keras.Input((7, 4))
    x = layers.Dense(5, name="dense")(layers.Masking()(inputs))
    x = layers.ReLU()(BN(name="bn")(x))
    x = BN(name="bn_late")(x)
    return keras.Model(inputs, layers.LSTM(3)(x), name="masked")


def masked_sequential():
    inputs = keras.Input((7, 4))
    stack = [layers.Masking(), layers.Dense(5), BN(name="bn"), layers.LSTM(3), BN(name="bn_last")]
    return keras.Sequential([inputs, *stack], name="masked_sequential")


def training_fixed():
    inputs = keras.Input((5,))
    x = BN(name="live")(layers.Dense(4, name="first")(inputs), training=True)
    x = BN(name="stored")(layers.Dense(4, name="second")(x), training=False)
    return keras.Model(inputs, x, name="training_fixed")


def opaque():
    inputs = keras.Input((6, 5))
    x = layers.TimeDistributed(BN(name="inner"), name="per_step")(inputs)
    return keras.Model(inputs, BN(name="bn")(layers.Dense(3, name="head")(x)), name="hidden")


def channels_first():
    inputs = keras.Input((4, 6))
    x = layers.Permute((2, 1))(inputs)
    x = BN(axis=1, name="bn")(x)
    return keras.Model(inputs, layers.Flatten()(x), name="channels_first")


def bare_affine():
    inputs = keras.Input((5,))
    x = layers.Dense(4, name="dense")(inputs)
    x = BN(center=False, scale=False, name="bn")(x)
    return keras.Model(inputs, x, name="bare_affine")


def no_bn():
    inputs = keras.Input((5,))
    return keras.Model(inputs, layers.Dense(2, name="head")(inputs), name="no_bn")


def mixed_precision():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, dtype="mixed_float16", name="conv")(inputs)
    x = BN(dtype="mixed_float16", name="bn")(x)
    x = layers.Conv2D(4, 3, dtype="mixed_float16", name="conv_2")(x)
    x = BN(dtype="float32", name="bn_float32")(x)
    return keras.Model(inputs, layers.GlobalAveragePooling2D(dtype="float32")(x), name="mixed")


def compiled():
    model = conv_bn_relu()
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def residual():
    """Two blocks and a classifier, as most networks are made."""

    def build(x):
        for block in (1, 2):
            y = layers.Conv2D(8, 3, padding="same", use_bias=False, name=f"conv_{block}")(x)
            y = layers.ReLU()(BN(name=f"bn_{block}")(y))
            y = BN(name=f"bn_{block}_end")(layers.Conv2D(8, 3, padding="same")(y))
            short = BN(name=f"bn_{block}_short")(layers.Conv2D(8, 1)(x))
            x = layers.ReLU()(layers.Add(name=f"add_{block}")([y, short]))
        x = layers.GlobalAveragePooling2D()(x)
        return layers.Dense(5, activation="softmax", name="head")(x)

    return _graph(build, (8, 8, 3))


def subclassed():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.norm = layers.Dense(4), BN()

        def call(self, x):
            return self.norm(self.dense(x))

    net = Net()
    net(keras.ops.zeros((1, 3)))
    return net


def _graph(build, *shapes, name="model", dtype="float32"):
    """The functional model of a function from inputs to outputs."""
    inputs = [keras.Input(shape, dtype=dtype) for shape in shapes]
    return keras.Model(inputs[0] if len(inputs) == 1 else inputs, build(*inputs), name=name)


def _of_rank(kind: str, **arguments):
    """The 1-D, 2-D or 3-D layer of a kind, for an input of this rank."""
    return lambda rank, **more: getattr(layers, f"{kind}{rank - 2}D")(
        **arguments, **more, name="between"
    )


_RANKS = (3, 4, 5)
# name: (layer for a rank and a data format, ranks of its input)
CROSSED = {
    "average pooling": (_of_rank("AveragePooling", pool_size=2), _RANKS),
    "average pooling, same": (
        _of_rank("AveragePooling", pool_size=3, strides=2, padding="same"),
        _RANKS,
    ),
    "max pooling": (_of_rank("MaxPooling", pool_size=2), _RANKS),
    "max pooling, same": (
        _of_rank("MaxPooling", pool_size=3, strides=2, padding="same"),
        _RANKS,
    ),
    "global average pooling": (_of_rank("GlobalAveragePooling"), _RANKS),
    "global average pooling, keepdims": (_of_rank("GlobalAveragePooling", keepdims=True), _RANKS),
    "global max pooling": (_of_rank("GlobalMaxPooling"), _RANKS),
    "global max pooling, keepdims": (_of_rank("GlobalMaxPooling", keepdims=True), _RANKS),
    "cropping": (_of_rank("Cropping", cropping=1), _RANKS),
    "upsampling": (_of_rank("UpSampling", size=2), _RANKS),
    "upsampling, bilinear": (_of_rank("UpSampling", size=2, interpolation="bilinear"), (4,)),
    "upsampling, bicubic": (_of_rank("UpSampling", size=2, interpolation="bicubic"), (4,)),
    "zero padding": (_of_rank("ZeroPadding", padding=1), _RANKS),
    "spatial dropout": (_of_rank("SpatialDropout", rate=0.3), _RANKS),
    "dropout": (lambda rank: layers.Dropout(0.3, name="between"), (2, *_RANKS)),
    "identity": (lambda rank: layers.Identity(name="between"), (2, *_RANKS)),
    "linear activation": (lambda rank: layers.Activation("linear", name="between"), (2, *_RANKS)),
}
_SPACE = {2: (), 3: (9,), 4: (6, 9), 5: (5, 7, 6)}


def commuting(kind: str, rank: int, axis: int = -1):
    """A linear layer, the layer between of the table, and a BatchNorm."""
    between, _ = CROSSED[kind]
    conv = layers.Dense if rank == 2 else getattr(layers, f"Conv{rank - 2}D")
    arguments = () if rank == 2 else (2,)
    return _graph(
        lambda x: BN(axis=axis, name="bn")(
            between(rank)(conv(4, *arguments, bias_initializer="normal", name="linear")(x))
        ),
        (*_SPACE[rank], 3),
    )


def crossing_channels_first(kind: str, rank: int):
    """The same with channels on axis 1."""
    between, _ = CROSSED[kind]
    by_format = {} if _pointwise(kind) else {"data_format": "channels_first"}
    conv = getattr(layers, f"Conv{rank - 2}D")
    linear = conv(4, 2, data_format="channels_first", bias_initializer="normal", name="linear")
    return _graph(
        lambda x: BN(axis=1, name="bn")(between(rank, **by_format)(linear(x))),
        (3, *_SPACE[rank]),
    )


def _pointwise(kind: str) -> bool:
    return kind in ("dropout", "identity", "linear activation")


CROSSED_CHANNELS_FIRST = [
    (kind, rank)
    for kind, (between, ranks) in CROSSED.items()
    for rank in ranks
    if rank > 2 and (_pointwise(kind) or hasattr(between(rank), "data_format"))
]


def pool_read_twice():
    def build(x):
        x = layers.AveragePooling2D(2, name="pool")(layers.Conv2D(4, 3, name="linear")(x))
        return layers.Add()([x, BN(name="bn")(x)])

    return _graph(build, (8, 8, 3))


def conv_before_pool_read_twice():
    def build(x):
        x = layers.Conv2D(4, 3, name="linear")(x)
        return [x, BN(name="bn")(layers.AveragePooling2D(2, name="pool")(x))]

    return _graph(build, (8, 8, 3))


def masked_pool():
    def build(x):
        x = layers.Dense(4, name="linear")(layers.Masking()(x))
        return BN(name="bn")(layers.GlobalAveragePooling1D(name="pool")(x))

    return _graph(build, (7, 3))


def masked_dropout():
    def build(x):
        x = layers.Dense(4, name="linear")(layers.Masking()(x))
        return layers.LSTM(2)(BN(name="bn")(layers.Dropout(0.3, name="dropout")(x)))

    return _graph(build, (7, 3))


def two_crossed():
    def build(x):
        x = layers.Conv2D(4, 3, name="linear")(x)
        x = layers.Dropout(0.2, name="dropout")(layers.AveragePooling2D(2, name="pool")(x))
        return BN(name="bn")(x)

    return _graph(build, (8, 8, 3))


def crossed_in_another_dtype():
    def build(x):
        x = layers.Conv2D(4, 3, name="linear")(x)
        return BN(name="bn")(layers.AveragePooling2D(2, dtype="mixed_bfloat16", name="pool")(x))

    return _graph(build, (8, 8, 3))


def one_input_of_two_models():
    """A submodel made from the very tensors of the model around it, its layers in both graphs."""
    inputs = keras.Input((4,), name="x")
    x = layers.Dense(4, name="dense")(inputs)
    y = BN(name="bn")(x)
    inner = keras.Model(inputs, y, name="inner")
    return keras.Model(inputs, layers.Add()([inner(inputs), inner(x), y]), name="around")


def renorm():
    return _graph(lambda x: BN(renorm=True, name="bn")(layers.Dense(4, name="dense")(x)), (5,))


def synchronized():
    return _graph(
        lambda x: BN(synchronized=True, name="bn")(layers.Dense(4, name="dense")(x)), (5,)
    )


def subclasses_of_bn():
    def build(x):
        x = tiny_code.Named(name="named")(layers.Dense(4, name="dense")(x))
        return tiny_code.Doubled(name="doubled")(layers.ReLU()(x))

    return _graph(build, (5,))


def quantized():
    """An int8 layer in front of one BatchNorm and behind another."""

    def build(x):
        x = BN(name="bn_1")(layers.Dense(4, name="dense_int8")(x))
        x = BN(name="bn_2")(layers.Dense(4, name="dense")(layers.ReLU()(x)))
        return layers.Dense(3, name="head_int8")(x)

    model = _graph(build, (5,))
    for name in ("dense_int8", "head_int8"):
        model.get_layer(name).quantize("int8")
    return model


def lora():
    def build(x):
        x = BN(name="bn_1")(layers.Dense(4, name="dense_lora")(x))
        x = layers.Conv1D(4, 2, name="conv_lora")(x)
        x = BN(name="bn_2")(layers.ReLU()(x))
        return BN(name="bn_3")(layers.Dense(4, name="dense")(x))

    model = _graph(build, (6, 5))
    rng = np.random.default_rng(0)
    for name in ("dense_lora", "conv_lora"):
        model.get_layer(name).enable_lora(2)
    for variable in model.variables:
        if "lora" in variable.name:
            variable.assign(rng.normal(size=variable.shape))
    return model


def regularized():
    def build(x):
        x = layers.Dense(
            4, kernel_regularizer="l2", bias_regularizer="l1", kernel_constraint="max_norm",
            name="dense",
        )(x)  # fmt: skip
        return BN(gamma_regularizer="l2", beta_constraint="non_neg", name="bn")(x)

    return _graph(build, (5,))


def with_attributes():
    """A model with things hung on it."""
    model = dense_bn()
    model.classes = ["a", "b", "c"]
    model.settings = {"mean": np.ones(3), "crop": (1, 2)}
    model.decoder = lambda x: x
    return model


def preprocessed():
    """Adapted scaling in front."""

    def build(x):
        scaler = layers.Normalization(name="scaler")
        scaler.adapt(np.random.default_rng(0).normal(5, 2, (100, 5)))
        x = layers.Rescaling(0.5, offset=1.0)(scaler(x))
        return BN(name="bn")(layers.Dense(4, name="dense")(x))

    return _graph(build, (5,))


def categories():
    """Words and numbers, looked up."""
    words = keras.Input((1,), dtype="string", name="words")
    numbers = keras.Input((1,), dtype="int64", name="numbers")
    x = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(words)
    y = layers.CategoryEncoding(4, output_mode="one_hot")(
        layers.IntegerLookup(vocabulary=[3, 5, 7], name="lookup")(numbers)
    )
    x = layers.Dense(4, name="dense")(layers.Concatenate()([x, y]))
    return keras.Model({"words": words, "numbers": numbers}, BN(name="bn")(x), name="categories")


def text():
    def build(x):
        vectors = layers.TextVectorization(output_sequence_length=4, name="vectors")
        vectors.adapt(["the cat", "a dog and the cat"])
        x = layers.Embedding(8, 3, mask_zero=True, name="embedding")(vectors(x))
        return layers.GlobalAveragePooling1D()(BN(name="bn")(layers.Dense(4, name="dense")(x)))

    return _graph(build, (1,), dtype="string")


def masked_lstm():
    """Masking → BatchNorm → LSTM."""
    return _graph(lambda x: layers.LSTM(3)(BN(name="bn")(layers.Masking()(x))), (7, 4))


def a_mask_by_name():
    """BatchNorm called with a mask that does not travel with its input."""
    x, mask = keras.Input((6, 4), name="x"), keras.Input((6,), dtype="bool", name="mask")
    y = BN(name="bn")(layers.Dense(4, name="dense")(x), mask=mask)
    return keras.Model({"x": x, "mask": mask}, layers.LSTM(3)(y), name="a_mask_by_name")


def nested_outputs():
    """Outputs in a dict that is not in alphabetic order, with a list and a tuple in it."""

    def build(a, b):
        x = BN(name="bn_a")(layers.Dense(4, name="dense_a")(a))
        y = BN(name="bn_b")(layers.Dense(3, name="dense_b")(b))
        return {"z": x, "list": [y, layers.ReLU()(x)], "a": {"inner": (layers.ReLU()(y), x)}}

    return _graph(build, (5,), (6,))


def arithmetic():
    """Operators, `keras.ops`, slices and constants."""

    def build(x):
        x = BN(name="bn_1")(layers.Dense(4, name="dense")(x * 2.0 - 1.0))
        y = keras.ops.concatenate([x[:, :2], -(x[:, 2:] ** 2)], axis=-1)
        y = keras.ops.where(y > 0, y, 0.1 * y) @ np.ones((4, 3), "float32")
        return BN(name="bn_2")(keras.ops.expand_dims(y, 1) + keras.ops.stack([y, y], axis=1))

    return _graph(build, (5,))


def several_inputs():
    def build(a, b, c):
        x = layers.Concatenate()([layers.Dense(3, name="dense_a")(a), b])
        return BN(name="bn")(layers.Dense(4, name="dense")(x)) * layers.Dense(4, name="gate")(c)

    return _graph(build, (5,), (3,), (2,))


def output_with_many_readers():
    """The output of a BatchNorm that is an output of the model and read three times."""

    def build(x):
        x = BN(name="bn")(layers.Dense(4, name="dense")(x))
        return [x, layers.Add()([x, layers.ReLU()(x)]), layers.Concatenate()([x, x]), x]

    return _graph(build, (5,))


def three_deep():
    model = dense_bn()
    for depth in range(3):
        inner, model = model, None

        def build(x, inner=inner, depth=depth):
            x = BN(name="bn")(layers.Dense(5, name="dense")(inner(x)))
            return layers.ReLU()(x)

        model = _graph(build, (5,), name=f"depth_{depth}")
    return model


def submodel_on_several_sizes():
    """A fully convolutional submodel called on images of several sizes."""
    inner = keras.Sequential(
        [keras.Input((None, None, 3)), layers.Conv2D(4, 3, name="conv"), BN(name="bn")],
        name="inner",
    )

    def build(a, b):
        pool = layers.GlobalAveragePooling2D()
        return layers.Add()([pool(inner(a)), pool(inner(b)), pool(inner(a[:, ::2]))])

    return _graph(build, (8, 9, 3), (5, 6, 3))


def _behind_of_rank(rank: int):
    space = _SPACE[rank]
    return _graph(
        lambda x: BN(name="bn_2")(layers.ReLU()(BN(name="bn")(_CONV[rank](x)))), (*space, 3)
    )


_CONV = {
    2: lambda x: layers.Dense(4, name="linear")(x),
    3: lambda x: layers.Conv1D(4, 2, name="linear")(x),
    4: lambda x: layers.Conv2D(4, 2, name="linear")(x),
    5: lambda x: layers.Conv3D(4, 2, name="linear")(x),
}


def one_d():
    return _behind_of_rank(3)


def three_d():
    return _behind_of_rank(5)


def batch_time_features():
    """BatchNorm over the features and over the time steps of (batch, time, features)."""

    def build(x):
        x = BN(axis=-1, name="features")(layers.Dense(4, name="dense")(x))
        return BN(axis=1, name="steps")(layers.ReLU()(x))

    return _graph(build, (6, 5))


def another_axis():
    """BatchNorm over rows and columns of images."""

    def build(x):
        x = BN(axis=1, name="rows")(layers.Conv2D(4, 3, name="conv")(x))
        return BN(axis=2, name="columns")(x)

    return _graph(build, (8, 7, 3))


def mixed_policies():
    def build(x):
        x = BN(dtype="mixed_bfloat16", name="bn_1")(layers.Dense(4, name="dense_1")(x))
        x = layers.Dense(4, dtype="mixed_bfloat16", name="dense_2")(x)
        x = BN(dtype="float32", name="bn_2")(x)
        return BN(name="bn_3")(layers.Dense(4, dtype="float32", name="dense_3")(x))

    return _graph(build, (5,))


def frozen():
    def build(x):
        x = layers.Dense(4, trainable=False, name="dense")(x)
        return BN(trainable=False, name="bn")(x)

    return _graph(build, (5,))


def masked_submodel():
    """A submodel behind a mask, called on one tensor in the place of both of its inputs."""
    a, b = keras.Input((7, 4)), keras.Input((7, 4))
    x = BN(name="bn_in")(layers.Dense(4, name="dense")(layers.Add()([a, b])))
    inner = keras.Model([a, b], x, name="inner")

    def build(x):
        x = layers.Masking()(x)
        return BN(name="bn")(layers.ReLU()(inner([x, x])))

    return _graph(build, (7, 4))
