"""`load_model`: what loads, what is refused, and in which words."""

from __future__ import annotations

import h5py
import keras
import numpy as np
import pytest
import tiny_models
from helpers import material
from keras import layers

import kerasnorm
from kerasnorm import LoadError


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


def test_a_missing_file_a_folder_and_other_files(tmp_path):
    with pytest.raises(LoadError, match="There is no file"):
        kerasnorm.load_model(tmp_path / "none.keras")
    with pytest.raises(LoadError, match="is a folder"):
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
    with pytest.raises(LoadError, match="holds weights only"):
        kerasnorm.load_model(path)


def test_what_keras_cannot_read_is_said_shortly():
    with pytest.raises(LoadError, match=r"'DepthwiseConv2D': .*'groups': 1") as caught:
        kerasnorm.load_model(material("models", "vww_mobilenet_v1.h5"))
    assert len(str(caught.value)) < 400


def test_code_in_a_file_does_not_run_unless_allowed(tmp_path):
    marker = tmp_path / "it_ran"
    path = tmp_path / "lambda.keras"
    touch = f"__import__('pathlib').Path(r'{marker}').touch()"
    inputs = keras.Input((3,))
    function = eval(f"lambda x: ({touch}, x)[1]")
    model = keras.Model(inputs, layers.Lambda(function, output_shape=(3,))(inputs))
    model.save(path)
    marker.unlink(missing_ok=True)
    with pytest.raises(LoadError, match="--allow-custom-code"):
        kerasnorm.load_model(path)
    assert not marker.exists()
    x = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(kerasnorm.load_model(path, allow_custom_code=True)(x), x)
    assert marker.exists()
