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

# Enough rows that a variance over one 1x1 map is a variance.
ROWS = 8

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


def images(size: int) -> np.ndarray:
    """Random images with structure: blocks of colour of several sizes, and a little noise.

    Pure noise looks alike in every place and every image. Deep channels then vary by less and
    less around large means, and normalizing them amplifies rounding from layer to layer.
    """
    rng = np.random.default_rng(1)
    x = 0.1 * rng.normal(size=(ROWS, size, size, 3))
    for blocks in (1, 3, 12):
        part = rng.normal(size=(ROWS, blocks, blocks, 3))
        x += part.repeat(size // blocks, 1).repeat(size // blocks, 2)
    return x.astype("float32")


def built(name: str):
    keras.utils.set_random_seed(0)
    size = SIZES[name]
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3))
    x = images(size)
    if name.startswith("EfficientNet"):  # scales its pixels itself
        x = np.clip(127.5 + 60 * x, 0, 255)
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
    assert "BatchNormalization" not in export.op_counts
    # Where random weights amplify rounding, the source's own export is off by as much.
    own = kerasnorm.export_onnx(source, tmp_path / "source.onnx", inputs=x).max_difference
    assert export.max_difference <= max(1e-5, 2 * own)


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
