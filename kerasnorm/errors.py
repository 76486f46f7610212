"""One exception family: what must hold, what was received, what to try; and refusals as values."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any


class KerasNormError(ValueError):
    """Something asked of kerasnorm could not be done.

    Args:
        message: What must hold and what was received, as one or two sentences.
        model: Name of the model concerned, where there is one.
        layer: Name of the layer concerned, where there is one.
        hint: What to try instead, as one sentence.

    The rendered text is `message`, prefixed by where it happened and followed by the hint:

    >>> raise KerasNormError("gamma holds NaN.", model="net", layer="bn_1", hint="Retrain it.")
    Traceback (most recent call last):
    ...
    kerasnorm.errors.KerasNormError: model 'net', layer 'bn_1': gamma holds NaN. Retrain it.
    """

    def __init__(
        self,
        message: str,
        *,
        model: str | None = None,
        layer: str | None = None,
        hint: str | None = None,
    ):
        self.message = message
        self.model = model
        self.layer = layer
        self.hint = hint
        where = ", ".join(
            f"{kind} '{name}'" for kind, name in (("model", model), ("layer", layer)) if name
        )
        text = f"{where}: {message}" if where else message
        super().__init__(f"{text} {hint}" if hint else text)


class LoadError(KerasNormError):
    """A file could not be read as a Keras model."""


class SwapError(KerasNormError):
    """A model could not be rewritten as asked."""


class DataError(SwapError):
    """Calibration data is missing, or does not fit the model."""


class ExportError(KerasNormError):
    """A model could not be written as a correct ONNX file."""


class FidelityWarning(UserWarning):
    """A swapped model may answer otherwise than its source does.

    `swap_norms` gives one for each reason: sites or outputs that keep less than half of what the
    source has there, data unlike what the model was trained on, models that could not be compared,
    and training that brought nothing. Each is in `report.warnings` as well.

    Example:

    >>> import warnings
    >>> warnings.simplefilter("ignore", FidelityWarning)
    """


def check_whole_number(name: str, value: Any, least: int) -> None:
    """Raise DataError unless an argument is a whole number, and not too small.

    Example:

    >>> check_whole_number("seed", -1, least=0)
    Traceback (most recent call last):
    ...
    kerasnorm.errors.DataError: `seed` must be a whole number, 0 at least. Received: seed=-1.
    """
    try:
        if operator.index(value) >= least:
            return
    except TypeError:  # no integer of any kind
        pass
    raise DataError(
        f"`{name}` must be a whole number, {least} at least. Received: {name}={value!r}."
    )


@dataclass(frozen=True)
class Refusal:
    """Why one thing of several is not done, as a value that travels to the report.

    Attributes:
        reason: What stands in the way, as the end of a sentence about it.
    """

    reason: str

    def __str__(self) -> str:
        return self.reason
