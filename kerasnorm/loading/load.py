"""`load_model`: a trained model from a file of any Keras, without running code from it."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

import keras

from kerasnorm.errors import LoadError
from kerasnorm.graph.weight_checks import faults_of
from kerasnorm.loading.compile_state import compile_as_stored
from kerasnorm.loading.image_format import doubtful_rescalings
from kerasnorm.loading.legacy.build import Builder
from kerasnorm.loading.legacy.built_layer import BuiltLayer
from kerasnorm.loading.model_file import StoredModel
from kerasnorm.loading.open_file import open_stored
from kerasnorm.loading.registered import how_to_register, stored_unregistered
from kerasnorm.loading.repair_log import RepairLog
from kerasnorm.loading.report import LoadReport
from kerasnorm.loading.safety import LIMITS, Limits, check_metrics, check_no_code, check_sizes
from kerasnorm.loading.weight_limit import limited_weights

# What Keras says of a class that it does not find.
_UNKNOWN = re.compile(r"(?:Unknown layer: |Could not locate class )'([^']+)'")


def load_model(path: str | os.PathLike[str], *, allow_custom_code: bool = False) -> keras.Model:
    """Load a Keras model from a file that Keras 1, 2 or 3 wrote.

    The kind of file is told from what is in it, not from its name:

    - a `.keras` archive of Keras 3, or of Keras 2.13 to 2.15;
    - an HDF5 file (`.h5`, `.hdf5`) of a whole model, of any Keras;
    - a configuration in JSON with an HDF5 file of weights beside it: name either of them, or the
      folder. Of several files the one of the same name is taken, but for words as in
      `model_X.json`, `X_arch.json`, `X_weights.h5` and `X.weights.h5`.

    Files of Keras 1 and 2 are rebuilt layer by layer, and what Keras 3 would trip over, or would
    load to answer otherwise, is repaired: `load_report` says what was. A training configuration
    that this Keras cannot restore is left out, and the model is then not compiled.

    NaN, infinite weights and negative variances are warned of, by layer; what Keras itself warns of
    while it reads a file is not held back.

    Nothing in the file is run. Your own layers are found if their classes are registered
    (`keras.saving.register_keras_serializable`) before the file is loaded.

    Args:
        path: The file, or the folder.
        allow_custom_code: Whether functions stored in the file (Lambda layers) may run. Only for
            files whose author you trust.

    Returns:
        A `keras.Model` whose weights have the file's values. Its attribute `load_report` is what
        `load_report` gives for the file, of which reports of swaps and `inspect_norms` tell; it
        belongs to this very model, and neither copies nor saved files have it.

    Raises:
        LoadError: If there is no such file; it is damaged, or refused because it asks for more
            than it holds, would run code or reach for other files; or it holds what this Keras
            does not have. It says what the file holds, and what to do.

    Example:

    >>> keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save("model.keras")
    >>> load_model("model.keras").output_shape
    (None, 2)
    """
    model = load(path, allow_custom_code=allow_custom_code)
    for warning in model.load_report.warnings:
        warnings.warn(f"{path}: {warning}", stacklevel=2)
    return model


def load_report(path: str | os.PathLike[str], *, allow_custom_code: bool = False) -> LoadReport:
    """The repairs that loading a file takes, in plain sentences; empty where it loads as it is.

    Args:
        path: The file, or the folder, as for `load_model`.
        allow_custom_code: As for `load_model`.

    Returns:
        A sequence of sentences, equal to a list of them, which also knows what the file holds and
        what to be warned of: `.holds`, `.warnings`, `.to_dict()`.

    Raises:
        LoadError: As `load_model` does.

    Example:

    >>> keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save("model.keras")
    >>> load_report("model.keras")
    []
    >>> load_report("model.keras").holds[:18]
    'a Sequential model'
    """
    return load(path, allow_custom_code=allow_custom_code).load_report


def load(
    path: str | os.PathLike[str], *, allow_custom_code: bool = False, limits: Limits = LIMITS
) -> keras.Model:
    """The model of a file, whose `load_report` no one was warned of yet.

    Args:
        path: As for `load_model`.
        allow_custom_code: As for `load_model`.
        limits: How much the file may ask for.

    Raises:
        LoadError: As `load_model` does.
    """
    file, log = Path(path), RepairLog()
    stored: StoredModel | None = None
    try:
        with open_stored(file, log, limits, allow_custom_code=allow_custom_code) as stored:
            found = stored_unregistered(stored.config)
            for name in found:
                log.add(f"{name} was stored unregistered: the one that is registered now is taken")
            with keras.saving.custom_object_scope(found):
                model = _model(stored, log, limits, allow_custom_code)
    except Exception as error:
        if isinstance(error, LoadError) and stored is None:
            raise
        raise _failure(file, stored, error, allow_custom_code) from error
    for name, doubt in doubtful_rescalings(model).items():
        log.warn(doubt, name)
    faults = [str(fault) for fault in faults_of(model)]
    model.load_report = LoadReport(log.lines(), str(stored), log.warnings(), faults)
    return model


def _model(
    stored: StoredModel, log: RepairLog, limits: Limits, allow_custom_code: bool
) -> keras.Model:
    check_sizes(stored.config, limits)
    limited: Callable[..., contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    if not allow_custom_code:
        check_no_code(stored.config)
        limited = functools.partial(limited_weights, stored.nbytes, limits)
    if stored.major >= 3:
        return _native(stored, log, limits, limited)

    def build(log: RepairLog) -> BuiltLayer:
        builder = Builder(stored.version, stored.major, log, limits, allow_custom_code)
        return builder.build(stored.config)

    with limited(lambda: build(RepairLog())):
        built = build(log)
        stored.put_weights(built, stored.major, log)
        model = built.layer
        if not isinstance(model, keras.Model):
            raise LoadError("It holds a layer, not a model.")
        _compile(model, stored, log, limits)
        return model


def _native(
    stored: StoredModel,
    log: RepairLog,
    limits: Limits,
    limited: Callable[..., contextlib.AbstractContextManager[None]],
) -> keras.Model:
    uncompiled = functools.partial(stored.native, False)
    try:
        check_metrics(stored.training, limits)
        with limited(uncompiled):
            return stored.native(True)
    except Exception as error:
        with limited(uncompiled):
            model = stored.native(False)
        _left_out(log, error)
        return model


def _compile(model: keras.Model, stored: StoredModel, log: RepairLog, limits: Limits) -> None:
    if not stored.training:
        return
    try:
        check_metrics(stored.training, limits)
        compile_as_stored(model, stored.training)
    except Exception as error:
        _left_out(log, error)


def _left_out(log: RepairLog, error: Exception) -> None:
    log.add(f"the training configuration was left out: {_reason(error)}")


def _failure(
    file: Path, stored: StoredModel | None, error: Exception, allow_custom_code: bool
) -> LoadError:
    """What went wrong, and what the file holds."""
    holds = f" It holds {stored}." if stored else ""
    if isinstance(error, LoadError):
        where = f"layer '{error.layer}': " if error.layer else ""
        return LoadError(f"'{file}' does not load: {where}{error.message}{holds}", hint=error.hint)
    return LoadError(
        f"'{file}' does not load as a Keras model: {_reason(error)}.{holds}",
        hint=_hint(error, allow_custom_code),
    )


def _reason(error: Exception) -> str:
    """What went wrong, without the configuration of half the model that Keras adds to it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    what = lines[0].split(" using config=")[0].split(". Please ensure you")[0].rstrip(".")
    if isinstance(error, KeyError):
        what = f"{what} is missing"
    if isinstance(error, RecursionError):
        what = "too many layers stand one behind the other"
    causes = [line for line in lines if line.startswith("Exception encountered: ")]
    if causes:
        what += ": " + causes[-1].removeprefix("Exception encountered: ")
    return textwrap.shorten(what, 240, placeholder=" …")


def _hint(error: Exception, allow_custom_code: bool) -> str | None:
    if not allow_custom_code and "safe_mode" in str(error):
        return "If you trust its author, allow the code in it (--allow-custom-code)."
    unknown = _UNKNOWN.search(str(error))
    return how_to_register(unknown[1]) if unknown else None
