"""Exported files through ONNX Runtime's own quantization to INT8."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

# Of the answers' deviation. An entry of 7 bits is off by up to 1/127 of the largest; through the
# network that was 0.006 to 0.055.
TOLERANCE = 0.08
# 7 bits for weights: on x86 CPUs without VNNI, sums of two products of 8 bits may saturate.
REDUCED = {"reduce_range": True}


class Batches(quantization.CalibrationDataReader):
    """Calibration data for a model of one input."""

    def __init__(self, name, x):
        self._batches = ({name: batch} for batch in np.array_split(x, 4))

    def get_next(self):
        return next(self._batches, None)


def answer(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def error(path, quantized, x):
    expected = answer(path, x)
    return float(np.std(answer(quantized, x) - expected) / np.std(expected))


def lengths(path):
    """The operators that compute ‖x‖ for cosine norm."""
    return [node.name for node in onnx.load(path).graph.node if "CosineNorm" in node.name]


# Per channel, ONNX Runtime 1.32 fails at the gains of layer norms unless they are left out.
@pytest.mark.parametrize("per_channel", [False, True])
def test_static_quantization_keeps_the_answers(exported_residual, per_channel, tmp_path):
    _, path, x = exported_residual
    prepared, quantized = tmp_path / "prepared.onnx", tmp_path / "int8.onnx"
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    [given] = onnxruntime.InferenceSession(path).get_inputs()
    how = {"op_types_to_quantize": ["Conv", "MatMul"], "per_channel": True} if per_channel else {}
    quantization.quantize_static(
        prepared,
        quantized,
        Batches(given.name, x[:150]),
        nodes_to_exclude=lengths(prepared),
        **how,
        **REDUCED,
    )
    kinds = {node.op_type for node in onnx.load(quantized).graph.node}
    assert "QuantizeLinear" in kinds
    assert error(path, quantized, x[150:]) < TOLERANCE


def test_lengths_can_be_told_by_name(exported_residual, tmp_path):
    _, path, _ = exported_residual
    prepared = tmp_path / "prepared.onnx"
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    found = lengths(prepared)
    sizes = sum(node.op_type == "Sqrt" for node in onnx.load(prepared).graph.node)
    assert sum("lengths" in name for name in found) == sizes


def test_dynamic_quantization_keeps_the_answers(exported_residual, tmp_path):
    _, path, x = exported_residual
    quantization.quantize_dynamic(path, tmp_path / "int8.onnx", **REDUCED)
    assert error(path, tmp_path / "int8.onnx", x) < TOLERANCE
