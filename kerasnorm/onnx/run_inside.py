"""Run an ONNX model for the values of tensors inside it."""

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
    return session.run(names, dict(zip(frozen.input_names, batch, strict=True)))
