"""Every keras.applications model with BatchNorm, random but non-trivial, swapped to weight norm."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from architectures import (
    architectures,
    brought_alive,
    built,
    in_float64,
    may_have_batch_norm,
    smallest,
)
from fidelity import (
    FLOAT64_TOLERANCE,
    SITE_TOLERANCE,
    assert_exact,
    assert_no_batch_norm,
    own_rounding,
    site_differences,
)

import kerasnorm

# One of each family is exported too, at a size that leaves float32 enough digits at every call.
SIZES = {
    "ResNet50": 96,
    "ResNet50V2": 96,
    "MobileNet": 96,
    "MobileNetV2": 96,
    "MobileNetV3Small": 96,
    "DenseNet121": 96,
    "EfficientNetB0": 96,
    "EfficientNetV2B0": 96,
    "InceptionV3": 96,
    "NASNetMobile": 96,
    "Xception": 96,
}
# The everyday suite takes BatchNorm behind convolutions, depthwise ones among them.
EVERYDAY = ("MobileNetV2",)


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
    if export.max_difference > 1e-5:
        # Where random weights amplify rounding, the source's own export is off by as much.
        own = kerasnorm.export_onnx(source, tmp_path / "source.onnx", inputs=x).max_difference
        assert export.max_difference <= 2 * own


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in architectures() if may_have_batch_norm(n)])
def test_every_architecture(name):
    """At the smallest input, where float32 leaves too few digits in many: in float64 as well."""
    keras.backend.clear_session()
    source = smallest(name)
    kerasnorm.swap_norms(source, "weight", strict=True)  # as it comes
    x = brought_alive(source)
    wide = in_float64(name, source)
    swap = kerasnorm.swap_norms(wide, "weight", strict=True)
    assert max(site_differences(wide, swap, x).values()) <= FLOAT64_TOLERANCE
    assert_no_batch_norm(swap.model)
    del wide, swap
    swap = kerasnorm.swap_norms(source, "weight", strict=True)
    differences = site_differences(source, swap, x)
    own = own_rounding(source, swap, x)
    # the largest of 10^5 roundings, at another place in each model
    allowed = {site: max(SITE_TOLERANCE, 10 * own[site]) for site in differences}
    assert not {site: d for site, d in differences.items() if not d <= allowed[site]}


def test_a_single_beta_off_by_a_little_is_seen():
    source, x = alive("MobileNetV2")
    swap = kerasnorm.swap_norms(source, "weight")
    norm = source.get_layer("block_6_expand_BN")
    cut = keras.Model(source.inputs[0], norm.output)
    deviation = np.std(np.array(cut(x))[..., 3])
    beta = np.array(norm.beta)
    beta[3] += 1e-2
    norm.beta.assign(beta)
    differences = swap.compare(x)
    assert differences["block_6_expand_BN"] == pytest.approx(1e-2 / deviation, rel=0.1)
    assert differences["block_5_expand_BN"] < 0.1 * differences["block_6_expand_BN"]
