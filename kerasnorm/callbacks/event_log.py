"""`EventLog`: numbers and histograms that TensorBoard shows, written without it installed."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

_BINS = 30
# tensorboard.compat.proto.summary_pb2.DataClass
_SCALAR, _TENSOR = 1, 2


class EventLog:
    """A file of events for TensorBoard in a folder.

    `tf.summary.scalar` and `histogram` need the package tensorboard, which TensorFlow no longer
    installs; the file format does not.

    Args:
        folder: Where the file is made, with the folder if need be.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        import tensorflow as tf

        self._tf: Any = tf
        self._writer = tf.summary.create_file_writer(os.fspath(folder))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """One number."""
        self._write(tag, np.float32(value), step, "scalars", _SCALAR)

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """How often values are in each of 30 intervals; those that are not finite are left out."""
        finite = values[np.isfinite(values)]
        counts, edges = np.histogram(finite.astype("float64"), _BINS)
        bars = np.stack([edges[:-1], edges[1:], counts], axis=1)
        self._write(tag, bars, step, "histograms", _TENSOR)

    def flush(self) -> None:
        """Have all that was written in the file."""
        self._writer.flush()

    def close(self) -> None:
        """Flush, and end the file."""
        self._writer.close()

    def _write(self, tag: str, value: Any, step: int, plugin: str, data_class: int) -> None:
        kind = self._tf.compat.v1.SummaryMetadata(
            plugin_data={"plugin_name": plugin}, data_class=data_class
        )
        with self._writer.as_default():
            self._tf.summary.write(tag, value, step=step, metadata=kind)
