"""A Rescaling with lists, saved under one `image_data_format` and loaded under the other."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import assert_close
from keras import layers

import kerasnorm

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
FIRST, LAST = "channels_first", "channels_last"


@pytest.fixture(autouse=True)
def setting_kept():
    before = keras.config.image_data_format()
    yield
    keras.config.set_image_data_format(before)


def saved(path, shape, *, under, scale=(1.0, 20.0, 300.0), pooling=True):
    keras.config.set_image_data_format(under)
    x = keras.Input(shape)
    y = layers.Rescaling(list(scale) if np.ndim(scale) else scale, name="scaled")(x)
    model = keras.Model(x, layers.MaxPooling2D(1)(y) if pooling else y)
    model.save(path)
    return model


@pytest.mark.parametrize("suffix", ["h5", "keras"])
@pytest.mark.parametrize(("under", "now"), [(FIRST, LAST), (LAST, FIRST)])
def test_another_setting_is_warned_of(under, now, suffix, tmp_path):
    path, shape = tmp_path / f"model.{suffix}", (3, 5, 3)
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    expected = saved(path, shape, under=under)(x)
    keras.config.set_image_data_format(now)
    with pytest.warns(UserWarning, match=rf"set_image_data_format\('{under}'\).*'scaled'"):
        loaded = kerasnorm.load_model(path)
    assert len(loaded.load_report.warnings) == 1
    keras.config.set_image_data_format(under)  # what the warning says
    loaded = kerasnorm.load_model(path)
    assert loaded.load_report.warnings == []
    assert_close(loaded(x), expected)


@pytest.mark.parametrize(
    ("shape", "now", "doubtful"),
    [
        ((5, 5, 3), LAST, False),
        ((3, 5, 5), LAST, True),
        ((3, 5, 3), LAST, True),
        ((None, None, 3), LAST, True),
        ((3, 5, 5), FIRST, False),
        ((5, 5, 3), FIRST, True),
    ],
)
def test_where_no_other_layer_tells(shape, now, doubtful, tmp_path):
    other = FIRST if shape[-1] != 3 else LAST
    saved(tmp_path / "model.keras", shape, under=other, pooling=False)
    keras.config.set_image_data_format(now)
    assert bool(kerasnorm.load_report(tmp_path / "model.keras").warnings) == doubtful


def test_numbers_and_whole_arrays_are_no_doubt(tmp_path):
    for scale in (2.0, np.ones((1, 1, 1, 3))):
        saved(tmp_path / "model.keras", (3, 5, 3), under=FIRST, scale=scale)
        keras.config.set_image_data_format(LAST)
        assert kerasnorm.load_report(tmp_path / "model.keras").warnings == []
