"""One keras.applications model of each family, random but non-trivial, swapped to weight norm."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from fidelity import (
    SITE_TOLERANCE,
    assert_exact,
    assert_no_batch_norm,
    linearize_outputs,
    randomize,
    site_differences,
)

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


def built(name: str):
    keras.utils.set_random_seed(0)
    size = SIZES[name]
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3))
    x = np.random.default_rng(1).normal(size=(4, size, size, 3)).astype("float32")
    randomize(model, x)
    linearize_outputs(model)
    return model, x


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in EVERYDAY else [pytest.mark.slow]) for n in SIZES],
)
def test_swap_and_export(name, tmp_path):
    source, x = built(name)
    swap = kerasnorm.swap_norms(source, "weight", strict=True)
    assert_exact(source, swap, x)
    assert_no_batch_norm(swap.model)
    export = kerasnorm.export_onnx(swap.model, tmp_path / "model.onnx", inputs=x)
    assert export.max_difference <= 1e-5
    assert "BatchNormalization" not in export.op_counts


def test_a_single_beta_off_by_a_little_is_seen():
    source, x = built("MobileNetV2")
    swap = kerasnorm.swap_norms(source, "weight")
    norm = source.get_layer("block_6_expand_BN")
    beta = np.array(norm.beta)
    beta[3] += 1e-2
    norm.beta.assign(beta)
    differences = site_differences(source, swap, x)
    assert differences["block_6_expand_BN"] > SITE_TOLERANCE
    assert differences["block_5_expand_BN"] <= SITE_TOLERANCE
