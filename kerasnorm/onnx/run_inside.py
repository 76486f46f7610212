"""Run an ONNX model, for its outputs or for the values of tensors inside it."""

from __future__ import annotations

from typing import Any

import numpy as np

from kerasnorm.onnx.frozen_graph import FrozenGraph


def run_inside(
    proto: Any, frozen: FrozenGraph, batch: list[np.ndarray], names: list[str]
) -> list[np.ndarray]:
    """The values of tensors of an ONNX model, of its outputs or any other.

    Args:
        proto: The model, with its weights.
        frozen: The graph it was made from.
        batch: Inputs, flat.
        names: Of the tensors.
    """
    import onnx
    import onnxruntime

    exposed = onnx.ModelProto()
    exposed.CopyFrom(proto)
    inside = [name for name in dict.fromkeys(names) if name not in frozen.output_names]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inside)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        exposed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(names, feeds(frozen, batch))


def feeds(frozen: FrozenGraph, batch: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What a session is given: by name, bfloat16 as float32, which it is written as."""
    return {
        name: array.astype("float32") if array.dtype.name == "bfloat16" else array
        for name, array in zip(frozen.input_names, batch, strict=True)
    }
