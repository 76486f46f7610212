"""Exported files through ONNX Runtime's own quantization to INT8."""

from __future__ import annotations

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_models
from fidelity import randomize
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

import kerasnorm


class Batches(quantization.CalibrationDataReader):
    """Calibration data for a model of one input."""

    def __init__(self, name, x):
        self._batches = ({name: batch} for batch in np.array_split(x, 4))

    def get_next(self):
        return next(self._batches, None)


def answer(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.fixture(scope="module", params=["none", "weight", "layer", "cosine"])
def exported(request, tmp_path_factory):
    keras.utils.set_random_seed(0)
    model = tiny_models.residual()
    x = np.random.default_rng(0).normal(size=(200, 8, 8, 3)).astype("float32")
    randomize(model, x)
    if request.param != "none":
        model = kerasnorm.swap_norms(model, request.param, x[:90]).model
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    kerasnorm.export_onnx(model, path)
    return path, x


def error(path, quantized, x):
    expected = answer(path, x)
    return float(np.std(answer(quantized, x) - expected) / np.std(expected))


def lengths(path):
    """The operators that compute ‖x‖ for cosine norm."""
    return [node.name for node in onnx.load(path).graph.node if "CosineNorm" in node.name]


# Per channel, ONNX Runtime 1.32 fails at the gains of layer norms unless they are left out.
@pytest.mark.parametrize("per_channel", [False, True])
def test_static_quantization_keeps_the_answers(exported, per_channel, tmp_path):
    path, x = exported
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
    )
    kinds = {node.op_type for node in onnx.load(quantized).graph.node}
    assert "QuantizeLinear" in kinds
    assert error(path, quantized, x[150:]) < 0.1


def test_lengths_can_be_told_by_name(exported, tmp_path):
    path, _ = exported
    prepared = tmp_path / "prepared.onnx"
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    found = lengths(prepared)
    sizes = sum(node.op_type == "Sqrt" for node in onnx.load(prepared).graph.node)
    assert sum("lengths" in name for name in found) == sizes


def test_dynamic_quantization_keeps_the_answers(exported, tmp_path):
    path, x = exported
    quantization.quantize_dynamic(path, tmp_path / "int8.onnx")
    assert error(path, tmp_path / "int8.onnx", x) < 0.1
