"""Seeded random inputs, for a model that is to be run when no data is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from kerasnorm import keras_private
from kerasnorm.compare.tolerances import EPSILONS
from kerasnorm.errors import KerasNormError, SwapError

# Integers above this are rare in what models take (pixels, flags, months).
_INTEGER_LIMIT = 100
# A probability nearer to 0 or 1 tells nothing of what is behind it. What to multiply random inputs
# by, in this order, until some are not.
_SURE = 1e-3
_FACTORS = (1.0, 0.3, 0.1, 0.03, 0.01, 3.0, 10.0, 30.0, 100.0)


class NotComparableError(SwapError):
    """The source itself cannot be run on the inputs."""


def random_inputs(
    tensors: Iterable[Any], model: keras.Layer, rows: int, *, free: tuple[int, int], seed: int = 0
) -> list[np.ndarray]:
    """A random array for each input: standard normal, integers below every vocabulary, booleans.

    Args:
        tensors: What has the `name`, `shape` and `dtype` of an input.
        model: The model that takes them.
        rows: The batch size, where a shape leaves it open.
        free: The size of other axes that a shape leaves open: up to two of them, or more.
        seed: Of the random numbers.

    Raises:
        NotComparableError: If an input takes something else, such as text.
    """
    generator = np.random.default_rng(seed)
    vocabulary = _smallest_vocabulary(model)
    arrays = []
    for tensor in tensors:
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        size = free[sum(n is None for n in tensor.shape[1:]) > 2]
        shape = [size if n is None else n for n in tensor.shape]
        if tensor.shape and tensor.shape[0] is None:
            shape[0] = rows
        if dtype == "bool":
            arrays.append(generator.integers(0, 2, shape).astype(bool))
        elif "int" in dtype:
            top = min(vocabulary, np.iinfo(dtype).max)
            arrays.append(generator.integers(0, top, shape).astype(dtype))
        elif "float" in dtype:
            arrays.append(generator.standard_normal(shape).astype(dtype))
        else:
            raise NotComparableError(f"input '{tensor.name}' takes {dtype}")
    return arrays


def _smallest_vocabulary(model: keras.Layer) -> int:
    sizes = [
        getattr(layer, attribute, None)
        for layer in keras_private.sublayers(model)
        for attribute in ("input_dim", "num_tokens")
    ]
    return min([size for size in sizes if isinstance(size, int)], default=_INTEGER_LIMIT)


def scaled_off_saturation(
    arrays: list[np.ndarray], answer: Callable[[list[np.ndarray]], list[np.ndarray]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Inputs, made smaller or larger where the model's probabilities are all 0 or 1 otherwise.

    A saturated softmax or sigmoid hides what happened before it: it answers the same to whatever
    its inputs are.

    Args:
        arrays: The inputs, flat.
        answer: Gives a model's outputs, flat.

    Returns:
        The inputs times the first factor of a few at which some probability lies between, as they
        are where there is none; and the outputs.
    """
    for factor in _FACTORS:
        scaled = [a * a.dtype.type(factor) if a.dtype.name in EPSILONS else a for a in arrays]
        try:
            outputs = answer(scaled)
        except KerasNormError:  # not finite, or not taken
            continue
        if not any(map(is_saturated, outputs)):
            return scaled, outputs
    return arrays, answer(arrays)


def is_saturated(answer: np.ndarray) -> bool:
    """Whether probabilities are all next to 0 or 1."""
    if answer.dtype.name not in EPSILONS or not answer.size:
        return False
    # a comparison of NaN in bfloat16 warns
    answer = answer.astype(np.result_type(answer.dtype, np.float32), copy=False)
    if answer.min() < 0 or answer.max() > 1:
        return False
    return not ((answer > _SURE) & (answer < 1 - _SURE)).any()
