"""Calibration data as batches of model inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras
from keras import tree

from kerasnorm.errors import KerasNormError


def batches_of(data: Any, batch_size: int) -> Iterator[Any]:
    """The inputs in data, batch by batch, in their structure.

    Args:
        data: An array; a tuple, list or dictionary of arrays for several inputs; or an iterable of
            batches (`tf.data.Dataset`, `keras.utils.PyDataset`, a generator), where a batch that
            is a tuple counts as (inputs, targets, …).
        batch_size: Of the batches that arrays are cut into.

    Raises:
        KerasNormError: If it is none of these.
    """
    arrays = tree.flatten(data) if isinstance(data, (tuple, list, dict)) else [data]
    if all(hasattr(a, "shape") and hasattr(a, "__getitem__") for a in arrays):
        for start in range(0, len(arrays[0]), batch_size):
            stop = start + batch_size
            yield tree.map_structure(lambda a: a[start:stop], data)  # noqa: B023
    elif isinstance(data, keras.utils.PyDataset):
        for number in range(len(data)):
            batch = data[number]
            yield batch[0] if isinstance(batch, tuple) else batch
    elif isinstance(data, Iterable):
        for batch in data:
            yield batch[0] if isinstance(batch, tuple) else batch
    else:
        raise KerasNormError(
            f"The data must be arrays or an iterable of batches. Received: {type(data).__name__}.",
        )
