"""`load_model`: a trained model from a file, without running code from it."""

from __future__ import annotations

import os
import textwrap
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import keras

from kerasnorm.errors import LoadError

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Loaded:
    """A model and the repairs that loading it took, in plain sentences."""

    model: keras.Model
    repairs: list[str]


def load_model(path: str | os.PathLike[str], *, allow_custom_code: bool = False) -> keras.Model:
    """Load a Keras model from a `.keras`, `.h5` or `.hdf5` file.

    A training configuration that this Keras cannot restore (an optimizer argument that is gone, a
    loss it does not know) is left out; the model is then not compiled. `load_report` says so.

    Args:
        path: The file.
        allow_custom_code: Whether functions stored in the file (Lambda layers) may run. Only for
            files whose author you trust.

    Returns:
        A `keras.Model`.

    Raises:
        LoadError: If there is no such file, it is not a whole Keras model, or it needs code that
            is not allowed or not known here.

    Example:

    >>> keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save("model.keras")
    >>> load_model("model.keras").output_shape
    (None, 2)
    """
    return load(path, allow_custom_code=allow_custom_code).model


def load_report(path: str | os.PathLike[str], *, allow_custom_code: bool = False) -> list[str]:
    """The repairs that loading a file takes, in plain sentences; empty where it loads as it is.

    Raises:
        LoadError: As `load_model` does.
    """
    return load(path, allow_custom_code=allow_custom_code).repairs


def load(path: str | os.PathLike[str], *, allow_custom_code: bool = False) -> Loaded:
    """The model of a file together with the repairs it took.

    Raises:
        LoadError: As `load_model` does.
    """
    file = Path(path)
    _insist_on_model_file(file)
    try:
        return Loaded(_read(file, allow_custom_code, compiled=True), [])
    except Exception as error:
        failure = error
    try:
        model = _read(file, allow_custom_code, compiled=False)
    except Exception as error:
        raise LoadError(
            f"'{file}' does not load as a Keras model: {_reason(error)}",
            hint=_hint(error, allow_custom_code),
        ) from error
    return Loaded(model, [f"the training configuration was left out ({_reason(failure)})"])


def _read(file: Path, allow_custom_code: bool, compiled: bool) -> keras.Model:
    with warnings.catch_warnings():
        # About optimizer arguments and states of other Keras versions, which nothing here needs.
        warnings.simplefilter("ignore")
        return keras.models.load_model(file, compile=compiled, safe_mode=not allow_custom_code)


def _insist_on_model_file(file: Path) -> None:
    if not file.exists():
        raise LoadError(f"There is no file '{file}'.")
    if file.is_dir():
        raise LoadError(
            f"'{file}' is a folder. A model is one `.keras`, `.h5` or `.hdf5` file.",
            hint="Save a SavedModel's Keras model anew with `model.save('model.keras')`.",
        )
    try:
        with open(file, "rb") as stream:
            start = stream.read(len(_HDF5_SIGNATURE))
    except OSError as error:
        raise LoadError(f"'{file}' cannot be read: {error.strerror}.") from error
    suffix = file.suffix.lower()
    if suffix == ".keras" and not zipfile.is_zipfile(file):
        raise LoadError(f"'{file}' is not a whole Keras file: it is no zip archive.")
    if suffix in (".h5", ".hdf5") and start != _HDF5_SIGNATURE:
        raise LoadError(f"'{file}' is not an HDF5 file, whatever its name says.")
    if suffix not in (".keras", ".h5", ".hdf5"):
        raise LoadError(
            f"A model is a `.keras`, `.h5` or `.hdf5` file. Received: '{file}'.",
            hint="Rename it if it is one of them.",
        )


def _reason(error: Exception) -> str:
    """What went wrong, without the configuration of half the model that Keras adds to it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    what = lines[0].split(" using config=")[0].rstrip(".")
    causes = [line for line in lines if line.startswith("Exception encountered: ")]
    if causes:
        what += ": " + causes[-1].removeprefix("Exception encountered: ")
    return textwrap.shorten(what, 240, placeholder=" …")


def _hint(error: Exception, allow_custom_code: bool) -> str | None:
    text = str(error).lower()
    if not allow_custom_code and ("lambda" in text or "safe_mode" in text):
        return "If you trust its author, allow the code in it (--allow-custom-code)."
    if "no model config" in text:
        return "It holds weights only: build the model in code, load them, save it whole."
    return None
