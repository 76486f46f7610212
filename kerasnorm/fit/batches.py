"""Data, cut into batches: arrays of any size, and streams of batches that may not end."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import tree

from kerasnorm.errors import DataError, KerasNormError, check_whole_number
from kerasnorm.fit.sample_limit import SampleLimit

# Of a subset, so many bytes are read at once, in the order in which they are stored.
_READ_AT_ONCE = 2**28
_LONGEST_REASON = 300


def are_arrays(data: Any) -> bool:
    """Whether data is an array, or a tuple, list or dictionary of arrays."""
    arrays = tree.flatten(data) if isinstance(data, (tuple, list, dict)) else [data]
    return bool(arrays) and all(
        getattr(array, "shape", ()) and hasattr(array, "__getitem__") for array in arrays
    )


def batches_of(data: Any, batch_size: int, limit: SampleLimit | None = None) -> Iterator[Any]:
    """The inputs in data, batch by batch, in their structure.

    Args:
        data: An array; a tuple, list or dictionary of arrays for several inputs; or an iterable of
            batches (`tf.data.Dataset`, `keras.utils.PyDataset`, a generator), where a batch that is
            a tuple counts as (inputs, targets, …).
        batch_size: Of the batches that arrays are cut into.
        limit: What is used of arrays; None for all of them. Of an iterable the caller takes as many
            batches as it needs, and only with a limit may they be without end.

    Raises:
        DataError: If it is none of these, arrays differ in length, batches never end where they
            have to, the iterable itself raises an error, or `batch_size` is no whole number from 1.
    """
    check_whole_number("batch_size", batch_size, least=1)
    if are_arrays(data):
        yield from _slices(data, batch_size, limit)
    elif isinstance(data, Iterable) and not isinstance(data, (str, bytes, np.ndarray)):
        if _is_endless(data) and (limit is None or limit.most is None):
            raise DataError(
                f"The data must end. Received a {type(data).__name__} that repeats for ever.",
                hint="Give some of its batches: `data.take(n)`, or `itertools.islice(data, n)`.",
            )
        for batch in _raising_data_errors(data):
            yield batch[0] if isinstance(batch, tuple) else batch
    else:
        raise DataError(
            f"The data must be arrays or an iterable of batches. Received: {type(data).__name__}.",
            hint=_how_to_read(data) if isinstance(data, (str, bytes, os.PathLike)) else None,
        )


def reason(error: BaseException) -> str:
    """What an error says, in one line.

    Example:

    >>> reason(ValueError("{{function_node f}} no such file [Op:ReadFile]\\nTraceback …"))
    'ValueError: no such file'
    """
    text = re.sub(r"^\{\{[^}]*\}\}\s*|\s*\[Op:.*", "", str(error).strip())
    lines = text.splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])[:_LONGEST_REASON]


def to_numbers(value: Any, model: str | None = None, where: str = "") -> np.ndarray:
    """A batch of anything that a backend takes as an array of numbers.

    Args:
        value: The batch.
        model: Name of the model that an error is to name.
        where: What an error says after what was received.

    Raises:
        DataError: If it is none.
    """
    cause: Exception | None = None
    try:
        array = np.asarray(keras.ops.convert_to_numpy(value))
        if array.dtype.kind not in "OSU":
            return array
    except Exception as error:  # whatever a backend says of what is no array
        cause = error
    raise DataError(
        "The data must be arrays of numbers, every row as long as the next. Received: "
        f"{type(value).__name__}{where}.",
        model=model,
    ) from cause


def _slices(data: Any, batch_size: int, limit: SampleLimit | None) -> Iterator[Any]:
    """Arrays, or a subset of their rows, cut into batches."""
    arrays = tree.flatten(data)
    sizes = list(dict.fromkeys(int(array.shape[0]) for array in arrays))
    if len(sizes) > 1:
        raise DataError(
            "The data must have as many samples for one input as for another. Received "
            f"{' and '.join(map(str, sizes))}."
        )
    rows = None if limit is None else limit.subset(sizes[0])
    if rows is None:
        for start in range(0, sizes[0], batch_size):
            stop = start + batch_size
            yield tree.map_structure(lambda a: a[start:stop], data)  # noqa: B023
        return
    bytes_of_row = max(1, sum(_bytes_of_row(array) for array in arrays))
    block = batch_size * max(1, _READ_AT_ONCE // bytes_of_row // batch_size)
    for first in range(0, len(rows), block):
        some = rows[first : first + block]
        read = tree.map_structure(lambda a: _read(a, some), data)  # noqa: B023
        for start in range(0, len(some), batch_size):
            stop = start + batch_size
            yield tree.map_structure(lambda a: a[start:stop], read)  # noqa: B023


def _bytes_of_row(array: Any) -> int:
    itemsize = getattr(getattr(array, "dtype", None), "itemsize", None) or 8
    return itemsize * int(np.prod([size or 1 for size in array.shape[1:]]))


def _read(array: Any, rows: np.ndarray) -> np.ndarray:
    """Some rows of an array, read in the order in which they are stored."""
    if keras.ops.is_tensor(array):
        array = to_numbers(array)  # it is in memory as a whole
    order = np.argsort(rows)
    if isinstance(array, np.ndarray):
        read = np.asarray(array[rows[order]])
    else:  # of files, of tables: what all of them have is slices
        read = np.concatenate([to_numbers(array[row : row + 1]) for row in rows[order].tolist()])
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return read[back]


def _raising_data_errors(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches of an iterable, whose own errors become errors of the data."""
    number = 1
    try:
        for batch in batches:
            yield batch
            number += 1
    except KerasNormError:
        raise
    except Exception as error:
        raise DataError(
            f"The data must give its batches without an error. Received a {type(batches).__name__} "
            f"that raised at batch {number}: {reason(error)}"
        ) from error


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


def _how_to_read(path: str | bytes | os.PathLike) -> str:
    if os.path.isdir(path):
        return (
            "Read a folder of images first: "
            "keras.utils.image_dataset_from_directory(path, labels=None, image_size=…)."
        )
    return "Read a file first: numpy.load(path)."
