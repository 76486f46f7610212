"""One small convolutional network, trained with each normalization on Fashion-MNIST.

    python examples/compare_norms.py [--quick] [--seeds N]

Prints test accuracy with mini-batches of 128 and of 4 images, shuffled, and each from one class.
BatchNorm takes its statistics from the mini-batch, so small or unlike mini-batches hurt it; the
other normalizations do not see the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
from fashion import load, print_table, settings_from_command_line
from keras import layers

from kerasnorm import BatchNorm, CosineNorm, LayerNorm, WeightNorm, data_init


def plain(filters: int, x):
    return layers.Conv2D(filters, 3, padding="same", activation="relu")(x)


def batch(filters: int, x):
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
    return layers.ReLU()(BatchNorm(momentum=0.9)(x))


def layer(filters: int, x):
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
    return layers.ReLU()(LayerNorm(axis="sample")(x))


def weight(filters: int, x):
    return WeightNorm(layers.Conv2D(filters, 3, padding="same", activation="relu"))(x)


def cosine(filters: int, x):
    convolution = layers.Conv2D(filters, 3, padding="same", activation="relu")
    return CosineNorm(convolution, rescale=True, damping=0.1)(x)


def network(block: Callable, from_data: bool = False) -> Callable[..., keras.Model]:
    """A function that builds the network out of one kind of convolutional block."""

    def make(start):
        inputs = keras.Input((28, 28, 1))
        x = inputs
        for filters in (16, 32, 64):
            x = layers.MaxPooling2D(2)(block(filters, x))
        x = layers.GlobalAveragePooling2D()(x)
        model = keras.Model(inputs, layers.Dense(10)(x))
        if from_data:
            data_init(model, start)
        return model

    return make


def main() -> None:
    settings = settings_from_command_line(__doc__ or "")
    models = {
        "none": network(plain),
        "batch": network(batch),
        "layer": network(layer),
        "weight, data_init": network(weight, from_data=True),
        "cosine": network(cosine),
    }
    print_table(models, load(settings), settings)


if __name__ == "__main__":
    main()
