"""One keras.applications model of each family, random but non-trivial, swapped to weight norm."""

from __future__ import annotations

import numpy as np
import pytest
from architectures import brought_alive, built
from fidelity import SITE_TOLERANCE, assert_exact, assert_no_batch_norm, site_differences

import kerasnorm

SIZES = {
    "ResNet50": 96,
    "ResNet50V2": 96,
    "MobileNetV2": 96,
    "DenseNet121": 96,
    "EfficientNetB0": 96,
    "InceptionV3": 96,
    "Xception": 96,
}
# The everyday suite takes one of each way of using BatchNorm: behind convolutions, before
# activations, behind depthwise convolutions with a Normalization layer in front.
EVERYDAY = ("ResNet50V2", "MobileNetV2", "EfficientNetB0")


def alive(name: str):
    model = built(name, SIZES[name])
    return model, brought_alive(model)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in EVERYDAY else [pytest.mark.slow]) for n in SIZES],
)
def test_swap_and_export(name, tmp_path):
    source, x = alive(name)
    swap = kerasnorm.swap_norms(source, "weight", strict=True)
    assert_exact(source, swap, x)
    assert_no_batch_norm(swap.model)
    export = kerasnorm.export_onnx(swap.model, tmp_path / "model.onnx", inputs=x)
    assert "BatchNormalization" not in export.op_counts
    # Where random weights amplify rounding, the source's own export is off by as much.
    own = kerasnorm.export_onnx(source, tmp_path / "source.onnx", inputs=x).max_difference
    assert export.max_difference <= max(1e-5, 2 * own)


def test_a_single_beta_off_by_a_little_is_seen():
    source, x = alive("MobileNetV2")
    swap = kerasnorm.swap_norms(source, "weight")
    norm = source.get_layer("block_6_expand_BN")
    beta = np.array(norm.beta)
    beta[3] += 1e-2
    norm.beta.assign(beta)
    differences = site_differences(source, swap, x)
    assert differences["block_6_expand_BN"] > SITE_TOLERANCE
    assert differences["block_5_expand_BN"] <= SITE_TOLERANCE
