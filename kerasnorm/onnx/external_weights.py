"""Weights that were inputs of the graph: back into the model, or into a file beside it."""

from __future__ import annotations

import filecmp
import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerasnorm.atomic_files import flush_folder
from kerasnorm.onnx.postprocess import all_nodes

# What ONNX recommends, so that a runtime can map the file into memory.
_ALIGNMENT = 2**12


class WeightsFile:
    """A file beside an ONNX model that holds its weights.

    It is called "weights-" and a digest of what is in it: two models of the same weights share it,
    and no model finds the weights of another under the name that it knows. Until `keep`, it is a
    temporary one, which goes when the block ends.

    Args:
        model: A file where the model will be, with its permissions: who may not read the model
            may not read its weights.
    """

    def __init__(self, model: Path):
        self._model = model
        self._temporary = model.with_name(f".{secrets.token_hex(8)}.data")
        self._path = self._temporary

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(self, *_: Any) -> None:
        self._temporary.unlink(missing_ok=True)

    def take(self, proto: Any, weights: Mapping[str, np.ndarray]) -> None:
        """Writes weights that an `onnx.ModelProto` lacks, by tensor name; it refers to the file.

        Raises:
            OSError: If the file cannot be written.
        """
        digests = {name: hashlib.sha256(array.data).digest() for name, array in weights.items()}
        # In an order of their own: tf2onnx's is another one each time.
        names = sorted(weights, key=digests.__getitem__)
        digest = hashlib.sha256(b"".join(digests[name] for name in names)).hexdigest()
        self._path = self._temporary.with_name(f"weights-{digest[:16]}.data")
        with open(self._temporary, "wb") as file:
            shutil.copymode(self._model, self._temporary)
            for name in names:
                file.write(bytes(-file.tell() % _ALIGNMENT))
                _refer(proto, name, weights[name], self._temporary.name, file.tell())
                file.write(weights[name].data)
            file.flush()
            os.fsync(file.fileno())

    def name(self, proto: Any) -> None:
        """Gives the model the name that the file will have."""
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = self._path.name

    def keep(self) -> None:
        """Gives the file its name."""
        # One of the name that is there holds the same, or was damaged. The same stays, be it a
        # link or another's, and the programs that have it mapped share it.
        if not (self._path.is_file() and filecmp.cmp(self._temporary, self._path, shallow=False)):
            os.replace(self._temporary, self._path)
            flush_folder(self._path.parent)


def insert(proto: Any, weights: Mapping[str, np.ndarray]) -> None:
    """Adds weights that an `onnx.ModelProto` lacks, by tensor name."""
    from onnx import numpy_helper

    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))


def taken_out(proto: Any, weights: Mapping[str, keras.Variable]) -> dict[str, np.ndarray]:
    """Takes weights out of the inputs of an `onnx.ModelProto`; what it needs instead, by name.

    What is computed from them and constants alone is computed here, and its nodes are taken out
    too: transposed kernels.
    """
    import onnx
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    graph = proto.graph
    [opset] = [entry.version for entry in proto.opset_import if not entry.domain]
    constants = {tensor.name: tensor for tensor in graph.initializer}
    given = [value for value in graph.input if value.name in weights]
    arrays = {
        value.name: keras.ops.convert_to_numpy(weights[value.name]).astype(
            helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type), copy=False
        )
        for value in given
    }
    for value in given:
        graph.input.remove(value)
    for node in list(graph.node):
        needed = {name for name in node.input if name}
        weighs = any(name in arrays for name in needed)
        known = weighs and all(name in arrays or name in constants for name in needed)
        # Graphs inside a node may need more than its inputs.
        whole = not any(a.HasField("g") or a.graphs for a in node.attribute)
        if known and whole and not node.domain and onnx.defs.has(node.op_type, opset):
            evaluator = ReferenceEvaluator(node, opsets={"": opset})
            feeds = {
                name: arrays[name] if name in arrays else numpy_helper.to_array(constants[name])
                for name in needed
            }
            arrays.update(zip(node.output, evaluator.run(None, feeds), strict=True))
            graph.node.remove(node)
    used = {name for node in all_nodes(graph) for name in node.input}
    used.update(value.name for value in graph.output)
    for name in constants.keys() - used:
        graph.initializer.remove(constants[name])
    return {name: np.ascontiguousarray(a) for name, a in arrays.items() if name in used}


def _refer(proto, name: str, array: np.ndarray, location: str, offset: int) -> None:
    from onnx import TensorProto, helper

    tensor = proto.graph.initializer.add(
        name=name,
        dims=array.shape,
        data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", location), ("offset", offset), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
