"""Calibration data, cut into batches of model inputs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import tree

from kerasnorm.errors import DataError, check_whole_number
from kerasnorm.graph.graph import Graph

LEAST_SAMPLES = 10


def batches_of(data: Any, batch_size: int) -> Iterator[Any]:
    """The inputs in data, batch by batch, in their structure.

    Args:
        data: An array; a tuple, list or dictionary of arrays for several inputs; or an iterable of
            batches that ends (`tf.data.Dataset`, `keras.utils.PyDataset`, a generator), where a
            batch that is a tuple counts as (inputs, targets, …).
        batch_size: Of the batches that arrays are cut into.

    Raises:
        DataError: If it is none of these, or never ends, or `batch_size` is no whole number from 1.
    """
    check_whole_number("batch_size", batch_size, least=1)
    arrays = tree.flatten(data) if isinstance(data, (tuple, list, dict)) else [data]
    if arrays and all(getattr(a, "shape", ()) and hasattr(a, "__getitem__") for a in arrays):
        for start in range(0, arrays[0].shape[0], batch_size):
            stop = start + batch_size
            yield tree.map_structure(lambda a: a[start:stop], data)  # noqa: B023
    elif isinstance(data, Iterable) and not isinstance(data, (str, bytes, np.ndarray)):
        if _is_endless(data):
            raise DataError(
                f"The data must end. Received a {type(data).__name__} that repeats for ever.",
                hint="Give some of its batches: `data.take(n)`, or `itertools.islice(data, n)`.",
            )
        for batch in data:
            yield batch[0] if isinstance(batch, tuple) else batch
    else:
        raise DataError(
            f"The data must be arrays or an iterable of batches. Received: {type(data).__name__}.",
            hint="Read a file first: numpy.load(path)."
            if isinstance(data, (str, bytes, os.PathLike))
            else None,
        )


def _is_endless(data: Any) -> bool:
    """Whether batches say of themselves that they never end; a generator's cannot."""
    if isinstance(data, keras.utils.PyDataset):
        try:
            return data.num_batches is None
        except NotImplementedError:
            return True
    if hasattr(data, "cardinality"):
        return int(data.cardinality()) == -1  # tf.data.INFINITE_CARDINALITY
    return isinstance(data, itertools.cycle)


def input_batches(root: Graph, data: Any, batch_size: int) -> Iterator[list[np.ndarray]]:
    """The data as batches of a model's inputs, flat.

    Raises:
        DataError: If it is empty, does not fit the inputs, or is not finite.
    """
    inputs = tree.flatten(root.inputs)
    text = next((tensor for tensor in inputs if tensor.dtype == "string"), None)
    if text is not None:
        raise DataError(
            f"A model must take numbers to be fitted to data. Input '{text.name}' takes text.",
            model=root.owner.name,
            hint="Swap the part of it that follows the text preprocessing.",
        )
    count = 0
    for batch in batches_of(data, batch_size):
        arrays = [_as_array(a, root) for a in tree.flatten(batch)]
        if len(arrays) != len(inputs):
            raise DataError(
                f"The data must have an array for each input of the model, {len(inputs)} in all. "
                f"Received {len(arrays)}.",
                model=root.owner.name,
                hint="Give the inputs only, of an .npz file by name: x.npz:KEY. Of a tuple of "
                "batches, (inputs, labels), only the first counts.",
            )
        for array, tensor in zip(arrays, inputs, strict=True):
            _check_fitting(array, tensor, root)
        sizes = list(dict.fromkeys(len(array) for array in arrays))
        if len(sizes) > 1:
            raise DataError(
                "The data must have as many samples for one input as for another. Received "
                f"{' and '.join(map(str, sizes))} in one batch.",
                model=root.owner.name,
            )
        count += len(arrays[0])
        yield [
            a.astype(keras.backend.standardize_dtype(t.dtype), copy=False)
            for a, t in zip(arrays, inputs, strict=True)
        ]
    if count < LEAST_SAMPLES:
        raise DataError(
            f"Calibration needs at least {LEAST_SAMPLES} samples. Received {count}.",
            model=root.owner.name,
            hint="A few hundred unlabeled inputs do.",
        )


def _as_array(value: Any, root: Graph) -> np.ndarray:
    cause: Exception | None = None
    try:
        array = np.asarray(keras.ops.convert_to_numpy(value))
        if array.dtype.kind not in "OSU":
            return array
    except Exception as error:  # whatever a backend says of what is no array
        cause = error
    raise DataError(
        "The data must be arrays of numbers, every row as long as the next. Received: "
        f"{type(value).__name__}.",
        model=root.owner.name,
    ) from cause


def _check_fitting(array: np.ndarray, tensor: Any, root: Graph) -> None:
    fits_shape = len(array.shape) == len(tensor.shape) and all(
        size in (None, given) for size, given in zip(tensor.shape[1:], array.shape[1:], strict=True)
    )
    if not fits_shape:
        raise DataError(
            f"The data must have the shape of the model's input, {tuple(tensor.shape)}. Received "
            f"(n, {', '.join(map(str, array.shape[1:]))}).",
            model=root.owner.name,
            hint="An axis for the channels is missing: `x[..., None]`."
            if (*array.shape[1:], 1) == tuple(tensor.shape[1:])
            else None,
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(
            "The data must be finite. Received NaN or infinities.", model=root.owner.name
        )
