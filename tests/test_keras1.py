"""Files of Keras 1, of the Theano backend and with cuDNN's layers, written by hand.

No Keras that wrote them runs here any more. The expected weights are what Keras 2 makes of them
when it loads such a file, by its own `preprocess_weights_for_loading`.
"""

from __future__ import annotations

import json

import h5py
import numpy as np
import old_models
import pytest
from helpers import assert_close

import kerasnorm

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

tk = old_models.tk
L = tk.layers
DRAW = np.random.default_rng(0)


def write(path, layers, *, version="1.2.2", backend="tensorflow", model="Sequential"):
    """A file as Keras 1 wrote it: (class, arguments, arrays) for each layer."""
    config = [
        {"class_name": kind, "config": {"name": f"layer_{number}", **arguments}}
        for number, (kind, arguments, _) in enumerate(layers)
    ]
    names = [item["config"]["name"] for item in config]
    with h5py.File(path, "w") as file:
        if version is not None:
            file.attrs["keras_version"] = version
        file.attrs["model_config"] = json.dumps({"class_name": model, "config": config})
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = [name.encode() for name in names]
        if version is not None:
            weights.attrs["keras_version"] = version
        if backend is not None:
            weights.attrs["backend"] = backend.encode()
        for name, (_, _, arrays) in zip(names, layers, strict=True):
            group = weights.create_group(name)
            group.attrs["weight_names"] = [f"{name}_{role}".encode() for role, _ in arrays]
            for role, value in arrays:
                group[f"{name}_{role}"] = value
    return path


def normal(*shape):
    return DRAW.normal(size=shape).astype("float32")


def keras2(layer, shape, arrays):
    """A layer of Keras 2 with the weights that it makes of arrays of Keras 1."""
    from tf_keras.src.saving.legacy.hdf5_format import preprocess_weights_for_loading

    model = tk.Sequential([tk.Input(shape), layer])
    values = [value.copy() for _, value in arrays]
    layer.set_weights(preprocess_weights_for_loading(layer, values, "1", "tensorflow"))
    return model


def conv(**more):
    return {"border_mode": "same", "bias": True, "activation": "relu", "init": "uniform", **more}


CONV2D = conv(nb_filter=5, nb_row=3, nb_col=2, subsample=[1, 2], W_regularizer=None)
SHAPES = {"W": (4, 3), "U": (3, 3), "b": (3,)}
GATED = {"inner_init": "orthogonal", "consume_less": "cpu", "return_sequences": True}
GATED |= {"output_dim": 3, "inner_activation": "hard_sigmoid", "activation": "tanh"}

# name: class and arguments in Keras 1, its arrays, the layer in Keras 2, the input's shape
CASES = {
    "Dense": (
        "Dense",
        {"output_dim": 3, "activation": "sigmoid", "bias": True, "W_constraint": None},
        [("W", normal(4, 3)), ("b", normal(3))],
        L.Dense(3, activation="sigmoid"),
        (4,),
    ),
    "Convolution2D": (
        "Convolution2D",
        {**CONV2D, "dim_ordering": "tf"},
        [("W", normal(3, 2, 4, 5)), ("b", normal(5))],
        L.Conv2D(5, (3, 2), strides=(1, 2), padding="same", activation="relu"),
        (7, 8, 4),
    ),
    "Convolution1D": (
        "Convolution1D",
        conv(nb_filter=5, filter_length=3, subsample_length=2),
        [("W", normal(3, 1, 4, 5)), ("b", normal(5))],
        L.Conv1D(5, 3, strides=2, padding="same", activation="relu"),
        (9, 4),
    ),
    "Convolution1D, older": (
        "Convolution1D",
        conv(nb_filter=5, filter_length=3, subsample_length=2),
        [("W", normal(5, 4, 3, 1)), ("b", normal(5))],
        L.Conv1D(5, 3, strides=2, padding="same", activation="relu"),
        (9, 4),
    ),
    "Convolution1D, older, of one channel": (
        "Convolution1D",
        conv(nb_filter=5, filter_length=3, subsample_length=2),
        [("W", normal(5, 1, 3, 1)), ("b", normal(5))],
        L.Conv1D(5, 3, strides=2, padding="same", activation="relu"),
        (9, 1),
    ),
    "Convolution3D": (
        "Convolution3D",
        conv(nb_filter=3, kernel_dim1=2, kernel_dim2=3, kernel_dim3=2, dim_ordering="tf"),
        [("W", normal(2, 3, 2, 4, 3)), ("b", normal(3))],
        L.Conv3D(3, (2, 3, 2), padding="same", activation="relu"),
        (4, 5, 4, 4),
    ),
    "Deconvolution2D": (
        "Deconvolution2D",
        {**CONV2D, "dim_ordering": "tf", "output_shape": [None, 7, 16, 5]},
        [("W", normal(3, 2, 4, 5)), ("b", normal(5))],
        L.Conv2DTranspose(5, (3, 2), strides=(1, 2), padding="same", activation="relu"),
        (7, 8, 4),
    ),
    "BatchNormalization": (
        "BatchNormalization",
        {"epsilon": 1e-3, "mode": 0, "axis": -1, "momentum": 0.99, "gamma_regularizer": None},
        [
            ("gamma", normal(4)),
            ("beta", normal(4)),
            ("running_mean", normal(4)),
            ("running_std", normal(4) ** 2),
        ],
        L.BatchNormalization(),
        (5, 4),
    ),
    "LSTM": (
        "LSTM",
        {**GATED, "forget_bias_init": "one", "dropout_W": 0.1, "dropout_U": 0.1},
        [(f"{kind}_{gate}", normal(*SHAPES[kind])) for gate in "icfo" for kind in "WUb"],
        L.LSTM(3, recurrent_activation="hard_sigmoid", return_sequences=True),
        (6, 4),
    ),
    "GRU": (
        "GRU",
        {**GATED},
        [(f"{kind}_{gate}", normal(*SHAPES[kind])) for gate in "zrh" for kind in "WUb"],
        L.GRU(3, recurrent_activation="hard_sigmoid", return_sequences=True, reset_after=False),
        (6, 4),
    ),
    "Embedding": (
        "Embedding",
        {"input_dim": 9, "output_dim": 4, "init": "uniform", "mask_zero": False, "dropout": 0.0},
        [("W", normal(9, 4))],
        L.Embedding(9, 4),
        (5,),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_layer_of_keras_1(name, tmp_path):
    kind, arguments, arrays, layer, shape = CASES[name]
    model = keras2(layer, shape, arrays)
    first = {"batch_input_shape": [None, *shape], "input_dtype": "float32"}
    dropout = ("Dropout", {"p": 0.5}, [])
    path = write(tmp_path / "model.h5", [(kind, {**arguments, **first}, arrays), dropout])
    x = np.abs(normal(3, *shape)) if name == "Embedding" else normal(3, *shape)
    assert_close(kerasnorm.load_model(path)(x), model(x))


@pytest.mark.parametrize("name", ["Dense", "LSTM", "GRU", "Convolution1D"])
def test_the_size_of_the_input_alone(name, tmp_path):
    kind, arguments, arrays, layer, shape = CASES[name]
    size = {"input_dim": shape[-1], "input_length": None if len(shape) > 1 else 0}
    if len(shape) == 1:
        del size["input_length"]
    model = keras2(layer, shape, arrays)
    for more in (size, {**size, "batch_input_shape": [None, *shape]}):
        path = write(tmp_path / "model.h5", [(kind, {**arguments, **more}, arrays)])
        x = normal(3, *shape)
        assert_close(kerasnorm.load_model(path)(x), model(x))


def test_an_output_shape_that_was_chosen_and_is_another_here(tmp_path):
    kind, arguments, arrays, _, shape = CASES["Deconvolution2D"]
    more = {"output_shape": [None, 7, 15, 5], "batch_input_shape": [None, *shape]}
    path = write(tmp_path / "model.h5", [(kind, {**arguments, **more}, arrays)])
    with pytest.raises(
        kerasnorm.LoadError, match=r"gave \(None, 7, 15, 5\) .* gives \(None, 7, 16"
    ):
        kerasnorm.load_model(path)


def test_both_kernels_of_a_recurrent_convolution_of_theano(tmp_path):
    arrays = [normal(3, 3, 2, 12), normal(3, 3, 3, 12), normal(12)]
    names = ["kernel:0", "recurrent_kernel:0", "bias:0"]
    arguments = {"filters": 3, "kernel_size": [3, 3], "batch_input_shape": [None, 4, 6, 6, 2]}
    arguments |= {"padding": "same", "recurrent_activation": "sigmoid"}
    layers = [("ConvLSTM2D", arguments, list(zip(names, arrays, strict=True)))]
    path = write(tmp_path / "model.h5", layers, version="2.1.6", backend="theano")
    layer = L.ConvLSTM2D(3, 3, padding="same", recurrent_activation="sigmoid")
    model = tk.Sequential([tk.Input((4, 6, 6, 2)), layer])
    kernel, recurrent, bias = arrays
    layer.set_weights([kernel[::-1, ::-1], recurrent[::-1, ::-1], bias])
    x = normal(2, 4, 6, 6, 2)
    assert_close(kerasnorm.load_model(path)(x), model(x))


def test_theano_ordering_and_channels_first(tmp_path):
    kernel, bias = normal(5, 4, 3, 2), normal(5)  # filters and channels before space
    arguments = {**CONV2D, "dim_ordering": "th", "batch_input_shape": [None, 4, 7, 8]}
    layers = [("Convolution2D", arguments, [("W", kernel), ("b", bias)])]
    x = normal(3, 4, 7, 8)
    model = tk.Sequential([L.Conv2D(5, (3, 2), strides=(1, 2), padding="same", activation="relu")])
    last = model(np.moveaxis(x, 1, -1))  # TensorFlow has no other on a CPU
    assert last.shape == (3, 7, 4, 5)
    for backend, flipped in (("tensorflow", kernel), ("theano", kernel[:, :, ::-1, ::-1])):
        # Theano convolves: it turns the kernel round
        model.set_weights([np.transpose(flipped, (2, 3, 1, 0)), bias])
        path = write(tmp_path / f"{backend}.h5", layers, backend=backend)
        loaded = kerasnorm.load_model(path)
        assert_close(np.moveaxis(np.asarray(loaded(x)), 1, -1), model(np.moveaxis(x, 1, -1)))


def test_a_backend_that_is_not_stored_is_said(tmp_path):
    kernel, bias = normal(5, 4, 3, 2), normal(5)
    arguments = {**CONV2D, "dim_ordering": "th", "batch_input_shape": [None, 4, 7, 8]}
    layers = [("Convolution2D", arguments, [("W", kernel), ("b", bias)])]
    path = write(tmp_path / "model.h5", layers, backend=None)
    assert any("if it was Theano" in line for line in kerasnorm.load_report(path).warnings)


def test_a_file_of_theano_and_keras_2(tmp_path):
    kernel, bias = normal(3, 2, 4, 5), normal(5)
    arguments = {"filters": 5, "kernel_size": [3, 2], "batch_input_shape": [None, 7, 8, 4]}
    layers = [("Conv2D", arguments, [("kernel:0", kernel), ("bias:0", bias)])]
    path = write(tmp_path / "model.h5", layers, version="2.1.6", backend="theano")
    model = tk.Sequential([L.Conv2D(5, (3, 2), input_shape=(7, 8, 4))])
    model.set_weights([kernel[::-1, ::-1], bias])
    x = normal(3, 7, 8, 4)
    assert_close(kerasnorm.load_model(path)(x), model(x))
    assert kerasnorm.load_report(path) == [
        "the Sequential model's configuration was a list of layers",
        "an input was put before the first layer ('layer_0')",
    ]


def test_a_file_that_does_not_say_its_version(tmp_path):
    kind, arguments, arrays, layer, shape = CASES["Convolution2D"]
    model = keras2(layer, shape, arrays)
    arguments = {**arguments, "batch_input_shape": [None, *shape]}
    path = write(tmp_path / "model.h5", [(kind, arguments, arrays)], version=None)
    x = normal(3, *shape)
    assert_close(kerasnorm.load_model(path)(x), model(x))


def test_the_modes_of_batch_normalization_without_statistics_are_refused(tmp_path):
    kind, arguments, arrays, _, shape = CASES["BatchNormalization"]
    arguments = {**arguments, "mode": 2, "batch_input_shape": [None, *shape]}
    path = write(tmp_path / "model.h5", [(kind, arguments, arrays)])
    with pytest.raises(kerasnorm.LoadError, match="mode=2"):
        kerasnorm.load_model(path)


def functional(merge):
    """Two inputs and a merge layer, as a functional model of Keras 1."""
    layers = [
        ("InputLayer", {"batch_input_shape": [None, 4], "input_dtype": "float32"}, []),
        ("InputLayer", {"batch_input_shape": [None, 4], "input_dtype": "float32"}, []),
        ("Merge", merge, [["layer_0", 0, 0], ["layer_1", 0, 0]]),
    ]
    return {
        "name": "model_1",
        "layers": [
            {
                "class_name": kind,
                "name": f"layer_{number}",
                "config": {**config, "name": f"layer_{number}"},
                "inbound_nodes": [inbound] if inbound else [],
            }
            for number, (kind, config, inbound) in enumerate(layers)
        ],
        "input_layers": [["layer_0", 0, 0], ["layer_1", 0, 0]],
        "output_layers": [["layer_2", 0, 0]],
    }


@pytest.mark.parametrize(
    ("merge", "expected"),
    [
        ({"mode": "sum"}, lambda a, b: a + b),
        ({"mode": "mul"}, lambda a, b: a * b),
        ({"mode": "ave"}, lambda a, b: (a + b) / 2),
        ({"mode": "max"}, np.maximum),
        ({"mode": "concat", "concat_axis": 1}, lambda a, b: np.concatenate([a, b], 1)),
        ({"mode": "dot", "dot_axes": [1, 1]}, lambda a, b: np.sum(a * b, 1, keepdims=True)),
    ],
    ids=lambda value: value.get("mode") if isinstance(value, dict) else "",
)
def test_merge_of_keras_1(merge, expected, tmp_path):
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        stored = {"class_name": "Model", "config": functional(merge)}
        file.attrs["keras_version"] = "1.2.2"
        file.attrs["model_config"] = json.dumps(stored)
        file.create_group("model_weights").attrs["layer_names"] = [b"layer_2"]
        file["model_weights"].create_group("layer_2").attrs["weight_names"] = np.zeros(0)
    a, b = normal(3, 4), normal(3, 4)
    assert_close(kerasnorm.load_model(path)([a, b]), expected(a, b))


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_the_layers_of_cudnn(kind, gates, tmp_path):
    from tf_keras.src.saving.legacy.hdf5_format import preprocess_weights_for_loading

    arrays = [normal(4, 3 * gates), normal(3, 3 * gates), normal(6 * gates)]
    arguments = {"units": 3, "return_sequences": True, "batch_input_shape": [None, 6, 4]}
    names = ["kernel:0", "recurrent_kernel:0", "bias:0"]
    layers = [(f"CuDNN{kind}", arguments, list(zip(names, arrays, strict=True)))]
    path = write(tmp_path / "model.h5", layers, version="2.2.4")
    more = {"reset_after": True} if kind == "GRU" else {}
    layer = getattr(L, kind)(3, return_sequences=True, **more)
    model = tk.Sequential([tk.Input((6, 4)), layer])
    layer.set_weights(preprocess_weights_for_loading(layer, arrays, "2", "tensorflow"))
    x = normal(3, 6, 4)
    assert_close(kerasnorm.load_model(path)(x), model(x))
    assert f"CuDNN{kind} became {kind} ('layer_0')" in kerasnorm.load_report(path)


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_the_layers_of_cudnn_in_both_directions(kind, gates, tmp_path):
    from tf_keras.src.saving.legacy.hdf5_format import preprocess_weights_for_loading

    arrays = [normal(4, 3 * gates), normal(3, 3 * gates), normal(6 * gates)]
    arrays += [normal(4, 3 * gates), normal(3, 3 * gates), normal(6 * gates)]
    inner = {"class_name": f"CuDNN{kind}", "config": {"units": 3, "name": "inner"}}
    arguments = {"layer": inner, "merge_mode": "concat", "batch_input_shape": [None, 6, 4]}
    names = [f"{way}/{n}:0" for way in "ab" for n in ("kernel", "recurrent_kernel", "bias")]
    layers = [("Bidirectional", arguments, list(zip(names, arrays, strict=True)))]
    path = write(tmp_path / "model.h5", layers, version="2.2.4")
    more = {"reset_after": True} if kind == "GRU" else {}
    layer = L.Bidirectional(getattr(L, kind)(3, **more))
    model = tk.Sequential([tk.Input((6, 4)), layer])
    layer.set_weights(preprocess_weights_for_loading(layer, arrays, "2", "tensorflow"))
    x = normal(3, 6, 4)
    assert_close(kerasnorm.load_model(path)(x), model(x))
