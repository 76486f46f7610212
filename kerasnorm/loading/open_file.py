"""Which kind of file it is, by what is in it, and what it stores."""

from __future__ import annotations

import contextlib
import functools
import zipfile
from collections.abc import Iterator
from pathlib import Path

import keras

from kerasnorm.errors import LoadError
from kerasnorm.loading.archive import Archive
from kerasnorm.loading.compile_state import compile_as_stored
from kerasnorm.loading.hdf5 import Hdf5, is_hdf5
from kerasnorm.loading.json_and_weights import FilePair, find_file_pair
from kerasnorm.loading.legacy.built_layer import BuiltLayer
from kerasnorm.loading.legacy.weights.assign import load_groups
from kerasnorm.loading.legacy.weights.layouts import Origin
from kerasnorm.loading.legacy.weights.variables import load_variables
from kerasnorm.loading.model_file import StoredModel, as_stored_config, major_of
from kerasnorm.loading.native import read_native, read_parts
from kerasnorm.loading.native_config import with_modules
from kerasnorm.loading.other_formats import other_format, saved_model_error
from kerasnorm.loading.repair_log import RepairLog
from kerasnorm.loading.safety import Limits

_GROUPS = "model_weights"


@contextlib.contextmanager
def open_stored(
    file: Path, log: RepairLog, limits: Limits, *, allow_custom_code: bool
) -> Iterator[StoredModel]:
    """What a file, a pair of files or a folder with a pair stores.

    Raises:
        LoadError: If it is none of those, damaged, or beyond a limit.
    """
    _check_file(file)
    files = find_file_pair(file, limits)
    if files is not None:
        other = files.weights if file == files.config else files.config
        log.add(f"joined with '{other.name}' beside it" if file.is_file() else _joined(files))
        reader = _open_file_pair(files, log, limits, allow_custom_code)
    elif file.is_dir():
        raise _folder(file)
    elif is_hdf5(file):
        reader = _open_hdf5(file, log, limits, allow_custom_code)
    elif (of_another := other_format(file)) is not None:
        raise of_another
    elif zipfile.is_zipfile(file):
        reader = _open_archive(Archive(file, limits), allow_custom_code)
    else:
        raise _no_model(file)
    with reader as stored:
        yield stored


@contextlib.contextmanager
def _open_hdf5(
    file: Path, log: RepairLog, limits: Limits, allow_custom_code: bool
) -> Iterator[StoredModel]:
    with Hdf5(file, str(file), limits) as content:
        config = as_stored_config(content.json("model_config"))
        if config is None:
            raise LoadError(f"'{file}' is damaged: its configuration describes no model.")
        version = content.text("keras_version")
        if version is None and _GROUPS in content:
            version = content.text("keras_version", _GROUPS)
        training = content.json("training_config")
        training = training if isinstance(training, dict) else None

        def native(compiled: bool) -> keras.Model:
            whole = with_modules(config, log.add)
            if whole is config:
                return read_native(file, ".h5", allow_custom_code, compiled)
            model = read_parts(whole, file, ".h5", allow_custom_code)
            if compiled and training:
                compile_as_stored(model, training)
            return model

        yield StoredModel(
            config,
            version,
            content.nbytes,
            training,
            functools.partial(_put_groups, content, f"/{_GROUPS}"),
            native,
        )


@contextlib.contextmanager
def _open_archive(archive: Archive, allow_custom_code: bool) -> Iterator[StoredModel]:
    with archive.weights() as content:
        training = archive.config.get("compile_config")
        yield StoredModel(
            archive.config,
            archive.keras_version,
            content.nbytes,
            training if isinstance(training, dict) else None,
            lambda built, *_: load_variables(content, built),
            functools.partial(read_native, archive.file, ".keras", allow_custom_code),
        )


@contextlib.contextmanager
def _open_file_pair(
    files: FilePair, log: RepairLog, limits: Limits, allow_custom_code: bool
) -> Iterator[StoredModel]:
    config = files.stored
    with Hdf5(files.weights, str(files.weights), limits) as content:
        in_groups = content.names("layer_names", "/") is not None
        version = config.get("keras_version") or content.text("keras_version")
        if "keras_version" not in config and "module" in config:
            version = "3"  # which alone writes modules and no version

        def put_weights(built: BuiltLayer, major: int, log: RepairLog) -> None:
            if in_groups:
                _put_groups(content, "/", built, major, log)
            else:
                load_variables(content, built)

        def native(compiled: bool) -> keras.Model:
            suffix = ".h5" if in_groups else ".weights.h5"
            whole = with_modules(config, log.add)
            return read_parts(whole, files.weights, suffix, allow_custom_code)

        yield StoredModel(config, version, content.nbytes, None, put_weights, native)


def _put_groups(content: Hdf5, root: str, built: BuiltLayer, major: int, log: RepairLog) -> None:
    version = content.text("keras_version", root) or content.text("keras_version")
    if version:  # of the weights, which may be another than the configuration's
        major = major_of(version)
    backend = content.text("backend", root) or content.text("backend")
    load_groups(content, root, built, Origin(major, backend), log)


def _joined(files: FilePair) -> str:
    return f"joined from '{files.config.name}' and '{files.weights.name}'"


def _check_file(file: Path) -> None:
    if not file.exists():
        raise LoadError(f"There is no file '{file}'.")
    if file.is_dir():
        return
    if not file.is_file():
        raise LoadError(f"'{file}' is not a regular file.")
    try:
        with open(file, "rb"):
            pass
    except OSError as error:
        raise LoadError(f"'{file}' cannot be read: {error.strerror}.") from error


def _folder(folder: Path) -> LoadError:
    if (folder / "saved_model.pb").exists():
        return saved_model_error(folder)
    return LoadError(
        f"'{folder}' is a folder. A model is one `.keras`, `.h5` or `.hdf5` file, or a folder with "
        "one configuration (`.json`) and one file of weights."
    )


def _no_model(file: Path) -> LoadError:
    suffix = file.suffix.lower()
    if suffix == ".keras":
        return LoadError(f"'{file}' is not a whole Keras file: it is no zip archive.")
    if suffix in (".h5", ".hdf5"):
        return LoadError(f"'{file}' is not an HDF5 file, whatever its name says.")
    return LoadError(
        f"A model is a `.keras`, `.h5` or `.hdf5` file, or a `.json` configuration with weights "
        f"beside it. Received: '{file}'."
    )
