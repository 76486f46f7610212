"""From a frozen graph to ONNX: tf2onnx translates, what comes out is examined and labelled."""

from __future__ import annotations

import json
import logging
import re
import threading
from typing import Any

import keras

from kerasnorm.errors import ExportError
from kerasnorm.keras_private import sublayers
from kerasnorm.onnx.custom_ops.registry import handlers, write
from kerasnorm.onnx.error_text import layer_of, reason
from kerasnorm.onnx.external_weights import WeightsFile, insert, taken_out
from kerasnorm.onnx.free_sizes import name_free_sizes
from kerasnorm.onnx.frozen_graph import FrozenGraph
from kerasnorm.onnx.io_spec import Signature
from kerasnorm.onnx.postprocess import (
    all_nodes,
    keep_padding_apart,
    widen_short_floats,
)
from kerasnorm.swap.report import Report
from kerasnorm.version import __version__

# The newest opset whose operators tf2onnx itself writes; later ones are reached from there.
_TF2ONNX_OPSET = 18
# What is said of its own functions, and what they ask of each other.
_TF2ONNX_OWN = re.compile(r"^Failed to convert node .*\(fct=.*>\) ?(make_sure failure: .*)?")


def to_onnx(
    model: keras.Model,
    frozen: FrozenGraph,
    signature: Signature,
    opset: int,
    file: WeightsFile | None,
    report: Report | None = None,
) -> Any:
    """A frozen graph as an `onnx.ModelProto`.

    Args:
        model: What the graph was made of, named in errors and metadata.
        frozen: What `freeze` returned.
        signature: What it was made from.
        opset: Version of the ONNX operators.
        file: Where large weights go; None if into the model.
        report: Of the swap that made the model, for the metadata.

    Raises:
        ExportError: If ONNX has no operator for something in the model.
    """
    complaints: list[str] = []
    try:
        try:
            proto = _translated(model, frozen, opset, complaints, careful=False)
        except Exception:
            complaints.clear()
            proto = _translated(model, frozen, opset, complaints, careful=True)
    except Exception as failure:
        raise ExportError(
            f"tf2onnx could not convert the model: {reason(failure)}",
            model=model.name,
            layer=layer_of(frozen.model, str(failure)),
            hint="Try another opset, or a model that computes in float32.",
        ) from failure
    _refuse_foreign_operations(frozen.model, proto, complaints)
    if any(layer.compute_dtype == "bfloat16" for layer in sublayers(frozen.model)):
        widen_short_floats(proto.graph)
    keep_padding_apart(proto.graph)
    weights = taken_out(proto, frozen.weights)
    if file is None:
        insert(proto, weights)
    else:
        file.take(proto, weights)
    if opset > _TF2ONNX_OPSET:
        proto = _at_opset(model, proto, opset)
    _label(model, proto, report)
    name_free_sizes(proto, model, signature)
    return proto


def _translated(
    model: keras.Model, frozen: FrozenGraph, opset: int, complaints: list[str], *, careful: bool
) -> Any:
    """What tf2onnx makes of the graph.

    Args:
        model: The model, for the description.
        frozen: The graph.
        opset: Version of the ONNX operators.
        complaints: Gets the errors that tf2onnx logs.
        careful: Whether an optimization that fails is undone, and those after it go on: at the
            price of a copy of all weights for each.
    """
    import tensorflow as tf
    from tf2onnx import optimizer, tfonnx

    with _Complaints(complaints), tf.Graph().as_default() as graph:
        tf.import_graph_def(frozen.graph, name="")
        converted = tfonnx.process_tf_graph(
            graph,
            # Every operation gets its try, so that the one that failed is known by name.
            continue_on_error=True,
            opset=min(opset, _TF2ONNX_OPSET),
            custom_op_handlers=handlers(),
            input_names=[*frozen.inputs, *frozen.weights],
            output_names=frozen.outputs,
            tensors_to_rename=dict(
                zip(
                    frozen.inputs + frozen.outputs,
                    frozen.input_names + frozen.output_names,
                    strict=True,
                )
            ),
        )
        converted = optimizer.optimize_graph(converted, catch_errors=careful)
        write(converted)
    return converted.make_model(_description(model), graph_name=model.name)


class _Complaints(logging.Handler):
    """In a block, adds the errors that tf2onnx logs in this thread to a list, each as one text."""

    def __init__(self, texts: list[str]):
        super().__init__(logging.ERROR)
        self._texts = texts
        self._thread = threading.get_ident()
        self._logger = logging.getLogger("tf2onnx")

    def __enter__(self) -> _Complaints:
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: Any) -> None:
        self._logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            cause = record.exc_info[1] if record.exc_info else None
            text = record.getMessage().partition("\n")[0]
            self._texts.append(text if cause is None else f"{text} {reason(cause)}")


def _refuse_foreign_operations(model, proto, complaints: list[str]) -> None:
    import onnx

    opset = {entry.domain: entry.version for entry in proto.opset_import}[""]
    for node in all_nodes(proto.graph):
        if node.domain or onnx.defs.has(node.op_type, opset):
            continue
        layer = layer_of(model, node.name)
        behind = f", such as keras.Model(model.get_layer({layer!r}).output, model.output)"
        raise ExportError(
            f"The operation '{node.name}' of type {node.op_type} has no translation to ONNX "
            f"opset {opset}.{_complaint(node, complaints)}",
            model=model.name,
            layer=layer,
            hint="Replace the layer by one of standard operations, or export the part of the "
            f"model in front of it or behind it{behind if layer else ''}; for a few operations a "
            "later opset is enough.",
        )


def _complaint(node, complaints: list[str]) -> str:
    """What tf2onnx says of a node beside that it failed, and in which function of its own."""
    about = [_TF2ONNX_OWN.sub("", text) for text in complaints if node.name in text]
    about = [text for text in about if text and "is not supported" not in text]
    return f" {about[0]}" if about else ""


def _at_opset(model, proto, opset: int):
    from onnx import version_converter

    try:
        return version_converter.convert_version(proto, opset)
    except Exception as failure:
        raise ExportError(
            f"The model cannot be written in opset {opset}: {reason(failure)}",
            model=model.name,
            layer=layer_of(model, str(failure)),
            hint=f"Use opset {_TF2ONNX_OPSET} or earlier.",
        ) from failure


def _description(model) -> str:
    return (
        f"Keras model '{model.name}' ({type(model).__name__}), exported by kerasnorm {__version__}"
    )


def _label(model, proto, report: Report | None) -> None:
    import onnx
    import tensorflow as tf
    import tf2onnx

    proto.producer_name = "kerasnorm"
    proto.producer_version = __version__
    proto.doc_string = _description(model)
    properties = {
        "source_model": model.name,
        "source_class": type(model).__name__,
        "keras_version": keras.__version__,
        "tensorflow_version": tf.__version__,
        "tf2onnx_version": tf2onnx.__version__,
    }
    if report is not None:
        text = json.dumps(report.to_dict(), ensure_ascii=False, separators=(",", ":"))
        properties["swap_report"] = text
    onnx.helper.set_model_props(proto, properties)
    used = {node.domain for node in all_nodes(proto.graph)} | {""}
    kept = [entry for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
