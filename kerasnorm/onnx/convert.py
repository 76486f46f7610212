"""Keras to ONNX: trace the model, freeze its weights, let tf2onnx translate the operations."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras

from kerasnorm.errors import ExportError
from kerasnorm.onnx.layer_names import layer_of
from kerasnorm.onnx.signature import Signature, output_names
from kerasnorm.version import __version__

# The newest opset whose operators tf2onnx itself writes; later ones are reached from there.
_TF2ONNX_OPSET = 18


@dataclass(frozen=True)
class Traced:
    """A model as a TensorFlow graph with its weights inside.

    Args:
        graph: A GraphDef without variables.
        inputs, outputs: Tensor names in that graph.
        input_names, output_names: The names that a user of the model knows them by.
    """

    graph: Any
    inputs: list[str]
    outputs: list[str]
    input_names: list[str]
    output_names: list[str]


def trace(model: keras.Model, signature: Signature) -> Traced:
    """The model at inference (`training=False`) as a frozen TensorFlow graph.

    Raises:
        ExportError: If TensorFlow cannot trace or freeze the model.
    """
    import tensorflow as tf
    import tf2onnx

    names: list[str] = []

    def answer(*tensors):
        outputs = signature.call(model, tensors)
        names[:] = output_names(model, outputs, [spec.name for spec in signature.inputs])
        # An output of its own for each name, also where two are the same tensor or an input.
        return [tf.identity(tensor) for tensor in keras.tree.flatten(outputs)]

    specs = [tf.TensorSpec(spec.shape, spec.dtype) for spec in signature.inputs]
    try:
        function = tf.function(answer, input_signature=specs).get_concrete_function()
        inputs = [t.name for t in function.inputs if t.dtype != tf.resource]
        outputs = [t.name for t in function.outputs]
        graph = tf2onnx.tf_loader.from_function(function, inputs, outputs)
    except Exception as failure:
        raise ExportError(
            f"TensorFlow could not trace the model: {first_line(failure)}",
            model=model.name,
            layer=layer_of(model, str(failure)),
            hint="A model can be exported if `tf.function` can call it on inputs of free size.",
        ) from failure
    return Traced(graph, inputs, outputs, [spec.name for spec in signature.inputs], names)


def to_onnx(model: keras.Model, traced: Traced, opset: int) -> Any:
    """A checked `onnx.ModelProto` of a traced model.

    Args:
        model: The model that was traced, named in errors and metadata.
        traced: What `trace` returned.
        opset: Version of the ONNX operators.

    Raises:
        ExportError: If ONNX has no operator for something in the model.
    """
    import onnx
    import tensorflow as tf
    from tf2onnx import optimizer, tfonnx

    with collected_errors() as complaints, tf.Graph().as_default() as graph:
        tf.import_graph_def(traced.graph, name="")
        converted = tfonnx.process_tf_graph(
            graph,
            # Every operation gets its try, so that the one that failed is known by name.
            continue_on_error=True,
            opset=min(opset, _TF2ONNX_OPSET),
            input_names=traced.inputs,
            output_names=traced.outputs,
            tensors_to_rename=dict(
                zip(
                    traced.inputs + traced.outputs,
                    traced.input_names + traced.output_names,
                    strict=True,
                )
            ),
        )
        converted = optimizer.optimize_graph(converted)
    proto = converted.make_model(_description(model), graph_name=model.name)
    _refuse_foreign_operations(model, proto, complaints)
    if opset > _TF2ONNX_OPSET:
        proto = _at_opset(model, proto, opset)
    _label(model, proto)
    _name_free_sizes(proto)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as failure:
        raise ExportError(
            f"The conversion gave an invalid ONNX model: {first_line(failure)}",
            model=model.name,
            layer=layer_of(model, str(failure)),
        ) from failure
    return proto


def _refuse_foreign_operations(model, proto, complaints: list[str]) -> None:
    import onnx

    opset = {entry.domain: entry.version for entry in proto.opset_import}[""]
    for node in all_nodes(proto.graph):
        if node.domain or onnx.defs.has(node.op_type, opset):
            continue
        reason = next((text for text in complaints if node.name in text), None)
        raise ExportError(
            f"The operation '{node.name}' of type {node.op_type} has no translation to ONNX "
            f"opset {opset}." + (f" {reason}" if reason else ""),
            model=model.name,
            layer=layer_of(model, node.name),
            hint="Try a later opset, or replace the layer by one of standard operations.",
        )


def all_nodes(graph) -> Iterator[Any]:
    """The nodes of an ONNX graph and of the graphs inside them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from all_nodes(inner)


def _at_opset(model, proto, opset: int):
    from onnx import version_converter

    try:
        return version_converter.convert_version(proto, opset)
    except Exception as failure:
        raise ExportError(
            f"The model cannot be written in opset {opset}: {first_line(failure)}",
            model=model.name,
            layer=layer_of(model, str(failure)),
            hint=f"Use opset {_TF2ONNX_OPSET} or earlier.",
        ) from failure


def _description(model) -> str:
    return (
        f"Keras model '{model.name}' ({type(model).__name__}), exported by kerasnorm {__version__}"
    )


def _label(model, proto) -> None:
    import onnx
    import tensorflow as tf
    import tf2onnx

    proto.producer_name = "kerasnorm"
    proto.producer_version = __version__
    proto.doc_string = _description(model)
    onnx.helper.set_model_props(
        proto,
        {
            "source_model": model.name,
            "source_class": type(model).__name__,
            "keras_version": keras.__version__,
            "tensorflow_version": tf.__version__,
            "tf2onnx_version": tf2onnx.__version__,
        },
    )
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


def first_line(failure: BaseException) -> str:
    """The first line of an exception's text that says something, closed with a full stop."""
    lines = [line.strip() for line in str(failure).splitlines()]
    text = next(
        (line for line in lines if line and not line.startswith(("in user code", "File "))),
        type(failure).__name__,
    )
    return text if text.endswith(".") else f"{text}."


@contextlib.contextmanager
def collected_errors() -> Iterator[list[str]]:
    """tf2onnx's complaints as a list instead of log lines."""
    texts: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record):
            reason = f" {first_line(record.exc_info[1])}" if record.exc_info else ""
            texts.append(record.getMessage().splitlines()[0] + reason)

    collector = Collector(logging.ERROR)
    logger = logging.getLogger("tf2onnx")
    logger.addHandler(collector)
    try:
        yield texts
    finally:
        logger.removeHandler(collector)


_TENSORFLOW_LOG_LINE = re.compile(rb"^([IWE]\d{4} \d\d:|WARNING: All log messages before absl)")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back the log of TensorFlow and tf2onnx; everything else printed meanwhile is kept."""
    loggers = [logging.getLogger(name) for name in ("tf2onnx", "tensorflow", "absl")]
    before = [(logger, logger.propagate, logger.level) for logger in loggers]
    null = logging.NullHandler()
    for logger in loggers:
        logger.propagate = False
        logger.addHandler(null)
    try:
        with _filtered_stderr(), warnings.catch_warnings():
            # Neither is about the user's model: both come from the converters' own old idioms.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, propagate, level in before:
            logger.propagate = propagate
            logger.setLevel(level)
            logger.removeHandler(null)


@contextlib.contextmanager
def _filtered_stderr() -> Iterator[None]:
    # TensorFlow's C++ side writes to the file descriptor, and its log level is fixed at import.
    try:
        saved = os.dup(2)
    except OSError:  # a process without a standard error stream
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            for line in held:
                if not _TENSORFLOW_LOG_LINE.match(line):
                    os.write(2, line)
