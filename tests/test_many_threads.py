"""Many threads at once: what each does comes out as if it were alone."""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
import warnings

import keras
import numpy as np
import onnx
import pytest
import tiny_models
from fidelity import randomize
from keras import layers

import kerasnorm
from kerasnorm import CosineNorm, WeightNorm


def inputs(shape, rows=32, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, *shape)).astype("float32")


def source(make, shape):
    """A model whose weights are the same each time, whoever else draws numbers meanwhile."""
    model = make()
    random = np.random.default_rng(0)
    model.set_weights([random.normal(size=w.shape) for w in model.get_weights()])
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_variance.assign(np.abs(layer.moving_variance) + 0.1)
    randomize(model, inputs(shape))
    return model


class Job:
    """What one thread does again and again; what comes out is compared with the first time."""

    def __init__(self, folder, name: str):
        self.path = str(folder / f"{name}.onnx")
        self.name = name
        self.conv = source(tiny_models.conv_bn_relu, (8, 8, 3))
        self.dense = source(tiny_models.dense_bn, (5,))
        self.image, self.row = inputs((8, 8, 3)), inputs((5,))

    def swap(self):
        swap = kerasnorm.swap_norms(self.conv, "weight")
        return [*swap.model.get_weights(), swap.model(self.image), self.conv(self.image)]

    def layer(self):
        return [kerasnorm.swap_norms(self.dense, "layer").model(self.row)]

    def calibrate(self):
        swap = kerasnorm.swap_norms(self.dense, "cosine", self.row)
        return [*swap.model.get_weights(), *(site.fit for site in swap.report.sites)]

    def fold(self):
        swapped = kerasnorm.swap_norms(self.conv, "weight").model
        return kerasnorm.fold_norms(swapped).get_weights()

    def build(self):
        found = []
        for wrap in (WeightNorm, CosineNorm):
            layer = wrap(layers.Dense(4, kernel_initializer=keras.initializers.HeNormal(seed=1)))
            layer.build((None, 5))
            found += [*layer.get_weights(), layer(self.row)]
        return found

    def data_init(self):
        initializer = keras.initializers.HeNormal(seed=2)
        stack = [WeightNorm(layers.Dense(5, kernel_initializer=initializer)) for _ in range(2)]
        model = keras.Sequential([keras.Input((5,)), *stack])
        assert len(kerasnorm.data_init(model, self.row)) == 2
        return model.get_weights()

    def export(self):
        swap = kerasnorm.swap_norms(self.dense, "layer")
        kerasnorm.export_onnx(swap, self.path)
        graph = onnx.load(self.path).graph
        return [onnx.numpy_helper.to_array(t) for t in graph.initializer]

    def predict(self):
        return [self.conv(self.image), self.dense(self.row)]

    def all(self):
        return {
            kind: [np.array(value) for value in getattr(self, kind)()]
            for kind in (
                "swap", "layer", "calibrate", "fold", "build", "data_init", "export", "predict",
            )
        }  # fmt: skip


def assert_same(found, expected):
    for kind, values in expected.items():
        assert len(found[kind]) == len(values), kind
        for number, (a, b) in enumerate(zip(found[kind], values, strict=True)):
            np.testing.assert_array_equal(a, b, err_msg=f"{kind} {number}")


def _file(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def at_once(folder, threads: int, seconds: float) -> int:
    """How many rounds were run, each of them the same as that of one thread alone."""
    jobs = [Job(folder, str(number)) for number in range(threads)]
    expected = jobs[0].all()
    start = threading.Barrier(threads)
    stderr, filters = _file(2), list(warnings.filters)
    end = time.monotonic() + seconds

    def work(job: Job) -> int:
        start.wait()
        rounds = 0
        while not rounds or time.monotonic() < end:
            assert_same(job.all(), expected)
            rounds += 1
        return rounds

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        rounds = sum(pool.map(work, jobs))
    assert _file(2) == stderr
    assert warnings.filters == filters
    assert_same(jobs[0].all(), expected)
    return rounds


def test_four_threads_do_what_one_does(tmp_path):
    assert at_once(tmp_path, threads=4, seconds=0) == 4


@pytest.mark.slow
def test_eight_threads_do_what_one_does_for_a_minute(tmp_path):
    assert at_once(tmp_path, threads=8, seconds=60) >= 8
