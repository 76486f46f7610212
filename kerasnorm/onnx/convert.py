"""From a traced model to ONNX: tf2onnx translates, what comes out is examined and labelled."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

import keras

from kerasnorm.errors import ExportError
from kerasnorm.keras_private import sublayers
from kerasnorm.onnx.custom_ops.registry import handlers, write
from kerasnorm.onnx.error_text import reason
from kerasnorm.onnx.external_weights import WeightsFile, insert, taken_out
from kerasnorm.onnx.layer_names import layer_of
from kerasnorm.onnx.nodes import all_nodes
from kerasnorm.onnx.trace import Traced
from kerasnorm.onnx.workarounds import keep_apart
from kerasnorm.swap.report import Report
from kerasnorm.version import __version__

# The newest opset whose operators tf2onnx itself writes; later ones are reached from there.
_TF2ONNX_OPSET = 18


def to_onnx(
    model: keras.Model,
    traced: Traced,
    opset: int,
    file: WeightsFile | None,
    report: Report | None = None,
) -> Any:
    """An `onnx.ModelProto` of a traced model.

    Args:
        model: The model that was traced, named in errors and metadata.
        traced: What `trace` returned.
        opset: Version of the ONNX operators.
        file: Where large weights go; None if into the model.
        report: Of the swap that made the model, for the metadata.

    Raises:
        ExportError: If ONNX has no operator for something in the model.
    """
    complaints: list[str] = []
    try:
        try:
            proto = _translated(model, traced, opset, complaints, careful=False)
        except Exception:
            complaints.clear()
            proto = _translated(model, traced, opset, complaints, careful=True)
    except Exception as failure:
        raise ExportError(
            f"tf2onnx could not convert the model: {reason(failure)}",
            model=model.name,
            layer=layer_of(traced.model, str(failure)),
            hint="Try another opset, or a model that computes in float32.",
        ) from failure
    _refuse_foreign_operations(traced.model, proto, complaints)
    if any(layer.compute_dtype == "bfloat16" for layer in sublayers(traced.model)):
        _widen(proto.graph)
    keep_apart(proto.graph)
    weights = taken_out(proto, traced.weights)
    if file is None:
        insert(proto, weights)
    else:
        file.take(proto, weights)
    if opset > _TF2ONNX_OPSET:
        proto = _at_opset(model, proto, opset)
    _label(model, proto, report)
    _name_free_sizes(proto)
    return proto


def _translated(
    model: keras.Model, traced: Traced, opset: int, complaints: list[str], *, careful: bool
) -> Any:
    """What tf2onnx makes of the graph.

    Args:
        model: The model, for the description.
        traced: The graph.
        opset: Version of the ONNX operators.
        complaints: Gets the errors that tf2onnx logs.
        careful: Whether an optimization that fails is undone, and those after it go on: at the
            price of a copy of all weights for each.
    """
    import tensorflow as tf
    from tf2onnx import optimizer, tfonnx

    with _Complaints(complaints), tf.Graph().as_default() as graph:
        tf.import_graph_def(traced.graph, name="")
        converted = tfonnx.process_tf_graph(
            graph,
            # Every operation gets its try, so that the one that failed is known by name.
            continue_on_error=True,
            opset=min(opset, _TF2ONNX_OPSET),
            custom_op_handlers=handlers(),
            input_names=[*traced.inputs, *traced.weights],
            output_names=traced.outputs,
            tensors_to_rename=dict(
                zip(
                    traced.inputs + traced.outputs,
                    traced.input_names + traced.output_names,
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
        raise ExportError(
            f"The operation '{node.name}' of type {node.op_type} has no translation to ONNX "
            f"opset {opset}.{_complaint(node, complaints)}",
            model=model.name,
            layer=layer_of(model, node.name),
            hint="Try a later opset, or replace the layer by one of standard operations.",
        )


def _complaint(node, complaints: list[str]) -> str:
    about = [text for text in complaints if node.name in text and "is not supported" not in text]
    return f" {about[0]}" if about else ""


def _widen(graph) -> None:
    """Writes the short floats of a bfloat16 model as float32.

    Most ONNX operators of these opsets do not take bfloat16, and tf2onnx writes half of it as
    float16, whose range is far smaller.
    """
    import onnx
    from onnx import TensorProto

    short = (TensorProto.BFLOAT16, TensorProto.FLOAT16)

    def widen(tensor):
        if tensor.data_type in short:
            values = onnx.numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in short:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in graph.initializer:
        widen(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i in short:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t"):
                widen(attribute.t)
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                _widen(inner)


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


def _name_free_sizes(proto) -> None:
    """Inputs' free sizes as 'batch' and NAME_axis_2; outputs' the same where that is provable."""
    import onnx

    for values in (proto.graph.input, proto.graph.output):
        for value in values:
            for axis, size in enumerate(value.type.tensor_type.shape.dim):
                if not size.HasField("dim_value"):
                    size.Clear()
                    if values is proto.graph.input:
                        size.dim_param = f"{value.name}_axis_{axis}" if axis else "batch"
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    for value, known in zip(proto.graph.output, inferred.graph.output, strict=True):
        sizes = value.type.tensor_type.shape.dim
        for axis, size in enumerate(sizes):
            if size.HasField("dim_value"):
                continue
            found = known.type.tensor_type.shape.dim[axis]
            ours = found.HasField("dim_param") and not found.dim_param.startswith("unk__")
            size.dim_param = found.dim_param if ours else f"{value.name}_axis_{axis}"
