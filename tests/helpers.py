"""The tolerance policy, and NumPy float64 oracles for every formula of the package."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

import kerasnorm

# max|Δ| / max|reference| per tensor, by the dtype that the layer computes in. 16-bit formats keep
# 11 and 8 bits; a sum of a few dozen products loses a few units in the last place.
TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "float16": 6e-3, "bfloat16": 5e-2}


# The trained models of the test material, and how many BatchNorm calls each has.
TRAINED = {
    "connect4": 7,
    "fashion_dense.keras": 21,
    "fashion_mobile.keras": 17,
    "fashion_preact.keras": 11,
    "fashion_resnet.keras": 13,
    "mini_xception_fer2013.hdf5": 14,
    "miniresnet.h5": 6,
    "miniresnetv2.h5": 5,
    "mnist_cnn.keras": 5,
    "resnet8_cifar10.h5": 7,
    "speech_music_noise.hdf5": 8,
    "streaming_wakeword.h5": 4,
    "toycar_autoencoder.h5": 9,
    "vww_mobilenet_v1.h5": 27,
    "yamnet_256.h5": 11,
}
# Behind each stands a smaller one with the same kinds of layers.
_LARGE = (
    "fashion_dense.keras",
    "fashion_mobile.keras",
    "fashion_preact.keras",
    "fashion_resnet.keras",
    "vww_mobilenet_v1.h5",
)


def large_ones_slow(names):
    """The trained models to run a test on: every day those that are small."""
    return [pytest.param(n, marks=[pytest.mark.slow] if n in _LARGE else []) for n in names]


def assert_close(actual, expected, dtype="float32", *, factor=1.0, what=""):
    """Compare a tensor with its float64 reference by the policy above.

    Args:
        dtype: The dtype that the result was computed in.
        factor: Loosens the tolerance; whoever passes one says why on the line above.
        what: Name of the tensor, for the message.
    """
    actual = np.asarray(actual, "float64")
    expected = np.asarray(expected, "float64")
    assert actual.shape == expected.shape, (what, actual.shape, expected.shape)
    scale = np.abs(expected).max(initial=0) or 1.0
    error = np.abs(actual - expected).max(initial=0) / scale
    limit = TOLERANCE[dtype] * factor
    assert error <= limit, f"{what}: relative error {error:.2e} > {limit:.0e}"


def material(*parts: str) -> Path:
    """A file of the trained models and data, or skip the test."""
    root = os.environ.get("KERASNORM_MATERIAL")
    folder = Path(root) if root else Path(__file__).parents[2] / "shared" / "material"
    path = folder.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} of the test material (KERASNORM_MATERIAL)")
    return path


@functools.cache
def has_channels_first(dtype: str) -> bool:
    """Whether the backend has convolutions with channels first of a dtype on this CPU.

    In TensorFlow that depends on the dtype and on the CPU's instructions.
    """
    layer = keras.layers.Conv2D(1, 1, data_format="channels_first", dtype=dtype)
    try:
        layer(np.zeros((1, 1, 2, 2)))
    except Exception as error:
        if "NHWC" not in str(error):
            raise
        return False
    return True


@functools.cache
def has_einsum_with_dots(dtype: str) -> bool:
    """Whether the backend's einsum is right, gradients included, where the equation has dots.

    In TensorFlow that depends on the dtype and on the CPU's instructions; see
    findings/tensorflow_einsum_with_dots_wrong_in_16_bits.sh.
    """
    if keras.backend.backend() != "tensorflow":
        return True
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x, k, w = (tf.cast(rng.normal(size=s), dtype) for s in ((2, 3, 4), (4, 3), (2, 3, 3)))

    def computed(equation):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.einsum(equation, x, k)
            total = tf.reduce_sum(y * w)
        return [tf.cast(value, "float32").numpy() for value in (y, tape.gradient(total, x))]

    pairs = zip(computed("...x,xy->...y"), computed("abx,xy->aby"), strict=True)
    return all(np.allclose(a, b, atol=0.1) for a, b in pairs)


def loaded(name: str):
    """A trained model of the test material."""
    path = material("models", name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old optimizer configurations; nothing is trained here
        return kerasnorm.load_model(path)


def gradient(function, tensors: list[np.ndarray]) -> list[np.ndarray]:
    """Gradients of a real function of float64 arrays, exact to rounding, by complex steps.

    With f analytic, Im f(x + ih) / h = f'(x) up to h²: no difference is taken, nothing cancels.
    """
    step = 1e-30
    gradients = []
    for k, tensor in enumerate(tensors):
        result = np.zeros(tensor.size)
        for i in range(tensor.size):
            moved = tensor.astype("complex128")
            moved.reshape(-1)[i] += 1j * step
            result[i] = function(*tensors[:k], moved, *tensors[k + 1 :]).imag / step
        gradients.append(result.reshape(tensor.shape))
    return gradients


def standardize(x, axes, epsilon, weights=None):
    """(x − μ) / sqrt(var + ε)."""
    if weights is None:
        mean = x.mean(axes, keepdims=True)
        variance = ((x - mean) ** 2).mean(axes, keepdims=True)
    else:
        weights = np.broadcast_to(weights, x.shape)
        count = weights.sum(axes, keepdims=True)
        mean = (weights * x).sum(axes, keepdims=True) / count
        variance = (weights * (x - mean) ** 2).sum(axes, keepdims=True) / count
    return (x - mean) / np.sqrt(variance + epsilon)


def direction(v, axes):
    """v / ‖v‖."""
    return v / np.sqrt((v * v).sum(axes, keepdims=True))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def simple_rnn(x, kernel, recurrent, bias):
    """The last state of an Elman network."""
    h = np.zeros((x.shape[0], recurrent.shape[0]))
    for t in range(x.shape[1]):
        h = np.tanh(x[:, t] @ kernel + h @ recurrent + bias)
    return h


def lstm(x, kernel, recurrent, bias):
    """The last state of an LSTM, gates in the order input, forget, cell, output."""
    h = c = np.zeros((x.shape[0], recurrent.shape[0]))
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ recurrent + bias, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return h


def gru(x, kernel, recurrent, bias):
    """The last state of a GRU with two biases, gates in the order update, reset, candidate."""
    h = np.zeros((x.shape[0], recurrent.shape[0]))
    for t in range(x.shape[1]):
        xz, xr, xh = np.split(x[:, t] @ kernel + bias[0], 3, axis=-1)
        hz, hr, hh = np.split(h @ recurrent + bias[1], 3, axis=-1)
        z = sigmoid(xz + hz)
        candidate = np.tanh(xh + sigmoid(xr + hr) * hh)
        h = z * h + (1 - z) * candidate
    return h


def _layer_norm(x, gain, epsilon=1e-3):
    return gain * standardize(x, (-1,), epsilon)


def _normalized_state(x, units):
    """Mean 0 and variance 1 over the units."""
    spread = np.arange(units) - (units - 1) / 2
    return np.tile(spread / np.sqrt((spread**2).mean()), (x.shape[0], 1))


def layer_norm_simple_rnn(x, kernel, recurrent, bias, gamma):
    """Ba et al. 2016, equation 4."""
    h = _normalized_state(x, recurrent.shape[0])
    for t in range(x.shape[1]):
        h = np.tanh(_layer_norm(x[:, t] @ kernel + h @ recurrent, gamma) + bias)
    return h


def layer_norm_lstm(x, kernel, recurrent, bias, *gains):
    """Ba et al. 2016, equations 20 to 22, their shifts of the gates summed up in the bias."""
    gamma_input, gamma_recurrent, gamma_cell, beta_cell = gains
    h = c = _normalized_state(x, recurrent.shape[0])
    for t in range(x.shape[1]):
        gates = _layer_norm(h @ recurrent, gamma_recurrent) + bias
        i, f, g, o = np.split(gates + _layer_norm(x[:, t] @ kernel, gamma_input), 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(_layer_norm(c, gamma_cell) + beta_cell)
    return h


def layer_norm_gru(x, kernel, recurrent, bias, gamma_input, gamma_recurrent):
    """Ba et al. 2016, equations 27 to 29, with z the share of the state that stays."""
    units = recurrent.shape[0]
    gates, new = slice(2 * units), slice(2 * units, None)
    h = _normalized_state(x, units)
    for t in range(x.shape[1]):
        a, b = x[:, t] @ kernel, h @ recurrent
        zr = _layer_norm(a[:, gates], gamma_input[gates]) + bias[0][gates] + bias[1][gates]
        zr = sigmoid(zr + _layer_norm(b[:, gates], gamma_recurrent[gates]))
        z, r = zr[:, :units], zr[:, units:]
        reset = r * (_layer_norm(b[:, new], gamma_recurrent[new]) + bias[1][new])
        h = z * h + (1 - z) * np.tanh(
            _layer_norm(a[:, new], gamma_input[new]) + bias[0][new] + reset
        )
    return h


def answer_without_kerasnorm(path, x):
    """What a saved model answers in a process that cannot import kerasnorm."""
    given, answer = path.with_suffix(".x.npy"), path.with_suffix(".y.npy")
    np.save(given, x)
    code = (
        "import sys; sys.modules['kerasnorm'] = None\n"
        "import keras, numpy as np\n"
        f"model = keras.models.load_model(r'{path}')\n"
        f"np.save(r'{answer}', model(np.load(r'{given}')))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return np.load(answer)
