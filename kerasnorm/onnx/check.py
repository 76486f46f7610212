"""Does the file compute what the model computes? Run both and compare."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np

from kerasnorm.compare.measures import relative_difference
from kerasnorm.compare.random_inputs import is_saturated, random_inputs, scaled_off_saturation
from kerasnorm.compare.rounding import MOVES, ROUNDINGS, moved
from kerasnorm.compare.tolerances import EPSILONS, OF_LARGEST_ENTRY, coarsest_dtype
from kerasnorm.errors import ExportError
from kerasnorm.onnx.blame import first_layers_that_differ
from kerasnorm.onnx.error_text import layer_of, reason
from kerasnorm.onnx.frozen_graph import FrozenGraph
from kerasnorm.onnx.io_spec import Signature, arrays_for
from kerasnorm.onnx.logits import compared, logits_of
from kerasnorm.onnx.run_inside import feeds

# Beyond this many tolerances the answer is noise, and agreement would prove nothing.
_MOST_TOLERANCES = 100

# How many samples each batch has, and the free sizes of images and of volumes in it: multiples of
# 16, large enough to survive five halvings; others in the second batch, so that a size fixed by
# mistake shows. Volumes stay small enough to compute.
_BATCHES = ((1, (96, 32)), (3, (128, 48)))
_LARGEST_BATCH = 64


@dataclass(frozen=True)
class Difference:
    """How far one output, or what is inside it, is off.

    Args:
        output: Its name.
        relative: The difference over its scale.
        scale: Its largest entry; 1 for what a sigmoid gives, whose 0 may be 1e-9 as well.
        logits: Whether it is of the logits that the output is the probabilities of.
    """

    output: str
    relative: float
    scale: float
    logits: bool = False


def check(
    model: keras.Model,
    path: str | os.PathLike[str],
    signature: Signature,
    frozen: FrozenGraph,
    *,
    inputs: Any = None,
    tolerance: float | None = None,
) -> float:
    """Runs an ONNX file in ONNX Runtime (CPU) and compares it with the Keras model.

    Both answer a batch of 1 and one of 3 (given inputs: the first row, then all of them, at least
    3); where the model can be called on batches of one size only, such. The difference is
    max|Δ| / max|reference| for each output, and max|Δ| for a sigmoid's. A saturated output hides
    what happened before it: softmax and sigmoid at 0 or 1 agree whatever their inputs are. Random
    inputs are made smaller, or larger, until that is not so; where it is, their inputs are compared
    as well.

    Args:
        model: The source.
        path: The file.
        signature, frozen: What the file was made from.
        inputs: What to run on; None for seeded random inputs.
        tolerance: The largest difference allowed; None for that of the model's dtype, more where
            the model itself amplifies rounding.

    Returns:
        The largest difference over all outputs and batches.

    Raises:
        ExportError: If ONNX Runtime cannot run the file, an answer is not finite, or a
            difference is above the tolerance; names the first layer whose output differs.
    """
    allowed = OF_LARGEST_ENTRY[coarsest_dtype(model)] if tolerance is None else tolerance
    session, ends = _session(frozen, path), _Ends(path, frozen)
    worst: tuple[Difference, list[np.ndarray]] | None = None
    for batch, expected in _answered(model, signature, inputs):
        received = _answer(model, session, frozen, batch)
        for name, reference, answer in zip(frozen.output_names, expected, received, strict=True):
            if reference.shape != answer.shape:
                raise ExportError(
                    f"Output '{name}' has the shape {answer.shape} in ONNX Runtime and "
                    f"{reference.shape} in Keras, on inputs of shapes "
                    f"{[array.shape for array in batch]}.",
                    model=model.name,
                    hint="No file was written.",
                )
        for found in ends.differences(batch, expected, received):
            if worst is None or not found.relative <= worst[0].relative:
                worst = found, batch
    if worst is None:
        raise ExportError("The model has no outputs.", model=model.name)
    difference, batch = worst
    if tolerance is None and difference.relative > allowed:
        amplified = ROUNDINGS * _rounding(frozen, batch, ends.tensor_of(difference))
        allowed = max(allowed, min(amplified, _MOST_TOLERANCES * allowed))
    if not difference.relative <= allowed:
        raise ExportError(
            f"ONNX Runtime and Keras differ in {'the logits of ' if difference.logits else ''}"
            f"output '{difference.output}' by {difference.relative:.3g} of "
            f"{difference.scale:.3g}, its scale; allowed is "
            f"{allowed:.3g}. {_origin(path, frozen, batch, allowed, difference.output)}",
            model=model.name,
            hint="No file was written. Pass `inputs=` of the kind the model is for, or a larger "
            "`tolerance=` where this is harmless.",
        )
    return difference.relative


class _Ends:
    """The outputs of a file, and the logits of those that are probabilities.

    Args:
        path: The file.
        frozen: The graph that it was made from.
    """

    def __init__(self, path: str | os.PathLike[str], frozen: FrozenGraph):
        import onnx

        self._frozen = frozen
        proto = onnx.load(os.fspath(path), load_external_data=False)
        self._logits = {found.output: found for found in logits_of(proto, frozen)}
        # with weights in a second file, it is too large to be run from memory
        outside = any(tensor.external_data for tensor in proto.graph.initializer)
        self._proto = None if outside or not self._logits else proto

    def differences(
        self, batch: list[np.ndarray], expected: list[np.ndarray], received: list[np.ndarray]
    ) -> Iterator[Difference]:
        """How far each output is off, and the logits of each that is saturated."""
        saturated = []
        names = self._frozen.output_names
        for name, reference, answer in zip(names, expected, received, strict=True):
            relative, scale = relative_difference(reference, answer)
            logits = self._logits.get(name)
            if logits is not None and logits.kind == "Sigmoid":
                relative, scale = relative * scale, 1.0
            yield Difference(name, relative, scale)
            if logits is not None and is_saturated(reference):
                saturated.append(logits)
        if saturated and self._proto is not None:
            found = compared(self._proto, self._frozen, saturated, batch)
            for logits, reference, answer in found:
                yield Difference(
                    logits.output, *relative_difference(reference, answer), logits=True
                )

    def tensor_of(self, difference: Difference) -> str:
        """What is compared, in the frozen graph."""
        if difference.logits:
            return self._logits[difference.output].in_graph
        return self._frozen.outputs[self._frozen.output_names.index(difference.output)]


def rounding_sensitivity(
    frozen: FrozenGraph, batch: list[np.ndarray], names: list[str] | None = None
) -> float:
    """How far a model's own answer moves when every weight and input moves by one rounding step.

    Each goes up or down at random, several times; the largest movement counts.

    Args:
        frozen: The model as a graph.
        batch: Inputs, flat.
        names: Of the tensors to look at; None for the outputs.

    Returns:
        The largest entry of the movement over the largest entry of the output, the largest over
        all tensors and moves; infinite if an answer is not finite.
    """
    names = frozen.outputs if names is None else names
    before = frozen.run(batch, names)
    movements = []
    for seed in range(MOVES):
        generator = np.random.default_rng(seed)
        inputs = [moved(array, generator) for array in batch]
        after = frozen.moved(generator).run(inputs, names)
        movements += [
            relative_difference(x, y)[0]
            for x, y in zip(before, after, strict=True)
            if x.dtype.name in EPSILONS
        ]
    return max((m if np.isfinite(m) else np.inf for m in movements), default=0.0)


def _rounding(frozen, batch, tensor: str) -> float:
    try:
        return rounding_sensitivity(frozen, batch, [tensor])
    except Exception:  # a graph that TensorFlow's CPU cannot run earns no allowance
        return 0.0


def _origin(path, frozen, batch, tolerance: float, output: str) -> str:
    try:
        layers = first_layers_that_differ(path, frozen, batch, tolerance, output)
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


def _answered(
    model: keras.Model, signature: Signature, inputs: Any
) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
    """What `_batches` gives; what the calls move, from one to the next, is in the end as it was."""
    with keras.StatelessScope(collect_losses=True, initialize_variables=False):
        return list(_batches(model, signature, inputs))


def _batches(
    model: keras.Model, signature: Signature, inputs: Any
) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """The inputs to compare on and Keras's answers, both flat, for each batch."""
    reference = partial(_reference, model, signature)
    if inputs is None:
        for seed, (rows, free) in enumerate(_BATCHES):
            arrays = random_inputs(signature.inputs, model, rows, free=free, seed=seed)
            yield scaled_off_saturation(arrays, reference)
        return
    given = arrays_for(signature, inputs, model)
    rows, own = len(given[0]), signature.batch_size
    if own is not None:
        parts = list((np.arange(math.ceil(rows / own) * own) % rows).reshape(-1, own))
    else:
        everything = np.arange(max(rows, _BATCHES[-1][0])) % rows
        count = math.ceil(len(everything) / _LARGEST_BATCH)
        parts = [everything[:1], *np.array_split(everything, count)]
    for part in parts:
        batch = [array[part] for array in given]
        yield batch, reference(batch)


def _session(frozen, path):
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
            model=frozen.model.name,
            layer=layer_of(frozen.model, str(failure)),
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
    if not all(np.all(np.isfinite(array)) for array in arrays):
        raise ExportError(
            f"The Keras model's own answer to inputs of shapes {shapes} is not finite, so nothing "
            "can be compared with it.",
            model=model.name,
            hint="Pass `inputs=` of the kind the model is for.",
        )
    return arrays


def _answer(model, session, frozen, batch) -> list[np.ndarray]:
    shapes = [array.shape for array in batch]
    try:
        return session.run(frozen.output_names, feeds(frozen, batch))
    except Exception as failure:
        raise ExportError(
            f"ONNX Runtime failed on inputs of shapes {shapes}: {reason(failure)}",
            model=model.name,
            layer=layer_of(frozen.model, str(failure)),
        ) from failure
