"""Files of other programs, told by what is in them: which they are, and what to do."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from kerasnorm.errors import LoadError

_FROM_KERAS = "Give the Keras file that it was made from."
_IN_KERAS_2 = (
    "Load it with `tf.keras.models.load_model` in TensorFlow 2.15 or older and save it with "
    "`model.save('model.h5')`."
)
_IN_KERAS = "Build the model in Keras, give it those weights, and save it with `model.save`."
_SAVED_MODEL = (
    "a TensorFlow SavedModel: a compiled graph, without the Keras layers that it was made from",
    _IN_KERAS_2,
)
_PYTORCH = ("a file of PyTorch", _IN_KERAS)
# How files begin. A SavedModel says its format, 1, and ONNX its own, 3 and more, in the first
# field; other protocol buffers do not begin with a number.
_BEGINNINGS: tuple[tuple[str, tuple[str, str]], ...] = (
    (r"\x08\x01\x12", _SAVED_MODEL),
    (r"\x08[\x03-\x1f][\x12\x1a\x22\x28\x32\x3a\x42\x72]", ("an ONNX file", _FROM_KERAS)),
    (r"....TFL3", ("a TensorFlow Lite file", _FROM_KERAS)),
    (r"\x80[\x02-\x05]\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19", _PYTORCH),
    (r"\x80[\x02-\x05]", ("a Python pickle, which is code", "Save the model with `model.save`.")),
    (r".{8}\{\s*\"", ("a safetensors file: weights without a model", _IN_KERAS)),
    (r"\x93NUMPY", ("an array of NumPy", "Give data with `--data`, and a model's file here.")),
)
# What only they have in a zip archive.
_ENTRIES: tuple[tuple[str, tuple[str, str]], ...] = (
    (r"(.*/)?data\.pkl", _PYTORCH),
    (r"(.*/)?saved_model\.pb", (f"an archive with {_SAVED_MODEL[0]}", _IN_KERAS_2)),
    (r".*\.(keras|h5|hdf5)(?<!model\.weights\.h5)", ("an archive", "Unpack it first.")),
    (r".*\.npy", ("arrays of NumPy", "Give data with `--data`, and a model's file here.")),
)


def saved_model_error(path: Path) -> LoadError:
    """What to say of a SavedModel: of its folder, or of the file in it."""
    return _error(path, *_SAVED_MODEL)


def other_format(file: Path) -> LoadError | None:
    """What to say of a file of another program, None where it is none that is known."""
    if zipfile.is_zipfile(file):
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError):
            return None
        if "config.json" in names:
            return None
        for pattern, found in _ENTRIES:
            if any(re.fullmatch(pattern, name) for name in names):
                return _error(file, *found)
        return None
    with open(file, "rb") as stream:
        beginning = stream.read(64).decode("latin-1")
    for pattern, found in _BEGINNINGS:
        if re.match(pattern, beginning, re.DOTALL):
            return _error(file, *found)
    if file.suffix.lower() == ".pb":
        return _error(file, "a TensorFlow graph, without the Keras layers", _FROM_KERAS)
    return None


def _error(path: Path, what: str, hint: str) -> LoadError:
    kind = "a folder with " if path.is_dir() else ""
    return LoadError(f"'{path}' is {kind}{what}.", hint=hint)
