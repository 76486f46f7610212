"""Every layer that the norms take, around every norm, as ONNX."""

import keras
import pytest
from keras import layers

from kerasnorm.layers import Affine, CosineNorm, WeightNorm
from kerasnorm.onnx.export import export_onnx

BIAS = {"bias_initializer": "random_normal"}
LINEAR = {
    "dense": ((8,), lambda: layers.Dense(3, **BIAS)),
    "dense of steps": ((5, 8), lambda: layers.Dense(3, **BIAS)),
    "einsum": ((5, 8), lambda: layers.EinsumDense("abc,cd->abd", (5, 3), bias_axes="d", **BIAS)),
    "heads": ((5, 8), lambda: layers.EinsumDense("abc,cde->abde", (5, 2, 3))),
    "conv1d": ((9, 4), lambda: layers.Conv1D(3, 3, **BIAS)),
    "causal": ((9, 4), lambda: layers.Conv1D(3, 3, padding="causal", dilation_rate=2, **BIAS)),
    "conv2d": ((9, 8, 4), lambda: layers.Conv2D(3, 3, **BIAS)),
    "strided": ((9, 8, 4), lambda: layers.Conv2D(3, 3, strides=2, padding="same", **BIAS)),
    "dilated": ((9, 8, 4), lambda: layers.Conv2D(3, 3, dilation_rate=2, padding="same")),
    "even": ((9, 8, 4), lambda: layers.Conv2D(3, (2, 4), padding="same", **BIAS)),
    "oblong": ((9, 8, 4), lambda: layers.Conv2D(3, (1, 3), **BIAS)),
    "pointwise": ((9, 8, 4), lambda: layers.Conv2D(3, 1, **BIAS)),
    "pointwise, strided": ((9, 8, 4), lambda: layers.Conv2D(3, 1, strides=2, **BIAS)),
    "pointwise, grouped": ((9, 8, 4), lambda: layers.Conv2D(6, 1, groups=2, **BIAS)),
    "pointwise, depthwise": ((9, 8, 4), lambda: layers.DepthwiseConv2D(1, **BIAS)),
    "grouped": ((9, 8, 4), lambda: layers.Conv2D(6, 3, groups=2, **BIAS)),
    "conv3d": ((5, 5, 5, 3), lambda: layers.Conv3D(2, 3, **BIAS)),
    "transposed 1d": ((9, 4), lambda: layers.Conv1DTranspose(3, 3, strides=2, **BIAS)),
    "transposed 2d": ((6, 5, 4), lambda: layers.Conv2DTranspose(3, 3, strides=2, **BIAS)),
    "transposed 3d": ((4, 4, 4, 3), lambda: layers.Conv3DTranspose(2, 3, **BIAS)),
    "depthwise 1d": ((9, 4), lambda: layers.DepthwiseConv1D(3, depth_multiplier=2, **BIAS)),
    "depthwise 2d": ((9, 8, 4), lambda: layers.DepthwiseConv2D(3, padding="same", **BIAS)),
    "separable 1d": ((9, 4), lambda: layers.SeparableConv1D(3, 3, **BIAS)),
    "separable 2d": ((9, 8, 4), lambda: layers.SeparableConv2D(3, 3, **BIAS)),
}
OTHERS = {
    "affine": ((8,), Affine),
    "embedding": ((5,), lambda: layers.Embedding(9, 4)),
    "rnn": ((None, 4), lambda: layers.SimpleRNN(3)),
    "lstm": ((None, 4), lambda: layers.LSTM(3)),
    "gru": ((None, 4), lambda: layers.GRU(3)),
}
DIVIDED = (
    "pointwise, grouped",
    "pointwise, depthwise",
    "grouped",
    "depthwise 1d",
    "depthwise 2d",
)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def exported(path, shape, *stack):
    """The op counts, after a comparison with Keras, and the size of the file."""
    model = keras.Sequential([keras.Input(shape), *stack])
    result = export_onnx(model, path, tolerance=1e-5)
    return result.op_counts, path.stat().st_size


@pytest.mark.parametrize("name", [*LINEAR, *OTHERS])
def test_weight_norm_leaves_no_trace(name, tmp_path):
    shape, make = {**LINEAR, **OTHERS}[name]
    counts, _ = exported(tmp_path / "plain.onnx", shape, make())
    normed, _ = exported(tmp_path / "normed.onnx", shape, WeightNorm(make()))
    assert normed == counts


def test_weight_norm_takes_no_room(tmp_path):
    _, size = exported(tmp_path / "plain.onnx", (64,), layers.Dense(64))
    _, normed = exported(tmp_path / "normed.onnx", (64,), WeightNorm(layers.Dense(64)))
    assert normed == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize("arguments", [{}, {"rescale": True}], ids=["plain", "rescale"])
@pytest.mark.parametrize("name", LINEAR)
def test_cosines(name, arguments, tmp_path):
    shape, make = LINEAR[name]
    counts, _ = exported(tmp_path / "plain.onnx", shape, make())
    normed, _ = exported(tmp_path / "normed.onnx", shape, CosineNorm(make(), **arguments))
    assert normed["Sqrt"] == 1
    if len(shape) == 3 and not name.startswith("transposed"):
        assert normed["Div"] == 1
        # One on the way in and one on the way out.
        assert normed["Transpose"] == counts["Transpose"] == 2


@pytest.mark.parametrize("name", DIVIDED)
def test_cosines_across_groups(name, tmp_path):
    shape, make = LINEAR[name]
    exported(tmp_path / "x.onnx", shape, CosineNorm(make(), rescale=True, across_groups=True))


@pytest.mark.parametrize("free", [False, True], ids=["known size", "free size"])
@pytest.mark.parametrize("name", [n for n, (shape, _) in LINEAR.items() if len(shape) == 3])
def test_cosines_between_others_add_no_transposition(name, free, tmp_path):
    shape, make = LINEAR[name]
    shape = (None, None, shape[-1]) if free else shape
    counts, normed = (
        exported(tmp_path / "x.onnx", shape, before, layer, layers.ReLU(), layers.Conv2D(2, 1))[0]
        for before, layer in (
            (layers.Conv2D(shape[-1], 1), make()),
            (layers.Conv2D(shape[-1], 1), CosineNorm(make(), rescale=True, damping=0.5)),
        )
    )
    if not name.startswith("transposed"):
        assert normed["Transpose"] == counts["Transpose"]
