"""Exports at the same time, and beside other work: each gives what it gives alone."""

from __future__ import annotations

import collections
import logging
import os
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_models
from keras import layers
from tf2onnx import tfonnx

import kerasnorm
from kerasnorm.layers import CosineNorm, LayerNorm
from kerasnorm.onnx import convert, export
from kerasnorm.onnx.export import export_onnx
from kerasnorm.onnx.io_spec import Signature

ROUNDS = 3


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def process_state():
    """What belongs to the whole process, and other threads see."""
    loggers = [logging.getLogger(name) for name in ("", "absl", "tensorflow", "tf2onnx")]
    return {
        "descriptor 2": (os.fstat(2).st_dev, os.fstat(2).st_ino),
        "warnings": (warnings.showwarning, *warnings.filters),
        "loggers": [(log.level, log.propagate, [*log.filters], [*log.handlers]) for log in loggers],
        "environment": dict(os.environ),
    }


def looking(monkeypatch, owner, name, look):
    """Has `look()` run in another thread before and after a step of an export; what it gives."""
    function, seen = getattr(owner, name), []

    def looked(*args, **kwargs):
        with ThreadPoolExecutor(1) as other_thread:
            seen.append(other_thread.submit(look).result())
            result = function(*args, **kwargs)
            seen.append(other_thread.submit(look).result())
        return result

    monkeypatch.setattr(owner, name, looked)
    return seen


@pytest.mark.parametrize("step", ["freeze", "to_onnx", "check"])
def test_nothing_of_the_process_is_changed_while_an_export_runs(step, monkeypatch, tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    export_onnx(model, tmp_path / "model.onnx")  # what is imported on the way is imported
    seen = looking(monkeypatch, export, step, process_state)
    before = process_state()
    export_onnx(model, tmp_path / "model.onnx")
    assert seen == [before, before]
    assert process_state() == before


def test_errors_that_tf2onnx_logs_in_another_thread_are_not_ours():
    logger = logging.getLogger("tf2onnx.tfonnx")
    texts: list[str] = []
    with convert._Complaints(texts):
        for name in ("theirs", "too"):
            other = threading.Thread(target=logger.error, args=("Failed to convert %s", name))
            other.start()
            other.join()
        logger.error("Failed to convert ours\nits nodes")
        logger.warning("not an error")
    logger.error("Failed to convert after it")
    assert texts == ["Failed to convert ours"]


def structure(graph, outside=(), level=0):
    """How often each operation is computed on what, and the outputs: names and order aside."""
    keys = dict(outside)
    keys.update({value.name: ("input", level, n) for n, value in enumerate(graph.input)})
    for tensor in graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        keys[tensor.name] = hash((array.dtype.str, array.shape, array.tobytes()))
    counts = collections.Counter()
    for node in graph.node:
        attributes = [
            (a.name, structure(a.g, keys, level + 1) if a.HasField("g") else a.SerializeToString())
            for a in node.attribute
        ]
        inputs = [keys[name] if name else None for name in node.input]
        key = hash((node.op_type, *sorted(attributes), *inputs))
        counts[key] += 1
        keys.update({name: (key, number) for number, name in enumerate(node.output)})
    return hash((frozenset(counts.items()), *[keys[value.name] for value in graph.output]))


class Branching(layers.Layer):
    """Its branches are functions of their own, which tf2onnx keeps in a dictionary by name."""

    def call(self, x):
        return keras.ops.cond(keras.ops.sum(x) > 0, lambda: x + 1, lambda: keras.ops.sin(x))

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def models():
    x = np.random.default_rng(0).normal(size=(90, 8, 8, 3)).astype("float32")
    return [
        kerasnorm.swap_norms(tiny_models.conv_bn_relu(), "weight").model,
        kerasnorm.swap_norms(tiny_models.sequential(), "layer").model,
        kerasnorm.swap_norms(tiny_models.conv_bn_relu(), "cosine", x).model,
        keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), Branching()]),
    ]


def exported(model, path):
    """The structure of a model's file, and its answer."""
    export_onnx(model, path)
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype("float32")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [answer] = session.run(None, {session.get_inputs()[0].name: x})
    return structure(onnx.load(path).graph), answer


@pytest.mark.usefixtures("closed_form")
def test_exports_at_the_same_time_give_what_each_gives_alone(tmp_path):
    together = models()
    paths = [tmp_path / f"{number}.onnx" for number in range(len(together))]
    expected = list(map(exported, together, paths))
    assert len({graph for graph, _ in expected}) == len(together)
    before = process_state()
    barrier = threading.Barrier(len(together))

    def at_once(model, path):
        barrier.wait(60)
        return exported(model, path)

    for _ in range(ROUNDS):
        with ThreadPoolExecutor(len(together)) as threads:
            results = list(threads.map(at_once, together, paths))
        for (graph, answer), (graph_alone, answer_alone) in zip(results, expected, strict=True):
            assert graph == graph_alone
            np.testing.assert_array_equal(answer, answer_alone)
    assert process_state() == before


def test_tf2onnx_converts_one_model_at_a_time(monkeypatch, tmp_path):
    """It keeps functions, names and arguments of handlers in its modules."""
    convert, running, seen = tfonnx.process_tf_graph, [], []

    def watched(*args, **kwargs):
        running.append(None)
        time.sleep(0.1)  # for the others to come, if they can
        seen.append(len(running))
        result = convert(*args, **kwargs)
        running.pop()
        return result

    monkeypatch.setattr(tfonnx, "process_tf_graph", watched)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda n: export_onnx(model, tmp_path / f"{n}.onnx"), range(3)))
    assert seen == [1, 1, 1]


@pytest.mark.parametrize(
    ("owner", "name"),
    # While TensorFlow traces the model, and while tf2onnx converts what it traced.
    [(Signature, "call"), (tfonnx, "process_tf_graph")],
)
def test_the_callers_layers_compute_as_ever_while_an_export_runs(
    owner, name, monkeypatch, tmp_path
):
    stack = [
        layers.Conv2D(4, 3),
        LayerNorm(axis="sample", gamma_initializer="random_normal"),
        CosineNorm(layers.Conv2D(4, 3), rescale=True),
        layers.GroupNormalization(1, gamma_initializer="random_normal"),
        keras.Sequential([layers.Flatten(), layers.LayerNormalization()]),
    ]
    model = keras.Sequential([keras.Input((8, 8, 3)), *stack])
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")

    def look():
        inside = [model, *model._flatten_layers(include_self=False)]
        kinds = [(type(layer), sorted(vars(layer))) for layer in inside]
        return kinds, np.asarray(model(x)).tobytes()

    before = look()
    seen = looking(monkeypatch, owner, name, look)
    counts = export_onnx(model, tmp_path / "model.onnx").op_counts
    assert counts["LayerNormalization"] == 3
    assert seen
    assert all(found == before for found in seen)
    assert look() == before
