"""keras.applications models with random but non-trivial BatchNorm weights, and images for them."""

from __future__ import annotations

import inspect
import sys
import types

import keras
import numpy as np
from fidelity import linearize_outputs, randomize

# Enough rows that a variance over one 1x1 map is a variance.
ROWS = 8


def architectures() -> list[str]:
    """The names of all models of keras.applications."""
    return [name for name, value in vars(keras.applications).items() if inspect.isfunction(value)]


def may_have_batch_norm(name: str) -> bool:
    """Whether the module that makes a model, or one that it takes from, names BatchNormalization.

    Those without it need not be built to be left out; they are the largest of all.
    """
    module = sys.modules[getattr(keras.applications, name).__module__]
    package = module.__name__.rpartition(".")[0]
    others = [v for v in vars(module).values() if isinstance(v, types.ModuleType)]
    modules = [module, *(m for m in others if m.__name__.startswith(package + "."))]
    return any("BatchNormalization" in inspect.getsource(m) for m in modules)


def in_float64(name: str, model: keras.Model) -> keras.Model:
    """The same model with its weights in float64, so that hardly anything is rounded."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        wide = built(name, model.input.shape[1])
    finally:
        keras.config.set_dtype_policy(before)
    wide.set_weights(model.get_weights())
    linearize_outputs(wide)
    return wide


def smallest(name: str) -> keras.Model:
    """A model with random weights, at the smallest square input that it can be built for."""
    for size in range(32, 129):
        try:
            return built(name, size)
        except ValueError as error:
            reason = error
    raise reason


def built(name: str, size: int) -> keras.Model:
    """A model with Keras's random weights, the same ones every time."""
    keras.utils.set_random_seed(0)
    return getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3))


def brought_alive(model: keras.Model, rows: int = ROWS) -> np.ndarray:
    """Give a model BatchNorm weights to be told apart, and bare outputs; images it is meant for."""
    x = images(model.input.shape[1], rows)
    scaling = (keras.layers.Rescaling, keras.layers.Normalization)
    if any(isinstance(layer, scaling) for layer in model.layers[:4]):  # takes pixels
        x = np.clip(127.5 + 60 * x, 0, 255)
    randomize(model, x)
    linearize_outputs(model)
    return x


def images(size: int, rows: int = ROWS) -> np.ndarray:
    """Random images with structure: blocks of colour of several sizes, and a little noise.

    Pure noise looks alike in every place and every image. Deep channels then vary by less and
    less around large means, and normalizing them amplifies rounding from layer to layer.
    """
    rng = np.random.default_rng(1)
    x = 0.1 * rng.normal(size=(rows, size, size, 3))
    for blocks in (1, 3, 12):
        part = rng.normal(size=(rows, blocks, blocks, 3))
        block = np.arange(size) * blocks // size
        x += part[:, block][:, :, block]
    return x.astype("float32")
