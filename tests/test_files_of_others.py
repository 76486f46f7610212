"""Pairs of files by their usual names, and files of other programs by what is in them."""

from __future__ import annotations

import pickle
import zipfile

import keras
import numpy as np
import onnx
import pytest
import tiny_models
from helpers import assert_close
from keras import layers

import kerasnorm
from kerasnorm.cli.main import main

CONFIGS = ["{}.json", "model_{}.json", "{}_architecture.json", "{}-arch.json", "{}.config.json"]
WEIGHTS = [
    "{}.h5",
    "{}_weights.h5",
    "{}.weights.h5",
    "{}_weights.hdf5",
    "{}-weights.h5",
    "weights_{}.h5",
    "{}_model_weights.h5",
]
# Each once at least.
PAIRS = list(zip(CONFIGS * 2, WEIGHTS, strict=False)) + [(CONFIGS[0], w) for w in WEIGHTS[1:4]]


def net(units, name):
    return keras.Sequential([keras.Input((3,)), layers.Dense(units, name="dense")], name=name)


def write_pair(folder, config, weights, model):
    (folder / config).write_text(model.to_json())
    model.save_weights(folder / "written.weights.h5")
    (folder / "written.weights.h5").rename(folder / weights)


@pytest.mark.parametrize(("config", "weights"), PAIRS)
def test_two_pairs_in_a_folder(config, weights, tmp_path):
    x = np.ones((2, 3), "float32")
    models = {"net_a": net(2, "a"), "net_b": net(2, "b")}
    for name, model in models.items():
        write_pair(tmp_path, config.format(name), weights.format(name), model)
    for name, model in models.items():
        for file in (config, weights):
            assert_close(kerasnorm.load_model(tmp_path / file.format(name))(x), model(x))


def test_model_json_and_weights_h5_beside_another_pair(tmp_path):
    first, second = net(2, "a"), net(2, "b")
    write_pair(tmp_path, "model.json", "weights.h5", first)
    write_pair(tmp_path, "other_model.json", "other_weights.h5", second)
    x = np.ones((2, 3), "float32")
    assert_close(kerasnorm.load_model(tmp_path / "model.json")(x), first(x))
    assert_close(kerasnorm.load_model(tmp_path / "other_weights.h5")(x), second(x))


def test_what_may_be_either_is_named(tmp_path):
    write_pair(tmp_path, "net.json", "net_weights.h5", net(2, "a"))
    write_pair(tmp_path, "net.json", "weights_net.h5", net(2, "a"))
    with pytest.raises(kerasnorm.LoadError) as caught:
        kerasnorm.load_model(tmp_path / "net.json")
    assert "there are 2 beside it: 'net_weights.h5', 'weights_net.h5'" in str(caught.value)


def _zip(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


def _onnx(path):
    graph = onnx.helper.make_graph([], "g", [], [])
    onnx.save(onnx.helper.make_model(graph, producer_name="pytorch"), path)


def _saved_model(path):
    net(2, "a").export(path.parent / "exported", verbose=False)
    (path.parent / "exported" / "saved_model.pb").rename(path)


def _lite(path):
    path.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(100))


def _safetensors(path):
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


# name: (writes it, words of the error)
FILES = {
    "SavedModel": (_saved_model, ["a TensorFlow SavedModel", "TensorFlow 2.15"]),
    "ONNX": (_onnx, ["an ONNX file", "the Keras file that it was made from"]),
    "TensorFlow Lite": (_lite, ["a TensorFlow Lite file", "the Keras file"]),
    "PyTorch": (
        lambda path: _zip(path, "net/data.pkl", "net/version", "net/data/0"),
        ["a file of PyTorch", "Build the model in Keras"],
    ),
    "old PyTorch": (
        lambda path: path.write_bytes(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + bytes(9)),
        ["a file of PyTorch"],
    ),
    "pickle": (lambda path: path.write_bytes(pickle.dumps([1])), ["a Python pickle"]),
    "safetensors": (_safetensors, ["a safetensors file"]),
    "zipped model": (lambda path: _zip(path, "net/model.h5"), ["an archive", "Unpack it first"]),
    "zipped SavedModel": (
        lambda path: _zip(path, "net/saved_model.pb", "net/variables/variables.index"),
        ["an archive with a TensorFlow SavedModel"],
    ),
    "npz": (lambda path: _zip(path, "x.npy"), ["arrays of NumPy", "`--data`"]),
}


@pytest.mark.parametrize("suffix", ["", ".keras", ".pb", ".h5"])
@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_another_program_is_named(kind, suffix, tmp_path, capsys):
    write, words = FILES[kind]
    path = tmp_path / f"file{suffix}"
    write(path)
    assert main(["inspect", str(path)]) == 2
    said = capsys.readouterr().err
    for word in words:
        assert word in said
    assert said.count("\n") == 1


def test_the_folder_of_a_saved_model_and_the_file_in_it(tmp_path):
    net(2, "a").export(tmp_path / "exported", verbose=False)
    for path in (tmp_path / "exported", tmp_path / "exported" / "saved_model.pb"):
        with pytest.raises(kerasnorm.LoadError, match="TensorFlow SavedModel"):
            kerasnorm.load_model(path)


def test_a_frozen_graph_is_named_by_its_suffix(tmp_path):
    (tmp_path / "frozen.pb").write_bytes(b"\n\x10\n\x01x\x12\x0bPlaceholder")
    with pytest.raises(kerasnorm.LoadError, match="a TensorFlow graph, without the Keras layers"):
        kerasnorm.load_model(tmp_path / "frozen.pb")


def test_a_keras_file_is_none_of_them(tmp_path):
    model = tiny_models.conv_bn_relu()
    model.save(tmp_path / "model.keras")
    assert kerasnorm.load_model(tmp_path / "model.keras").count_params() == model.count_params()
