"""Every layer keeps the same promises: right values and gradients, in every mode and precision.

The everyday run takes every layer eagerly in float32, and every few layers compiled, traced,
trained, saved and in other precisions; the slow run takes all of them.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import zlib

import keras
import numpy as np
import pytest
from gradients import BACKEND, output_and_gradients
from helpers import assert_close, gradient, has_channels_first, has_einsum_with_dots
from layer_cases import CASES

_BY_NAME = {case.name: case for case in CASES}
names = pytest.mark.parametrize("name", _BY_NAME)


def every(step):
    """The names of the layers; all but one of so many are for the slow run."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] * (number % step > 0))
        for number, name in enumerate(_BY_NAME)
    ]


def inputs_of(case):
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    if case.integers:
        return rng.integers(case.integers, size=case.shape)
    # entries that float16 and bfloat16 hold exactly, so that every precision sees the same input
    return np.round(rng.normal(size=case.shape) * 32 + 16) / 32


def random_weights(layer, name):
    """Values that exercise the formula: signed gains, positive variances."""
    rng = np.random.default_rng(zlib.crc32(name.encode()) + 1)
    values = []
    for weight in layer.weights:
        value = rng.normal(size=weight.shape)
        if "variance" in weight.path or "stddev" in weight.path:
            value = np.abs(value) + 0.5
        values.append(value.astype("float32").astype("float64"))
    return values


def build(case, dtype="float32"):
    policy = {"float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}.get(dtype, dtype)
    keras.config.set_dtype_policy(policy)
    try:
        layer = case.make()
        layer(keras.ops.convert_to_tensor(cast(inputs_of(case), dtype)))
    finally:
        keras.config.set_dtype_policy("float32")
    layer.set_weights(random_weights(layer, case.name))
    return layer


def cast(x, dtype):
    if np.issubdtype(x.dtype, np.integer):
        return x.astype("int32")
    return x.astype("float64" if dtype == "float64" else "float32")


@functools.cache
def reference(name):
    """(output, cotangent, gradients in x and in all weights), in NumPy float64."""
    case = _BY_NAME[name]
    x, weights = inputs_of(case), random_weights(build(case), name)
    y = case.oracle(x, *weights)
    cotangent = np.random.default_rng(2).normal(size=y.shape)

    def loss(*tensors):
        tensors = (x, *tensors) if case.integers else tensors
        return np.sum(case.oracle(*tensors) * cotangent)

    tensors = weights if case.integers else [x, *weights]
    gradients = gradient(loss, tensors)
    return y, cotangent, [None, *gradients] if case.integers else gradients


def check(name, dtype, mode):
    case = _BY_NAME[name]
    if "channels_first" in name and not has_channels_first(dtype):
        pytest.skip("TensorFlow has no channels-first convolution of this dtype on this CPU")
    if "EinsumDense-dots" in name and not has_einsum_with_dots(dtype):
        pytest.skip("TensorFlow's einsum with dots is wrong in this dtype on this CPU")
    layer = build(case, dtype)
    expected, cotangent, gradients = reference(name)
    x = cast(inputs_of(case), dtype)
    cotangent = cotangent.astype("float64" if dtype == "float64" else "float32")
    y, dx, dw = output_and_gradients(layer, x, cotangent, mode, **case.call)
    # the rounding of a 16-bit state is carried from step to step, and enlarged by layer norms
    # over three units whose deviation is small
    enlarged = 4.0 if "LayerNorm" in name else 2.0
    factor = enlarged if case.recurrent and dtype in ("float16", "bfloat16") else 1.0
    assert_close(y, expected, dtype, factor=factor, what="output")
    if dx is not None:
        assert_close(dx, gradients[0], dtype, factor=factor, what="gradient in the input")
    ours = dict(zip((id(w) for w in layer.trainable_weights), dw, strict=True))
    for weight, theirs in zip(layer.weights, gradients[1:], strict=True):
        if id(weight) in ours:
            what = f"gradient in {weight.path}"
            assert_close(ours[id(weight)], theirs, dtype, factor=factor, what=what)


@names
def test_float32(name):
    check(name, "float32", "eager")


@pytest.mark.parametrize("name", every(3))
@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", pytest.param("float64", marks=pytest.mark.slow)]
)
def test_other_precisions(name, dtype):
    if dtype == "float64" and BACKEND == "jax":
        pytest.skip("JAX computes in float32 unless its float64 mode is on")
    check(name, dtype, "eager")


@pytest.mark.parametrize("name", every(8))
def test_compiled(name):
    check(name, "float32", "jit")


@names
@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "dtype"),
    [("graph", "float32"), *((m, d) for m in ("graph", "jit") for d in ("float16", "bfloat16"))],
)
def test_every_mode_and_precision(name, mode, dtype):
    check(name, dtype, mode)


def two_call_model(case):
    """A model of two inputs that go through one and the same layer."""
    options = {"dtype": "int32"} if case.integers else {}
    inputs = [keras.Input(case.shape[1:], **options) for _ in range(2)]
    layer = case.make()
    call = {key: value for key, value in case.call.items() if key == "training"}
    model = keras.Model(inputs, [layer(x, **call) for x in inputs])
    layer.set_weights(random_weights(layer, case.name))
    return model, layer


@names
def test_called_twice_in_one_model(name):
    case = _BY_NAME[name]
    if "mask" in case.call:
        pytest.skip("its oracle is for one mask")
    if "renorm" in name:
        pytest.skip("the first call moves statistics that the second one uses")
    model, layer = two_call_model(case)
    x = inputs_of(case)
    weights = random_weights(layer, name)
    inputs = [x, x[::-1].copy()]
    outputs = model([cast(one, "float32") for one in inputs])
    for one, y in zip(inputs, outputs, strict=True):
        assert_close(keras.ops.convert_to_numpy(y), case.oracle(one, *weights))


@names
def test_config_round_trip(name):
    case = _BY_NAME[name]
    layer = build(case)
    again = type(layer).from_config(layer.get_config())
    x = keras.ops.convert_to_tensor(cast(inputs_of(case), "float32"))
    again(x)
    again.set_weights(layer.get_weights())
    assert again.get_config() == layer.get_config()
    expected, actual = (keras.ops.convert_to_numpy(one(x)) for one in (layer, again))
    np.testing.assert_array_equal(actual, expected)


def fit_one_step(case):
    model, _ = two_call_model(case)
    before = [w.copy() for w in model.get_weights()]
    x = cast(inputs_of(case), "float32")
    targets = [np.ones(y.shape, "float32") for y in model([x, x])]
    # how XLA compiles the layers is the subject of test_compiled, and takes longer
    model.compile(keras.optimizers.SGD(0.1), ["mse", "mse"], jit_compile=False)
    model.fit([x, x], targets, batch_size=len(x), epochs=1, verbose=0)
    for weight, old in zip(model.weights, before, strict=True):
        new = keras.ops.convert_to_numpy(weight)
        assert np.isfinite(new).all(), weight.path
        if weight.trainable:
            assert not np.array_equal(new, old), f"{weight.path} did not learn"


@pytest.mark.parametrize("name", every(4))
def test_fit(name):
    fit_one_step(_BY_NAME[name])


_LOAD_AND_PREDICT = """
import sys, pathlib, numpy as np, keras, kerasnorm
folder = pathlib.Path(sys.argv[1])
for path in sorted(folder.glob("*.keras")):
    try:
        model = keras.saving.load_model(path)
        x = np.load(folder / f"{path.stem}.npy")
        outputs = [keras.ops.convert_to_numpy(y) for y in model([x, x])]
        np.save(folder / f"{path.stem}.out.npy", np.stack(outputs))
        trained = " ".join(v.name for v in model.trainable_variables)
        (folder / f"{path.stem}.trained").write_text(trained)
    except Exception as error:
        (folder / f"{path.stem}.error").write_text(repr(error))
"""


@pytest.mark.parametrize("part", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
def test_keras_files_in_a_new_process(part, tmp_path):
    cases = CASES[part::4]
    expected = {}
    for case in cases:
        model, _ = two_call_model(case)
        x = cast(inputs_of(case), "float32")
        np.save(tmp_path / f"{case.name}.npy", x)
        model.save(tmp_path / f"{case.name}.keras")
        outputs = [keras.ops.convert_to_numpy(y) for y in model([x, x])]
        expected[case.name] = outputs, " ".join(v.name for v in model.trainable_variables)
    subprocess.run([sys.executable, "-c", _LOAD_AND_PREDICT, str(tmp_path)], check=True)
    for name, (outputs, trained) in expected.items():
        error = tmp_path / f"{name}.error"
        assert not error.exists(), f"{name}: {error.read_text()}"
        assert_close(np.load(tmp_path / f"{name}.out.npy"), np.stack(outputs), what=name)
        assert (tmp_path / f"{name}.trained").read_text() == trained, name


@pytest.mark.skipif(BACKEND != "tensorflow", reason="how Keras trains on TensorFlow")
@pytest.mark.parametrize("name", every(16))
def test_fit_is_traced_at_most_once_for_each_shape(name):
    case = _BY_NAME[name]
    keras.utils.set_random_seed(0)
    inputs = keras.Input(case.shape[1:], dtype="int32" if case.integers else None)
    layer = case.make()
    model = keras.Model(inputs, layer(inputs))
    traced = []
    call = layer.call
    layer.call = functools.wraps(call)(lambda *a, **k: traced.append(a[0].shape) or call(*a, **k))
    model.compile("sgd", "mse", jit_compile=False)
    # Two whole batches of four, and one of three.
    x = np.resize(cast(inputs_of(case), "float32"), (11, *case.shape[1:]))
    y = np.zeros((11, *model.output_shape[1:]), "float32")
    model.fit(x, y, batch_size=4, verbose=0)
    assert 1 <= len(traced) <= 2
    model.fit(x, y, batch_size=4, epochs=3, verbose=0)
    assert len(traced) <= 2
