"""Data by name reaches the inputs it is for, and errors say what is there and what is missing."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
import pytest
import tiny_code
from helpers import assert_close
from keras import layers

import kerasnorm
from kerasnorm.cli.main import main
from kerasnorm.errors import DataError, ExportError
from kerasnorm.fit.data import input_batches
from kerasnorm.graph.model_graphs import graphs_of

ROWS = 40


def model(structure=list):
    """Two inputs alike in shape, the last by the alphabet first."""
    inputs = [keras.Input((3,), name=name) for name in ("right", "left")]
    y = layers.Dense(4)(layers.Concatenate()([inputs[0], 10.0 * inputs[1]]))
    y = layers.ReLU()(layers.BatchNormalization(name="bn")(y))
    if structure is dict:
        inputs = {tensor.name: tensor for tensor in inputs}
    return keras.Model(inputs, layers.Dense(2)(y))


def arrays():
    draw = np.random.default_rng(0)
    return {name: draw.normal(size=(ROWS, 3)).astype("float32") for name in ("left", "right")}


def fed(source, data):
    """What reaches the inputs of a model."""
    batches = list(input_batches(graphs_of(source).root, data, 16))
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


@pytest.mark.parametrize("stream", [False, True])
def test_a_dictionary_is_read_by_name(stream):
    x = arrays()
    batches = ({name: a[k : k + 8] for name, a in x.items()} for k in range(0, ROWS, 8))
    right, left = fed(model(), batches if stream else x)
    np.testing.assert_array_equal(right, x["right"])
    np.testing.assert_array_equal(left, x["left"])


def test_what_is_beside_the_inputs_is_left_out():
    x = {"labels": np.zeros(ROWS), **arrays()}
    right, left = fed(model(), x)
    np.testing.assert_array_equal(right, x["right"])
    np.testing.assert_array_equal(left, x["left"])


def test_a_model_of_a_dictionary_takes_its_keys():
    x = {"more": np.zeros(ROWS), **arrays()}
    left, right = fed(model(dict), x)
    np.testing.assert_array_equal(left, x["left"])
    np.testing.assert_array_equal(right, x["right"])


def test_code_of_a_dictionary_takes_its_keys():
    source, x = tiny_code.subclassed("a dict of inputs")
    x = {key: np.tile(value, (3, 1)) for key, value in x.items()}
    received = fed(source, {"z": np.zeros(len(x["a"])), **x})
    for array, value in zip(received, keras.tree.flatten(x), strict=True):
        np.testing.assert_array_equal(array, value)


def test_one_input_takes_the_only_array_whatever_its_name():
    source = keras.Sequential([keras.Input((3,), name="x"), layers.Dense(2)])
    (x,) = fed(source, {"images": arrays()["left"]})
    np.testing.assert_array_equal(x, arrays()["left"])


def test_a_comparison_by_name():
    source, x = model(), arrays()
    swap = kerasnorm.swap_norms(source, "layer", x)
    assert swap.compare(x) == swap.compare([x["right"], x["left"]])
    assert swap.compare(x) != swap.compare([x["left"], x["right"]])


@pytest.mark.parametrize("target", ["swap", "compare"])
def test_what_is_missing_is_named(target):
    x = arrays()
    data = {"left": x["left"], "rihgt": x["right"]}
    source = model()
    swap = kerasnorm.swap_norms(source, "weight")
    ask = swap.compare if target == "compare" else partial(kerasnorm.swap_norms, source, "layer")
    with pytest.raises(DataError) as caught:
        ask(data)
    said = str(caught.value)
    assert "the inputs of the model by name: 'right', 'left'." in said
    assert "Received 'left', 'rihgt'; missing: 'right'." in said
    assert "`numpy.savez(path, right=…, left=…)`" in said


def test_on_the_command_line(tmp_path, capsys):
    source, x = model(), arrays()
    path, data, out = (tmp_path / name for name in ("m.keras", "x.npz", "o.keras"))
    source.save(path)
    command = ["swap", str(path), "--to", "layer", "--output", str(out), "--data"]
    np.savez(data, left=x["left"], labels=np.zeros(ROWS))
    assert main([*command, str(data)]) == 2
    assert "Received 'left', 'labels'; missing: 'right'." in capsys.readouterr().err
    np.savez(data, **x, labels=np.zeros(ROWS))
    onnx = ["--onnx", str(tmp_path / "o.onnx")]
    assert main([*command, str(data), *onnx]) == 0
    expected = kerasnorm.swap_norms(source, "layer", [x["right"], x["left"]]).model
    given = [x["right"], x["left"]]
    assert_close(kerasnorm.load_model(out)(given), expected(given))
    single = keras.Sequential(
        [keras.Input((3,), name="x"), layers.Dense(4), layers.BatchNormalization()]
    )
    single.save(path)
    assert main([*command, str(data), "--force"]) == 2
    said = capsys.readouterr().err
    assert "by name: 'x'. Received 'left', 'right', 'labels'; missing: 'x'." in said
    assert "x.npz:KEY" in said
    assert main([*command, f"{data}:left", "--force"]) == 0
    np.savez(data)
    assert main([*command, str(data), "--force"]) == 2
    assert "holds no arrays" in capsys.readouterr().err


def test_lists_say_the_inputs_too():
    with pytest.raises(DataError) as caught:
        kerasnorm.swap_norms(model(), "layer", arrays()["left"])
    assert "Received 1; the inputs are 'right' (None, 3), 'left' (None, 3)." in str(caught.value)


def exported(source, path, inputs, monkeypatch):
    """What reaches the inputs of a model and of its ONNX file, in the order of the file's."""
    pytest.importorskip("tf2onnx")
    from kerasnorm.onnx import check

    received, takes = [], check.arrays_for
    monkeypatch.setattr(
        check, "arrays_for", lambda *given: received.append(takes(*given)) or received[-1]
    )
    kerasnorm.export_onnx(source, path, inputs=inputs)
    return received[0]


@pytest.mark.parametrize("structure", [list, dict])
@pytest.mark.parametrize("keys", [("a", "b"), ("left", "b"), ("left", "right_"), ("left",)])
def test_an_export_takes_no_other_names(structure, keys, tmp_path, monkeypatch):
    given = dict(zip(keys, arrays().values(), strict=False))
    with pytest.raises(ExportError) as caught:
        exported(model(structure), tmp_path / "model.onnx", given, monkeypatch)
    said = str(caught.value)
    assert "`inputs` must have the inputs of the model by name: ['right', 'left']." in said
    assert f"Received: {len(keys)} arrays, {list(keys)}." in said
    assert "Pass `inputs={'right': …, 'left': …}`, or a list of arrays in that order." in said
    assert not list(tmp_path.iterdir())


def test_an_export_takes_what_it_names(tmp_path, monkeypatch):
    x = {"labels": np.zeros(ROWS), **arrays()}
    right, left = exported(model(), tmp_path / "model.onnx", x, monkeypatch)
    np.testing.assert_array_equal(right, x["right"])
    np.testing.assert_array_equal(left, x["left"])


@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")
def test_an_export_takes_the_keys_of_a_model_before_the_names_of_its_layers(tmp_path, monkeypatch):
    a, b = keras.Input((3,), name="b"), keras.Input((3,), name="a")
    crossed = keras.Model({"a": a, "b": b}, layers.Dense(2)(a + 10.0 * b))
    x = dict(zip("ab", arrays().values(), strict=True))
    received = exported(crossed, tmp_path / "model.onnx", x, monkeypatch)
    np.testing.assert_array_equal(received[0], x["a"])
    np.testing.assert_array_equal(received[1], x["b"])
