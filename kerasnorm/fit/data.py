"""Calibration data, as batches of a model's inputs, each of them checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import tree

from kerasnorm.errors import DataError, check_whole_number
from kerasnorm.fit.batches import are_arrays, batches_of, to_numbers
from kerasnorm.fit.parts import whole_parts
from kerasnorm.fit.sample_limit import LEAST_SAMPLES, SampleLimit
from kerasnorm.graph.graph import Graph
from kerasnorm.graph.named_inputs import in_order_of_inputs


def input_batches(
    root: Graph, data: Any, batch_size: int, limit: SampleLimit | None = None
) -> Iterator[list[np.ndarray]]:
    """The data as batches of a model's inputs, flat.

    Args:
        root: The model's graph.
        data: See `fit.batches`.
        batch_size: Of the batches that arrays are cut into. A model that takes batches of one size
            gets such, of arrays and of streams; samples that do not fill one are left out.
        limit: How many samples are used; None for all of them. Of a stream no more batches are read
            than it takes.

    Raises:
        DataError: If it is empty, does not fit the inputs, or is not finite.
    """
    check_whole_number("batch_size", batch_size, least=1)
    limit = SampleLimit(None, seed=0) if limit is None else limit
    size = root.batch_size
    if size is None:
        yield from _of_any_size(root, data, batch_size, limit)
        return
    limit.take_whole(size)
    given, count = Counted(_of_any_size(root, data, size, limit)), 0
    for arrays in whole_parts(given, size):
        count += size
        yield arrays
    if not count:
        raise DataError(
            f"The data must fill a batch of the model, which takes {size:,} samples at a time. "
            f"Received {given.count:,}.",
            model=root.owner.name,
        )
    if given.count > count:
        limit.leave_out(given.count - count, size)


class Counted:
    """Batches of flat inputs that pass by, and how many samples were in them."""

    def __init__(self, batches: Iterable[list[np.ndarray]]):
        self.count = 0
        self._batches = batches

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        for arrays in self._batches:
            self.count += len(arrays[0])
            yield arrays


def _of_any_size(
    root: Graph, data: Any, batch_size: int, limit: SampleLimit
) -> Iterator[list[np.ndarray]]:
    """The data as batches of a model's inputs, as it comes."""
    inputs = tree.flatten(root.inputs)
    text = next((tensor for tensor in inputs if tensor.dtype == "string"), None)
    if text is not None:
        raise DataError(
            f"A model must take numbers to be fitted to data. Input '{text.name}' takes text.",
            model=root.owner.name,
            hint="Swap the part of it that follows the text preprocessing.",
        )
    is_stream = not are_arrays(data)
    if not is_stream:
        data = in_order_of_inputs(data, root)
        _check_count(tree.flatten(data), inputs, root)
    count = 0
    for number, batch in enumerate(batches_of(data, batch_size, limit), 1):
        arrays = _checked(batch, inputs, root, f" in batch {number}" if is_stream else "")
        if not len(arrays[0]):  # of a filter that let nothing through
            continue
        room = limit.room(count)
        if room < len(arrays[0]):
            arrays = [array[: int(room)] for array in arrays]
        count += len(arrays[0])
        yield [
            a.astype(keras.backend.standardize_dtype(t.dtype), copy=False)
            for a, t in zip(arrays, inputs, strict=True)
        ]
        if is_stream and limit.room(count) <= 0:
            limit.stop(count)
            break
    if count < LEAST_SAMPLES:
        raise DataError(
            f"Calibration needs at least {LEAST_SAMPLES} samples. Received {count}.",
            model=root.owner.name,
            hint="A few hundred unlabeled inputs do.",
        )


def _checked(batch: Any, inputs: list[Any], root: Graph, where: str) -> list[np.ndarray]:
    """A batch as arrays that fit a model's inputs."""
    batch = in_order_of_inputs(batch, root, where)
    arrays = [to_numbers(a, root.owner.name, where) for a in tree.flatten(batch)]
    _check_count(arrays, inputs, root, where)
    for array, tensor in zip(arrays, inputs, strict=True):
        _check_fitting(array, tensor, root, where)
    sizes = list(dict.fromkeys(len(array) for array in arrays))
    if len(sizes) > 1:
        raise DataError(
            "The data must have as many samples for one input as for another. Received "
            f"{' and '.join(map(str, sizes))}{where}.",
            model=root.owner.name,
        )
    return arrays


def _check_count(arrays: list[Any], inputs: list[Any], root: Graph, where: str = "") -> None:
    if len(arrays) != len(inputs):
        raise DataError(
            f"The data must have an array for each input of the model, {len(inputs)} in all. "
            f"Received {len(arrays)}{where}; the inputs are {_named(inputs)}.",
            model=root.owner.name,
            hint="Give the inputs only, of an .npz file by name: x.npz:KEY. Of a tuple of "
            "batches, (inputs, labels), only the first counts.",
        )


def _named(inputs: list[Any]) -> str:
    return ", ".join(f"'{tensor.name}' {tuple(tensor.shape)}" for tensor in inputs)


def _check_fitting(array: np.ndarray, tensor: Any, root: Graph, where: str) -> None:
    fits_shape = len(array.shape) == len(tensor.shape) and all(
        size in (None, given) for size, given in zip(tensor.shape[1:], array.shape[1:], strict=True)
    )
    if not fits_shape:
        raise DataError(
            f"The data must have the shape of the model's input {_named([tensor])}. Received "
            f"(n, {', '.join(map(str, array.shape[1:]))}){where}.",
            model=root.owner.name,
            hint="An axis for the channels is missing: `x[..., None]`."
            if (*array.shape[1:], 1) == tuple(tensor.shape[1:])
            else None,
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(
            f"The data must be finite. Received NaN or infinities{where}.", model=root.owner.name
        )
