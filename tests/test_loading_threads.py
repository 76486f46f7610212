"""Files are loaded in several threads at once, and what else runs meanwhile notices nothing."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import old_models
import pytest
import tiny_models
from keras import layers

import kerasnorm
from kerasnorm import LoadError
from kerasnorm.loading.load import load
from kerasnorm.loading.safety import Limits

pytestmark = [
    # Keras 2 has its own use of NumPy and TensorFlow, and Keras calls HDF5 a legacy format
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def process_wide():
    """What a load could change for everybody."""
    return (
        keras.Layer.add_weight,
        keras.Variable.__init__,
        list(warnings.filters),
        warnings.showwarning,
        dict(keras.saving.get_custom_objects()),
    )


@keras.saving.register_keras_serializable("tests")
class Paused(layers.Layer):
    """A layer that is built when it is told to."""

    begun, go_on = threading.Event(), threading.Event()

    def build(self, _):
        if threading.current_thread() is not threading.main_thread():
            self.begun.set()
            assert self.go_on.wait(60)

    def call(self, x):
        return x


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_load_changes_nothing_for_other_threads(suffix, tmp_path):
    path = tmp_path / f"model.{suffix}"
    model = keras.Sequential([keras.Input((3,)), Paused(), layers.Dense(4)])
    model.save(path)
    before = process_wide()
    Paused.begun.clear()
    Paused.go_on.clear()
    exactly = Limits(weights_floor=0, weights_ratio=1)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load, path, limits=exactly)
        try:
            assert Paused.begun.wait(60)
            assert process_wide() == before
            layers.Dense(50).build((None, 50))  # which that file could not fill
            with pytest.raises(LoadError, match="asks for weights"):
                load(path, limits=Limits(weights_floor=0, weights_ratio=0.5))
        finally:
            Paused.go_on.set()
        for ours, theirs in zip(loading.result().weights, model.weights, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert process_wide() == before


def test_loads_builds_and_swaps_at_the_same_time(tmp_path):
    paths = [
        old_models.saved(old_models.of_layer("image", "DepthwiseConv2D"), tmp_path / "a.h5"),
        old_models.saved(old_models.of_layer("image", "Conv2D"), tmp_path / "b.keras"),
        tmp_path / "c.keras",
        tmp_path / "d.keras",
    ]
    tiny_models.conv_bn_relu().save(paths[2])
    tiny_models.residual().save(paths[3])
    before = process_wide()

    def work(number):
        loaded = kerasnorm.load_model(paths[number % 4])
        built = keras.Sequential([keras.Input((5,)), layers.Dense(3, kernel_initializer="ones")])
        swap = kerasnorm.swap_norms(loaded, "layer")
        x = np.random.default_rng(0).normal(size=(2, *loaded.input_shape[1:])).astype("float32")
        numbers = [*built.get_weights(), *(np.asarray(m(x)) for m in (loaded, swap.model))]
        return loaded.load_report, swap.report.repairs, numbers

    alone = [work(number) for number in range(4)]
    assert "`groups` removed from DepthwiseConv2D" in str(alone[0][0])
    assert alone[2][0] == []
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(work, range(12)))
    for number, (report, repairs, numbers) in enumerate(together):
        expected = alone[number % 4]
        assert report == repairs == expected[0]
        for ours, theirs in zip(numbers, expected[2], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert process_wide() == before
