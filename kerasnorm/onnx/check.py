"""Does the file compute what the model computes? Run both and compare."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kerasnorm.compare.rounding import rounding_sensitivity
from kerasnorm.errors import ExportError
from kerasnorm.keras_private import sublayers
from kerasnorm.onnx.blame import first_layers_that_differ
from kerasnorm.onnx.error_text import reason
from kerasnorm.onnx.io_spec import Signature, arrays_for
from kerasnorm.onnx.layer_names import layer_of
from kerasnorm.onnx.trace import Traced

# Largest difference allowed, relative to the largest entry of the output, by the coarsest dtype
# that the model computes in. In float32 trained networks differ by 1e-7 to 3e-6. The two runtimes
# round float16 at different places (ONNX Runtime's CPU computes it in float32), which costs some
# units of 2^-11 = 5e-4 a layer; bfloat16 has 8 times larger units.
TOLERANCES = {"float64": 1e-10, "float32": 1e-5, "float16": 1e-2, "bfloat16": 8e-2}

# Differences of up to this many times what rounding alone does to a model's answer are rounding.
_AMPLIFICATION = 4
# Beyond this many tolerances the answer is noise, and agreement would prove nothing.
_MOST_TOLERANCES = 100

# A probability nearer to 0 or 1 tells nothing of what is behind it. What to multiply random inputs
# by, in this order, until some are not.
_SURE = 1e-3
_FACTORS = (1.0, 0.3, 0.1, 0.03, 0.01, 3.0, 10.0, 30.0, 100.0)
_SEED = 0
_BATCHES = (1, 3)
_LARGEST_BATCH = 64
# Integers above this are rare in what models take (pixels, flags, months).
_INTEGER_LIMIT = 100


@dataclass(frozen=True)
class Difference:
    """How far one output is off: its name, the difference over its scale, and that scale."""

    output: str
    relative: float
    scale: float


def tolerance_for(model: keras.Model) -> float:
    """The tolerance that goes with the coarsest dtype among a model's layers."""
    dtypes = _compute_dtypes(model)
    return max((TOLERANCES[d] for d in dtypes if d in TOLERANCES), default=TOLERANCES["float32"])


def _compute_dtypes(model) -> set[str]:
    return {layer.compute_dtype for layer in sublayers(model)} | {model.compute_dtype}


def check(
    model: keras.Model,
    path: str | os.PathLike[str],
    signature: Signature,
    traced: Traced,
    *,
    inputs: Any = None,
    tolerance: float | None = None,
) -> float:
    """Runs an ONNX file in ONNX Runtime (CPU) and compares it with the Keras model.

    Both answer a batch of 1 and one of 3 (given inputs: the first row, then all of them, at least
    3). The difference is max|Δ| / max|reference| for each output. A saturated output hides what
    happened before it: softmax and sigmoid at 0 or 1 agree whatever their inputs are. Random inputs
    are made smaller, or larger, until that is not so.

    Args:
        model: The source.
        path: The file.
        signature, traced: What the file was made from.
        inputs: What to run on; None for seeded random inputs.
        tolerance: The largest difference allowed; None for that of the model's dtype, more where
            the model itself amplifies rounding.

    Returns:
        The largest difference over all outputs and batches.

    Raises:
        ExportError: If ONNX Runtime cannot run the file, an answer is not finite, or a
            difference is above the tolerance; names the first layer whose output differs.
    """
    allowed = tolerance_for(model) if tolerance is None else tolerance
    session = _session(traced, path)
    worst: tuple[Difference, list[np.ndarray]] | None = None
    for batch in batches(model, signature, inputs):
        if inputs is None:
            batch = _telling(model, signature, batch)
        expected = _reference(model, signature, batch)
        received = _answer(model, session, traced, batch)
        for name, reference, answer in zip(traced.output_names, expected, received, strict=True):
            if reference.shape != answer.shape:
                raise ExportError(
                    f"Output '{name}' has the shape {answer.shape} in ONNX Runtime and "
                    f"{reference.shape} in Keras, on inputs of shapes "
                    f"{[array.shape for array in batch]}.",
                    model=model.name,
                    hint="No file was written.",
                )
            found = Difference(name, *relative_difference(reference, answer))
            if worst is None or not found.relative <= worst[0].relative:
                worst = found, batch
    if worst is None:
        raise ExportError("The model has no outputs.", model=model.name)
    difference, batch = worst
    if tolerance is None and difference.relative > allowed:
        amplified = _AMPLIFICATION * _rounding(traced, batch)
        allowed = max(allowed, min(amplified, _MOST_TOLERANCES * allowed))
    if not difference.relative <= allowed:
        raise ExportError(
            f"ONNX Runtime and Keras differ in output '{difference.output}' by "
            f"{difference.relative:.3g} of its largest entry ({difference.scale:.3g}); allowed is "
            f"{allowed:.3g}. {_origin(path, traced, batch, allowed, difference.output)}",
            model=model.name,
            hint="No file was written. Pass `inputs=` of the kind the model is for, or a larger "
            "`tolerance=` where this is harmless.",
        )
    return difference.relative


def _telling(model, signature, batch: list[np.ndarray]) -> list[np.ndarray]:
    """The batch, of another size if its answers are all 0 or 1 otherwise."""
    for factor in _FACTORS:
        scaled = [a * a.dtype.type(factor) if a.dtype.kind == "f" else a for a in batch]
        try:
            if not any(map(_is_saturated, _reference(model, signature, scaled))):
                return scaled
        except ExportError:  # not finite, or not taken
            continue
    return batch


def _is_saturated(answer: np.ndarray) -> bool:
    """Whether probabilities are all next to 0 or 1."""
    if answer.dtype.kind != "f" or not answer.size or answer.min() < 0 or answer.max() > 1:
        return False
    return not ((answer > _SURE) & (answer < 1 - _SURE)).any()


def _rounding(traced, batch) -> float:
    try:
        return rounding_sensitivity(traced, batch)
    except Exception:  # a graph that TensorFlow's CPU cannot run earns no allowance
        return 0.0


def _origin(path, traced, batch, tolerance: float, output: str) -> str:
    try:
        layers = first_layers_that_differ(path, traced, batch, tolerance, output)
    except Exception:  # an addition to an error message must not take the error's place
        layers = []
    if not layers:
        return "No single layer could be found to differ."
    if len(layers) == 1:
        return f"The first layer whose output differs is '{layers[0]}'."
    names = ", ".join(f"'{name}'" for name in layers)
    return (
        f"The first layer whose output differs is one of {names}, which the file does not tell "
        "apart."
    )


def relative_difference(reference: np.ndarray, answer: np.ndarray) -> tuple[float, float]:
    """(max|Δ| / max|reference|, max|reference|); the difference is infinite if shapes differ.

    Where the reference is zero all over, the difference itself. NaN if anything is not finite.

    Example:

    >>> relative_difference(np.array([1.0, -4.0]), np.array([1.0, -3.0]))
    (0.25, 4.0)
    """
    if reference.shape != answer.shape:
        return float("inf"), float("nan")
    if reference.size == 0:
        return 0.0, 0.0
    wide_reference, wide_answer = (_wide(array) for array in (reference, answer))
    scale = float(np.max(np.abs(wide_reference)))
    with np.errstate(invalid="ignore"):
        largest = float(np.max(np.abs(wide_reference - wide_answer)))
    return largest / (scale or 1.0), scale


def batches(model: keras.Model, signature: Signature, inputs: Any) -> list[list[np.ndarray]]:
    """The inputs to compare on, one flat list of arrays for each batch."""
    if inputs is None:
        generator = np.random.default_rng(_SEED)
        limit = _integer_limit(model)
        return [
            [random_input(spec, size, generator, limit, number) for spec in signature.inputs]
            for number, size in enumerate(_BATCHES)
        ]
    given = arrays_for(signature, inputs, model)
    rows = len(given[0])
    everything = np.arange(max(rows, _BATCHES[-1])) % rows
    parts = np.array_split(everything, math.ceil(len(everything) / _LARGEST_BATCH))
    return [[array[part] for array in given] for part in (everything[:1], *parts)]


def random_input(spec, batch: int, generator, limit: int, number: int) -> np.ndarray:
    """A random array for one input: standard normal, integers in [0, limit), or booleans."""
    free = sum(size is None for size in spec.shape[1:])
    # Multiples of 16 and large enough to survive five halvings; another one for each batch, so
    # that a size fixed by mistake shows. Volumes stay small enough to compute.
    choice = ((32, 48) if free > 2 else (96, 128))[number % 2]
    shape = [batch, *(choice if size is None else size for size in spec.shape[1:])]
    if spec.dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    if "int" in spec.dtype:
        top = min(limit, np.iinfo(spec.dtype).max)
        return generator.integers(0, top, shape).astype(spec.dtype)
    return generator.standard_normal(shape).astype(spec.dtype)


def _integer_limit(model) -> int:
    """Below every vocabulary in the model."""
    sizes = [
        getattr(layer, attribute, None)
        for layer in sublayers(model)
        for attribute in ("input_dim", "num_tokens")
    ]
    return min([size for size in sizes if isinstance(size, int)], default=_INTEGER_LIMIT)


def _wide(array: np.ndarray) -> np.ndarray:
    if np.iscomplexobj(array):
        return array.astype(np.complex128)
    return array.astype(np.float64)


def _session(traced, path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, and said there
    try:
        return onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as failure:
        raise ExportError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run the model: "
            f"{reason(failure).replace(os.fspath(path), 'the file')}",
            model=traced.model.name,
            layer=layer_of(traced.model, str(failure)),
            hint="Try another opset, or a model that computes in float32.",
        ) from failure


def _reference(model, signature, batch) -> list[np.ndarray]:
    shapes = [array.shape for array in batch]
    try:
        outputs = keras.tree.flatten(signature.call(model, batch))
    except Exception as failure:
        raise ExportError(
            f"Keras could not call the model on inputs of shapes {shapes}: {reason(failure)}",
            model=model.name,
            hint="Pass `inputs=` that the model accepts.",
        ) from failure
    arrays = [keras.ops.convert_to_numpy(tensor) for tensor in outputs]
    if not all(np.all(np.isfinite(_wide(array))) for array in arrays):
        raise ExportError(
            f"The Keras model's own answer to inputs of shapes {shapes} is not finite, so nothing "
            "can be compared with it.",
            model=model.name,
            hint="Pass `inputs=` of the kind the model is for.",
        )
    return arrays


def _answer(model, session, traced, batch) -> list[np.ndarray]:
    shapes = [array.shape for array in batch]
    try:
        feeds = {
            # bfloat16 is written as float32
            name: array.astype("float32") if array.dtype.name == "bfloat16" else array
            for name, array in zip(traced.input_names, batch, strict=True)
        }
        return session.run(traced.output_names, feeds)
    except Exception as failure:
        raise ExportError(
            f"ONNX Runtime failed on inputs of shapes {shapes}: {reason(failure)}",
            model=model.name,
            layer=layer_of(traced.model, str(failure)),
        ) from failure
