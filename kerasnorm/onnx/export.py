"""`export_onnx`: a Keras model as an ONNX file that was checked before it was kept."""

from __future__ import annotations

import collections
import numbers
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from kerasnorm.atomic_files import replace_whole
from kerasnorm.errors import ExportError
from kerasnorm.keras_private import sublayers
from kerasnorm.onnx.check import check
from kerasnorm.onnx.convert import to_onnx
from kerasnorm.onnx.error_text import layer_of, reason
from kerasnorm.onnx.external_weights import WeightsFile
from kerasnorm.onnx.frozen_graph import FrozenGraph, freeze, nbytes
from kerasnorm.onnx.io_spec import signature_of
from kerasnorm.onnx.postprocess import all_nodes
from kerasnorm.swap.report import Report
from kerasnorm.swap.swap import Swap

_OLDEST_OPSET = 13
# In bytes. One protocol buffer message holds no more.
_LARGEST_FILE = 2**31 - 2**20
# In larger models weights stay outside of the graph while it is converted. In smaller ones
# constants are better, for TensorFlow computes with them.
_LARGE_MODEL = 2**26
# tf2onnx keeps the functions of the graph at hand, its counter of names and arguments of its
# handlers in its modules: of two conversions at once, each would find the other's.
_CONVERSION = threading.Lock()


@dataclass(frozen=True)
class OnnxExport:
    """What `export_onnx` wrote.

    Args:
        path: The file.
        opset: Version of the ONNX operators in it.
        max_difference: Largest difference seen between ONNX Runtime and Keras, relative to the
            largest entry of the output, or of its logits, that it was seen in; of a sigmoid's
            output, the difference itself.
        op_counts: How many operations of each type the file holds.
    """

    path: Path
    opset: int
    max_difference: float
    op_counts: dict[str, int]


def export_onnx(
    model: keras.Model | Swap,
    path: str | os.PathLike[str],
    *,
    report: Report | None = None,
    opset: int = 17,
    inputs: Any = None,
    tolerance: float | None = None,
    overwrite: bool = True,
) -> OnnxExport:
    """Writes a Keras model as an ONNX file and checks it in ONNX Runtime before keeping it.

    Batch size, and height, width and time where the model leaves them open, stay open; but for a
    model that states a batch size, and cannot be called on batches of another. Inputs keep the
    model's input names; outputs are named by dict key, else by output layer. WeightNorm is folded
    into the kernels; every other layer is exported as it computes at inference. The model itself is
    not changed. Weights of more than 2 GB, which one ONNX file does not hold, go to
    a second file in the same folder, "weights-" and a digest, which has to stay there; those of
    earlier exports are not deleted.

    Cosine norm is written without what guards it in training: its inputs must lie between 1e-15
    and 1e18, or be 0.

    The file says where it comes from: `metadata_props` has `source_model`, `source_class`, the
    versions of Keras, TensorFlow and tf2onnx, and where a report is known `swap_report`, its
    `to_dict()` as JSON.

    The check compares answers at batch 1 and 3, and where a final softmax or sigmoid is next to 0
    and 1 on the inputs, its logits too.

    Threads may export at the same time: their conversions take turns, for tf2onnx does one at a
    time. TensorFlow writes to its log as ever (`TF_CPP_MIN_LOG_LEVEL`).

    Args:
        model: Functional, Sequential, or any other model that was called once; or what
            `swap_norms` returned.
        path: The file to write. An existing file is replaced in one step, or not at all.
        report: Of the swap that made the model; None for that of a `Swap`, and for a model that
            none made.
        opset: Version of the ONNX operators, 13 or later.
        inputs: What to check on: an array, a list of arrays, or a dict by input name, batch
            first. Without them, seeded random numbers: standard normal, integers below every
            vocabulary.
        tolerance: Largest difference allowed, relative to the largest entry of each output.
            Without it 1e-5 for models that compute in float32, 1e-2 in float16; more where
            the model amplifies rounding, as deep untrained networks do: eight times as much as
            its answer moves when all its weights move by one rounding step, up to 1e-3.
        overwrite: Whether an existing file may be replaced.

    Returns:
        An `OnnxExport`: `.path`, `.opset`, `.max_difference`, `.op_counts`.

    Raises:
        ExportError: If the request cannot be met (opset, path, an unbuilt model, a layer that
            ONNX cannot express) or the file's answers differ from the model's. No file is
            written then, and one that was there stays as it was.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    >>> export_onnx(model, "head.onnx").op_counts
    {'MatMul': 1}
    """
    if isinstance(model, Swap):
        model, report = model.model, report or model.report
    _check_request(model, path, opset, overwrite)
    _check_options(report, tolerance)
    size = sum(map(nbytes, model.variables))
    with (
        replace_whole(path, error=ExportError) as temporary,
        WeightsFile(temporary) as beside,
    ):
        file = beside if size > _LARGEST_FILE else None
        signature = signature_of(model, inputs)
        first: ExportError | None = None
        # Once more without what is special, where it fails: outside, short.
        for outside, short in ((size > _LARGE_MODEL, True), (file is not None, False)):
            frozen = None
            try:
                with _CONVERSION:
                    frozen = freeze(model, signature, opset, outside=outside, short=short)
                    proto = to_onnx(model, frozen, signature, opset, file, report)
                _write(frozen, proto, temporary)
                difference = check(
                    model, temporary, signature, frozen, inputs=inputs, tolerance=tolerance
                )
                break
            except ExportError as failure:
                if first is not None:
                    raise first from first.__cause__
                if frozen is not None and frozen.plain:
                    raise
                first = failure
        if file is not None:
            file.name(proto)
            temporary.write_bytes(proto.SerializeToString())
            file.keep()  # when nothing is left to be written: a full disk leaves none behind
    counts = collections.Counter(node.op_type for node in all_nodes(proto.graph))
    return OnnxExport(Path(path), opset, difference, dict(counts))


def check_opset(opset: int) -> None:
    """Raise ExportError unless this opset can be written."""
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not isinstance(opset, int) or not _OLDEST_OPSET <= opset <= newest:
        raise ExportError(
            f"`opset` must be between {_OLDEST_OPSET} and {newest}, the newest that onnx "
            f"{onnx.__version__} knows. Received: {opset}."
        )


def _check_request(model, path, opset: int, overwrite: bool) -> None:
    if keras.backend.backend() != "tensorflow":
        raise ExportError(
            "Export to ONNX needs Keras on the TensorFlow backend. "
            f"Received: {keras.backend.backend()}.",
            hint="Set KERAS_BACKEND=tensorflow before importing keras.",
        )
    if not isinstance(model, keras.Model):
        raise ExportError(
            f"`model` must be a keras.Model, or what `swap_norms` returned. Received: "
            f"{type(model).__name__}.",
            hint="Load a file with `kerasnorm.load_model` first.",
        )
    check_opset(opset)
    if not overwrite and os.path.lexists(path):
        raise ExportError(
            f"'{path}' exists.",
            model=model.name,
            hint="Remove it, choose another name, or pass `overwrite=True`.",
        )
    for layer in sublayers(model):
        if getattr(layer, "stateful", False):
            raise ExportError(
                "An ONNX model has no memory between calls. Received: a layer with stateful=True.",
                model=model.name,
                layer=layer.name,
                hint="Rebuild the layer with stateful=False, its state as an input and an output.",
            )


def _check_options(report: Any, tolerance: Any) -> None:
    if not isinstance(report, (Report, type(None))):
        raise ExportError(
            f"`report` must be that of a swap. Received: {type(report).__name__}.",
            hint="Give the swap's `.report`, or the swap itself in place of its model.",
        )
    if tolerance is not None and not (
        isinstance(tolerance, numbers.Real) and float(tolerance) >= 0
    ):
        raise ExportError(
            f"`tolerance` must be a number, 0 at least. Received: tolerance={tolerance!r}."
        )


def _write(frozen: FrozenGraph, proto, path: Path) -> None:
    import onnx

    path.write_bytes(proto.SerializeToString())
    try:
        onnx.checker.check_model(os.fspath(path))
    except onnx.checker.ValidationError as failure:
        raise ExportError(
            f"The conversion gave an invalid ONNX model: {reason(failure)}",
            model=frozen.model.name,
            layer=layer_of(frozen.model, str(failure)),
        ) from failure
