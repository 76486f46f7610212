"""Small nets of many kinds to measure the fitted swaps on, and the data that they are trained on.

Each is a kind of net: how its inputs are scaled, where its BatchNorm stands, what it puts out. They
are in two halves. Constants of the package are chosen on `CHOOSING` alone; `SHOWING` is measured
afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import layers
from sklearn import datasets


@dataclass(frozen=True)
class Split:
    """Samples to train on and to test on; `y` are classes, masks or numbers."""

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


@dataclass(frozen=True)
class Net:
    """A net and what it takes to train it.

    Attributes:
        data: From the material's folder to the samples.
        build: The net, not trained.
        epochs: Of Adam.
        rate: Its learning rate.
    """

    data: Callable[[Path], Split]
    build: Callable[[], keras.Model]
    epochs: int = 4
    rate: float = 2e-3


# ------------------------------------------------------------------------------------------- data


def fashion(material: Path, scale: float = 1.0, shift: float = 0.0, first: bool = False) -> Split:
    """Fashion-MNIST, 20,000 to train on; x = (pixel − shift)·scale."""
    with np.load(material / "data" / "fashion_mnist.npz") as stored:
        kept = [stored[name] for name in ("x_train", "y_train", "x_test", "y_test")]

    def scaled(x):
        x = (x.astype("float32") - shift) * scale
        return x[:, None] if first else x[..., None]

    return Split(scaled(kept[0][:20_000]), kept[1][:20_000], scaled(kept[2]), kept[3])


def digits_on_clutter(material: Path) -> Split:
    """A digit on pieces of others, 32x32; the mask says where the digit is."""
    with np.load(material / "data" / "mnist.npz") as stored:
        train, test = (stored[f"x_{part}"].astype("float32") / 255 for part in ("train", "test"))

    def made(images, seed):
        rng = np.random.default_rng(seed)
        x, y = np.zeros((2, len(images), 32, 32, 1), "float32")
        for number, image in enumerate(images):
            for _ in range(6):
                row, column = rng.integers(0, 24, 2)
                piece = images[rng.integers(len(images))][8:16, 8:16]
                place = x[number, row : row + 8, column : column + 8, 0]
                np.maximum(place, piece, out=place)
            row, column = rng.integers(0, 5, 2)
            place = x[number, row : row + 28, column : column + 28, 0]
            np.maximum(place, image, out=place)
            y[number, row : row + 28, column : column + 28, 0] = image > 0.3
        return x, y

    return Split(*made(train, 0), *made(test[:2000], 1))


def speech(material: Path, standardized: bool = False) -> Split:
    """Spoken digits as log-mel energies, 48x32; speakers' first five takes are for testing."""
    with np.load(material / "data" / "spoken_digits.npz") as stored:
        x, y, take = stored["x"].astype("float32"), stored["y"], stored["take"]
    test = take < 5
    if standardized:
        x = (x - x[~test].mean((0, 1))) / x[~test].std((0, 1))
    order = np.random.default_rng(0).permutation(np.flatnonzero(~test))
    return Split(x[order], y[order], x[test], y[test])


def face_patches(material: Path) -> Split:
    """Faces of 32x32 with noise, and without it, in [0, 1]."""
    with np.load(material / "data" / "faces.npz") as stored:
        x = stored["x"].astype("float32") / 255
    clean = x.reshape(-1, 32, 2, 32, 2).mean((2, 4))[..., None]
    noisy = clean + np.random.default_rng(0).normal(0, 0.15, clean.shape).astype("float32")
    order = np.random.default_rng(1).permutation(len(x))
    train, test = order[:1300], order[1300:]
    return Split(noisy[train], clean[train], noisy[test], clean[test])


def fashion_codes(material: Path) -> Split:
    """The first 24 principal components of Fashion-MNIST, and the images that they stand for."""
    data = fashion(material, 1 / 255)
    flat, test = data.x.reshape(-1, 784), data.test_x.reshape(-1, 784)
    mean = flat.mean(0)
    values, vectors = np.linalg.eigh(np.cov((flat - mean).T))
    axes = (vectors[:, -24:] / np.sqrt(values[-24:])).astype("float32")
    return Split((flat - mean) @ axes, data.x, (test - mean) @ axes, data.test_x)


def table(name: str) -> Split:
    """One of scikit-learn's tables; every third row is for testing."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x, y = x.astype("float32"), y.astype("int32")
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    test = np.arange(len(x)) % 3 == 2
    x = (x - x[~test].mean(0)) / (x[~test].std(0) + 1e-6)
    return Split(x[~test], y[~test], x[test], y[test])


# ----------------------------------------------------------------------------------------- blocks


def norm_relu(x, **norm):
    return layers.ReLU()(layers.BatchNormalization(**norm)(x))


def residual(x, filters: int, strides: int = 1, **norm):
    y = layers.Conv2D(filters, 3, strides, "same", use_bias=False)(x)
    y = layers.Conv2D(filters, 3, padding="same", use_bias=False)(norm_relu(y, **norm))
    y = layers.BatchNormalization(**norm)(y)
    if strides > 1 or x.shape[-1] != filters:
        x = layers.BatchNormalization(**norm)(layers.Conv2D(filters, 1, strides)(x))
    return layers.ReLU()(layers.Add()([x, y]))


def pre_activation(x, filters: int, strides: int = 1):
    y = norm_relu(x)
    short = layers.Conv2D(filters, 1, strides)(y) if strides > 1 else x
    y = layers.Conv2D(filters, 3, strides, "same", use_bias=False)(y)
    y = layers.Conv2D(filters, 3, padding="same", use_bias=False)(norm_relu(y))
    return layers.Add()([short, y])


def separable(x, filters: int, strides: int = 1):
    x = norm_relu(layers.DepthwiseConv2D(3, strides, "same", use_bias=False)(x))
    return norm_relu(layers.Conv2D(filters, 1, use_bias=False)(x))


def squeeze_excite(x):
    filters = x.shape[-1]
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Conv2D(filters // 4, 1, activation="relu")(y)
    return layers.Multiply()([x, layers.Conv2D(filters, 1, activation="sigmoid")(y)])


def classify(inputs, x, classes: int = 10) -> keras.Model:
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(x))


# ------------------------------------------------------------------------------------------- nets


def residual_net(norm=lambda: {}) -> keras.Model:
    inputs = keras.Input((28, 28, 1))
    x = norm_relu(layers.Conv2D(12, 3, padding="same", use_bias=False)(inputs), **norm())
    for filters, strides in ((12, 1), (24, 2), (48, 2)):
        x = residual(x, filters, strides, **norm())
    return classify(inputs, x)


def deep_pre_activation_net() -> keras.Model:
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(12, 3, 2, "same", use_bias=False)(inputs)
    for filters, strides in (
        ((12, 1),) * 5 + ((24, 2),) + ((24, 1),) * 4 + ((32, 2),) * 1 + ((32, 1),) * 4
    ):
        x = pre_activation(x, filters, strides)
    return classify(inputs, norm_relu(x))


def separable_speech_net() -> keras.Model:
    inputs = keras.Input((48, 32))
    x = layers.Reshape((48, 32, 1))(inputs)
    x = norm_relu(layers.Conv2D(24, (10, 4), 2, "same", use_bias=False)(x))
    for _ in range(4):
        x = separable(x, 32)
    return classify(inputs, x)


def waves_net() -> keras.Model:
    """Conv1D → ReLU → BatchNorm."""
    inputs = keras.Input((48, 32))
    x = inputs
    for filters in (24, 32, 48):
        x = layers.Conv1D(filters, 5, padding="same", activation="relu")(x)
        x = layers.MaxPooling1D(2)(layers.BatchNormalization()(x))
    return classify(inputs, layers.GlobalAveragePooling1D()(x))


def recurrent_speech_net() -> keras.Model:
    inputs = keras.Input((48, 32))
    x = norm_relu(layers.Conv1D(32, 5, 2, "same", use_bias=False)(inputs))
    x = norm_relu(layers.Conv1D(32, 3, padding="same", use_bias=False)(x))
    x = layers.LSTM(32)(x)
    return classify(inputs, layers.BatchNormalization()(x))


def dense_net(size: int, classes: int, before_softmax: bool = False) -> keras.Model:
    inputs = keras.Input((size,))
    x = inputs
    for units in (64, 32):
        x = norm_relu(layers.Dense(units)(x))
    if not before_softmax:
        return classify(inputs, x, classes)
    x = layers.BatchNormalization()(layers.Dense(classes)(x))
    return keras.Model(inputs, layers.Softmax()(x))


def segmenting_net() -> keras.Model:
    """A U-Net of three levels."""
    inputs = keras.Input((32, 32, 1))
    x, skips = inputs, []
    for filters in (8, 16):
        x = norm_relu(layers.Conv2D(filters, 3, padding="same", use_bias=False)(x))
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = norm_relu(layers.Conv2D(32, 3, padding="same", use_bias=False)(x))
    for filters, skip in zip((16, 8), reversed(skips), strict=True):
        x = layers.Conv2DTranspose(filters, 2, 2)(x)
        x = layers.Concatenate()([norm_relu(x), skip])
        x = norm_relu(layers.Conv2D(filters, 3, padding="same", use_bias=False)(x))
    return keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(x))


def denoising_net() -> keras.Model:
    """A convolutional autoencoder."""
    inputs = keras.Input((32, 32, 1))
    x = inputs
    for filters in (16, 24, 32):
        x = norm_relu(layers.Conv2D(filters, 3, 2, "same", use_bias=False)(x))
    for filters in (24, 16, 12):
        x = norm_relu(layers.Conv2DTranspose(filters, 3, 2, "same", use_bias=False)(x))
    return keras.Model(inputs, layers.Conv2D(1, 3, padding="same")(x))


def generating_net() -> keras.Model:
    """Codes to images, as the generator of a GAN is built."""
    inputs = keras.Input((24,))
    x = norm_relu(layers.Dense(7 * 7 * 24, use_bias=False)(inputs))
    x = layers.Reshape((7, 7, 24))(x)
    x = norm_relu(layers.Conv2DTranspose(16, 4, 2, "same", use_bias=False)(x))
    x = norm_relu(layers.Conv2DTranspose(8, 4, 2, "same", use_bias=False)(x))
    return keras.Model(inputs, layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x))


def channels_first_net() -> keras.Model:
    inputs = keras.Input((1, 28, 28))
    x = inputs
    for filters, strides in ((12, 1), (24, 2), (24, 1), (32, 2)):
        x = layers.Conv2D(
            filters, 3, strides, "same", use_bias=False, data_format="channels_first"
        )(x)
        x = norm_relu(x, axis=1)
    x = layers.GlobalAveragePooling2D(data_format="channels_first")(x)
    return classify(inputs, x)


def squeeze_excite_net() -> keras.Model:
    inputs = keras.Input((28, 28, 1))
    x = norm_relu(layers.Conv2D(16, 3, 2, "same", use_bias=False)(inputs))
    for filters, strides in ((16, 1), (32, 2), (32, 1)):
        y = norm_relu(layers.Conv2D(filters, 3, strides, "same", use_bias=False)(x))
        y = layers.BatchNormalization()(layers.Conv2D(filters, 1, use_bias=False)(y))
        y = squeeze_excite(y)
        x = layers.ReLU()(layers.Add()([x, y]) if strides == 1 else y)
    return classify(inputs, x)


@keras.saving.register_keras_serializable(package="bench_nets")
class Uneven(keras.initializers.Initializer):
    """Values from 1/30 to 30, evenly on a logarithmic scale, in random order."""

    def __call__(self, shape, dtype=None):
        values = np.geomspace(1 / 30, 30, shape[0])
        return keras.ops.cast(np.random.default_rng(0).permutation(values), dtype)


def uneven_gamma_net() -> keras.Model:
    return residual_net(lambda: {"gamma_initializer": Uneven()})


def no_gamma_net() -> keras.Model:
    return residual_net(lambda: {"scale": False})


CHOOSING: dict[str, Net] = {
    "raw_pixels": Net(fashion, residual_net),
    "separable_speech": Net(speech, separable_speech_net, epochs=25),
    "tabular": Net(lambda _: table("digits"), functools.partial(dense_net, 64, 10), 15),
    "segmentation": Net(digits_on_clutter, segmenting_net, epochs=3),
    "generator": Net(fashion_codes, generating_net, epochs=4),
    "channels_first": Net(
        functools.partial(fashion, scale=1 / 255, first=True), channels_first_net
    ),
    "no_gamma": Net(functools.partial(fashion, scale=1 / 255), no_gamma_net),
}
SHOWING: dict[str, Net] = {
    "deep_pre_activation": Net(
        functools.partial(fashion, shift=72.9, scale=1 / 90.0), deep_pre_activation_net, epochs=5
    ),
    "waves": Net(functools.partial(speech, standardized=True), waves_net, epochs=20),
    "recurrent_speech": Net(speech, recurrent_speech_net, epochs=25),
    "before_softmax": Net(
        lambda _: table("breast_cancer"), functools.partial(dense_net, 30, 2, True), 30
    ),
    "denoising": Net(face_patches, denoising_net, epochs=30),
    "squeeze_excite": Net(functools.partial(fashion, scale=1 / 255), squeeze_excite_net),
    "uneven_gamma": Net(functools.partial(fashion, scale=1 / 255), uneven_gamma_net, rate=1e-3),
}
NETS = CHOOSING | SHOWING
