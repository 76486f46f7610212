"""Calibration data from a folder of images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasnorm.errors import DataError

if TYPE_CHECKING:
    from kerasnorm.graph.graph import Graph

# What `keras.utils.image_dataset_from_directory` reads.
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
_COLOR_MODES = {1: "grayscale", 3: "rgb", 4: "rgba"}
_BATCH = 32


def check_folder(folder: str | Path) -> None:
    """Raise an error where there are no images in a folder, or in the folders below it.

    Raises:
        DataError: If there are none.
    """
    for _, _, names in os.walk(folder):
        if any(name.lower().endswith(SUFFIXES) for name in names):
            return
    raise DataError(
        f"A folder of data must hold images. '{folder}' has none, nor has a folder below it.",
        hint=f"Images are {', '.join(SUFFIXES)}.",
    )


class ImageFolder:
    """The images in a folder, and in the folders below it, as batches of a model's input.

    They are read by `keras.utils.image_dataset_from_directory`: resized to the input's size, their
    pixels as floats from 0 to 255, gray, RGB or RGBA by the number of its channels. Each time they
    are iterated over they come in the same random order.

    Args:
        folder: The folder.
        root: The graph of the model.
        seed: Of the order.

    Attributes:
        note: What the report is to say of them.

    Raises:
        DataError: If the model does not take one image of fixed size.
    """

    def __init__(self, folder: str | Path, root: Graph, seed: int) -> None:
        from keras import tree

        self._folder = str(folder)
        self._seed = seed % 2**32  # of NumPy's RandomState, which Keras shuffles with
        inputs = tree.flatten(root.inputs)
        shape = tuple(inputs[0].shape) if len(inputs) == 1 else ()
        self._size, self._channels, self._data_format = _image_of(shape, inputs, root)
        self._batch = shape[0] or _BATCH
        height, width = self._size
        self.note = (
            f"the images of the folder were resized to {height}x{width}, and their pixels are from "
            "0 to 255: for a model that was trained on others, give an .npy file"
        )

    def __iter__(self) -> Iterator[Any]:
        import keras

        # Made anew for each pass: a data set that is shuffled has another order in its second one.
        dataset = keras.utils.image_dataset_from_directory(
            self._folder,
            labels=None,
            color_mode=_COLOR_MODES[self._channels],
            batch_size=self._batch,
            image_size=self._size,
            shuffle=True,
            seed=self._seed,
            data_format=self._data_format,
            verbose=False,
        )
        try:
            yield from dataset
        except Exception as error:
            self._check_files(dataset.file_paths)
            from kerasnorm.fit.batches import reason

            raise DataError(
                f"The images in '{self._folder}' must be readable. Received: {reason(error)}."
            ) from error

    def _check_files(self, paths: list[str]) -> None:
        """Raise an error that names the first file that is no image."""
        import tensorflow as tf

        from kerasnorm.fit.batches import reason

        for path in paths:
            try:
                tf.image.decode_image(
                    tf.io.read_file(path), channels=self._channels, expand_animations=False
                )
            except Exception as error:
                raise DataError(
                    f"The files in a folder of images must be images. '{path}' cannot be read as "
                    f"one: {reason(error).rstrip('.')}.",
                    hint="Take it out of the folder.",
                ) from error


def _image_of(
    shape: tuple[int | None, ...], inputs: list[Any], root: Graph
) -> tuple[tuple[int, int], int, str]:
    """The height and width of an image, its channels, and where these are."""
    if len(shape) == 4 and None not in shape[1:]:
        sizes = [int(size) for size in shape[1:] if size is not None]
        if sizes[2] in _COLOR_MODES:
            return (sizes[0], sizes[1]), sizes[2], "channels_last"
        if sizes[0] in _COLOR_MODES:
            return (sizes[1], sizes[2]), sizes[0], "channels_first"
    received = " and ".join(str(tuple(tensor.shape)) for tensor in inputs)
    raise DataError(
        "For a folder of images a model must have one input, an image of fixed size with 1, 3 or "
        f"4 channels. Received inputs of shape {received}.",
        model=root.owner.name,
        hint="Give its inputs as an .npy or .npz file.",
    )
