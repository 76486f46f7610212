"""`load_model`: what loads, what is refused, and in which words."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tiny_models
from keras import layers

import kerasnorm
from kerasnorm import LoadError
from kerasnorm.cli.main import main
from kerasnorm.loading.load import load
from kerasnorm.loading.report import LoadReport
from kerasnorm.loading.safety import Limits


@pytest.mark.filterwarnings("ignore::UserWarning")  # Keras calls HDF5 a legacy format
@pytest.mark.parametrize("suffix", [".keras", ".h5", ".hdf5"])
def test_a_saved_model_loads(suffix, tmp_path):
    model = tiny_models.compiled()
    path = tmp_path / f"model{suffix}"
    model.save(path)
    again = kerasnorm.load_model(path)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(again(x), model(x))
    assert kerasnorm.load_report(path) == []
    assert again.compiled


def test_a_report_is_a_sequence_equal_to_a_list():
    report = LoadReport(["one", "two"], "a model", ["it may differ"], ["NaN"])
    assert report == ["one", "two"] == list(report)
    assert ["one", "two"] == report == LoadReport(["one", "two"], "another", [], [])
    assert report != ["one"]
    assert (len(report), report[1], report[:1], "two" in report) == (2, "two", ["one"], True)
    assert not LoadReport([], "a model", [], [])
    assert repr(report) == "['one', 'two']"
    assert report.warnings == ["it may differ", "NaN"]
    assert report.to_dict() == {
        "holds": "a model",
        "repairs": ["one", "two"],
        "warnings": ["it may differ", "NaN"],
    }


@keras.saving.register_keras_serializable("tests")
class ByCode(keras.Model):
    """A model that is copied by its attributes."""

    def __init__(self, name=None, **_):
        super().__init__(name=name)
        self.dense, self.norm = layers.Dense(4), layers.BatchNormalization()

    def call(self, x):
        return self.norm(self.dense(x))

    def get_config(self):
        raise NotImplementedError


def by_code():
    model = ByCode()
    model(np.ones((2, 5), "float32"))
    return model


@pytest.mark.parametrize("make", [tiny_models.dense_bn, tiny_models.nested, by_code])
def test_the_report_is_of_this_very_model(make, tmp_path):
    model, path = make(), tmp_path / "model.keras"
    if make is not by_code:
        model.save(path)
        model = kerasnorm.load_model(path)
    else:
        model.load_report = LoadReport([], "a model", [], [])
    model.load_report.repairs.append("something was repaired")
    model.load_report.doubts.append("it may answer otherwise")
    assert isinstance(model.load_report, LoadReport)
    swap = kerasnorm.swap_norms(model, "weight")
    assert swap.report.repairs == ["something was repaired"]
    assert "warning: it may answer otherwise" in swap.report.notes
    assert not any("not carried over" in note for note in swap.report.notes)
    assert kerasnorm.inspect_norms(model).repairs == ["something was repaired"]
    copies = [swap.model]
    if make is not by_code:
        copies += [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        copies += [keras.models.clone_model(model), kerasnorm.fold_norms(swap.model)]
        model.save(path)
        copies.append(keras.models.load_model(path))
        assert kerasnorm.load_model(path).load_report == []
    assert not any(hasattr(copied, "load_report") for copied in copies)


def test_a_missing_file_a_folder_and_other_files(tmp_path):
    with pytest.raises(LoadError, match="There is no file"):
        kerasnorm.load_model(tmp_path / "none.keras")
    with pytest.raises(LoadError, match="is a folder"):
        kerasnorm.load_model(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(LoadError, match=r"SavedModel: a compiled graph.*'model\.h5'"):
        kerasnorm.load_model(tmp_path)
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(LoadError, match=r"A model is a `\.keras`"):
        kerasnorm.load_model(tmp_path / "text.txt")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_truncated_file(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    tiny_models.dense_bn().save(path)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:size])
        with pytest.raises(LoadError, match=r"model\."):
            kerasnorm.load_model(path)


def test_weights_only(tmp_path):
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file["kernel"] = np.ones((2, 2))
    with pytest.raises(LoadError, match=r"holds weights only, and needs a config.*: there is no"):
        kerasnorm.load_model(path)


def test_every_truncation_and_flipped_bit_is_an_answer_or_an_error(tmp_path):
    path = tmp_path / "model.h5"
    draw = np.random.default_rng(0)
    model = tiny_models.dense_bn()
    for suffix in (".keras", ".h5"):
        path = path.with_suffix(suffix)
        model.save(path)
        whole = path.read_bytes()
        for _ in range(20):
            broken = bytearray(whole)
            broken[draw.integers(len(whole))] ^= 1 << int(draw.integers(8))
            path.write_bytes(broken)
            with contextlib.suppress(LoadError):
                assert kerasnorm.load_model(path).output_shape == model.output_shape


def with_entry(path, name, content=b"", **info):
    """Add a file to a `.keras` archive."""
    entry = zipfile.ZipInfo(name)
    for key, value in info.items():
        setattr(entry, key, value)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, content)


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out.txt", "assets/../../out", "a\\b", "C:x"])
def test_an_archive_with_a_path_out_of_it(name, tmp_path):
    path = tmp_path / "model.keras"
    tiny_models.dense_bn().save(path)
    with_entry(path, name, b"1")
    with pytest.raises(LoadError, match="has a path out of it"):
        kerasnorm.load_model(path)


def test_an_archive_with_what_keras_never_puts_there(tmp_path):
    path = tmp_path / "model.keras"
    tiny_models.dense_bn().save(path)
    with_entry(path, "run.py", b"1")
    with pytest.raises(LoadError, match=r"no file 'run\.py' in it"):
        kerasnorm.load_model(path)


def test_an_archive_that_unpacks_to_more_than_it_may(tmp_path):
    path = tmp_path / "model.keras"
    tiny_models.dense_bn().save(path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    size = sum(map(len, files.values()))
    assert load(path, limits=Limits(content_floor=size, content_ratio=0)).built
    with pytest.raises(LoadError, match=f"bytes unpack to {size:,}"):
        load(path, limits=Limits(content_floor=size - 1, content_ratio=0))


def test_an_archive_with_a_file_twice(tmp_path):
    path = tmp_path / "model.keras"
    tiny_models.dense_bn().save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's, about just this
        with_entry(path, "assets/words.txt", b"a")
        with_entry(path, "assets/words.txt", b"b")
    with pytest.raises(LoadError, match="a file is in it twice"):
        kerasnorm.load_model(path)


@pytest.mark.parametrize("kind", ["keras", "h5", "json"])
def test_texts_are_no_longer_than_they_may_be(kind, tmp_path):
    model = tiny_models.dense_bn()
    path = tmp_path / f"model.{kind}"
    text = model.to_json()
    if kind == "h5":
        saved_as_hdf5(path)
    elif kind == "keras":
        model.save(path)
    else:
        path.write_text(text)
        model.save_weights(tmp_path / "model.weights.h5")
    assert load(path, limits=Limits(characters=2 * len(text))).built
    with pytest.raises(LoadError, match=r"too long|characters in the file|no configuration"):
        load(path, limits=Limits(characters=100))


def saved_as_hdf5(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras calls HDF5 a legacy format
        tiny_models.dense_bn().save(path)
    return path


def test_an_hdf5_file_that_says_it_holds_more_than_it_may(tmp_path):
    path = saved_as_hdf5(tmp_path / "model.h5")
    held = 4 * tiny_models.dense_bn().count_params()
    assert load(path, limits=Limits(content_floor=held, content_ratio=0)).built
    with pytest.raises(LoadError, match="claims to hold more than"):
        load(path, limits=Limits(content_floor=held - 1, content_ratio=0))


def test_an_hdf5_file_that_reaches_for_other_files(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(np.ones(64, "float32").tobytes())
    for number, (add, words) in enumerate(
        [
            (lambda file: file.update(x=h5py.ExternalLink("other.h5", "/x")), "'/x' is a link"),
            (lambda file: file.update(x=h5py.SoftLink("/model_weights")), "'/x' is a link"),
            (
                lambda file: file.create_dataset("x", 64, "f4", external=[(str(secret), 0, 256)]),
                "'/x' is kept in another file",
            ),
        ]
    ):
        path = saved_as_hdf5(tmp_path / f"model{number}.h5")
        with h5py.File(path, "r+") as file:
            add(file)
        with pytest.raises(LoadError, match=words):
            kerasnorm.load_model(path)


def test_a_group_under_two_names(tmp_path):
    path = saved_as_hdf5(tmp_path / "model.h5")
    with h5py.File(path, "r+") as file:
        file["again"] = file["model_weights"]
    with pytest.raises(LoadError, match="a group is in it twice"):
        kerasnorm.load_model(path)


def test_groups_are_no_deeper_than_they_may_be(tmp_path):
    path = saved_as_hdf5(tmp_path / "model.h5")  # model_weights, a layer, its scopes
    assert load(path, limits=Limits(groups=4)).built
    with pytest.raises(LoadError, match="or in itself"):
        load(path, limits=Limits(groups=1))


def test_json_that_python_does_not_read(tmp_path, monkeypatch):
    path = saved_as_hdf5(tmp_path / "model.h5")

    def fail(*_, **__):
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(json, "loads", fail)
    with pytest.raises(LoadError, match="is not JSON"):
        kerasnorm.load_model(path)


def test_what_is_no_model_is_said(tmp_path):
    path = saved_as_hdf5(tmp_path / "model.h5")
    for config in ({"class_name": "Dense", "config": 5}, {"class_name": "Model", "config": []}, 7):
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = json.dumps(config)
            file.attrs["keras_version"] = "2.4.0"
        with pytest.raises(LoadError, match="model"):
            kerasnorm.load_model(path)


def edited(path, change):
    """Change the configuration in a `.keras` archive."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    change(config)
    files["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@keras.saving.register_keras_serializable("tests")
class Recorded(keras.initializers.Zeros):
    """Zeros that remember which shapes were asked for."""

    shapes: list[tuple[int, ...]] = []  # noqa: RUF012

    def __call__(self, shape, dtype=None):
        self.shapes.append(tuple(shape))
        return super().__call__(shape, dtype)


def test_a_configuration_that_asks_for_more_than_the_file_holds(tmp_path):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(4, kernel_initializer=Recorded())(inputs))
    path = tmp_path / "model.keras"
    model.save(path)
    held = 4 * model.count_params()
    assert load(path, limits=Limits(weights_floor=0, weights_ratio=1)).built
    Recorded.shapes.clear()
    with pytest.raises(LoadError, match=f"asks for weights of .* bytes, and the file holds {held}"):
        load(path, limits=Limits(weights_floor=0, weights_ratio=0.5))
    assert not Recorded.shapes  # it was refused before there was a kernel


@keras.saving.register_keras_serializable("tests")
class OwnVariables(layers.Layer):
    """Makes variables from values, and without Keras."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = keras.Variable(np.full(3, 2.0, "float32"))

    def build(self, _):
        import tensorflow as tf

        self.offset = tf.Variable(lambda: tf.ones(3))
        self.factor = tf.Variable([1.0, 2.0, 3.0])

    def call(self, x):
        return self.scale * x * self.factor + self.offset


def test_variables_that_are_made_in_other_ways(tmp_path):
    inputs = keras.Input((4, 3), batch_size=2)
    x = layers.LSTM(3, stateful=True)(OwnVariables()(inputs))
    model, path = keras.Model(inputs, x), tmp_path / "model.keras"
    model.save(path)
    x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    np.testing.assert_array_equal(kerasnorm.load_model(path)(x), model(x))


def test_a_configuration_with_a_size_beyond_the_limit(tmp_path):
    path = tmp_path / "model.keras"
    tiny_models.conv_bn_relu().save(path)
    edited(path, lambda c: c["config"]["layers"][1]["config"].update(strides=[9, 1]))
    assert load(path, limits=Limits(size=9)).built
    with pytest.raises(
        LoadError, match=r"'conv.*': The configuration is damaged: strides=\[9, 1\]"
    ):
        load(path, limits=Limits(size=8))


def test_layers_that_would_run_or_read_other_files(tmp_path):
    path = tmp_path / "model.keras"
    tiny_models.dense_bn().save(path)

    def change(config):
        config["config"]["layers"][1] |= {
            "class_name": "TFSMLayer",
            "config": {"name": "other", "filepath": str(tmp_path)},
        }

    edited(path, change)
    with pytest.raises(LoadError, match="TFSMLayer would run code"):
        kerasnorm.load_model(path)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Keras calls HDF5 a legacy format
def test_code_in_a_file_does_not_run_unless_allowed(suffix, tmp_path):
    marker = tmp_path / "it_ran"
    path = tmp_path / f"lambda.{suffix}"
    touch = f"__import__('pathlib').Path(r'{marker}').touch()"
    inputs = keras.Input((3,))
    function = eval(f"lambda x: ({touch}, x)[1]")
    model = keras.Model(inputs, layers.Lambda(function, output_shape=(3,))(inputs))
    model.save(path)
    marker.unlink(missing_ok=True)
    with pytest.raises(LoadError, match="--allow-custom-code"):
        kerasnorm.load_model(path)
    for command in (["inspect"], ["swap", "--to", "weight"], ["export"], ["fold"]):
        output = [str(tmp_path / f"out.{'onnx' if command == ['export'] else 'keras'}")]
        more = output if command[0] in ("export", "fold") else []
        assert main([command[0], str(path), *command[1:], *more]) == 2
    assert not marker.exists()
    x = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(kerasnorm.load_model(path, allow_custom_code=True)(x), x)
    assert marker.exists()
