"""What one thread does inside the package, another one neither sees nor changes."""

from __future__ import annotations

import functools
import threading

import keras
import numpy as np
import pytest
from keras import layers

import kerasnorm
from kerasnorm import WeightNorm, data_init
from kerasnorm.callbacks import ActivationDrift
from kerasnorm.math import sums

_pauses = threading.local()


def pause():
    """Where `interleaved` has the first of its two functions wait for the second."""
    wait, _pauses.wait = getattr(_pauses, "wait", None), None
    if wait is not None:
        wait()


@keras.saving.register_keras_serializable("test_threads")
class Pause(layers.Layer):
    """The identity; a pause as it is built and as it is called."""

    def build(self, input_shape):
        pause()

    def call(self, inputs):
        pause()
        return inputs


def in_threads(*functions):
    """What functions give that run at once, each in a thread of its own."""
    results = [None] * len(functions)

    def run(number):
        try:
            results[number] = functions[number]()
        except BaseException as error:
            results[number] = error

    # not waited for if the test fails
    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def interleaved(first, second):
    """Run `first` up to its pause, then `second`, then the rest of `first`; what both give."""
    reached, go_on = threading.Event(), threading.Event()

    def wait():
        reached.set()
        assert go_on.wait(60)

    def run_first():
        _pauses.wait = wait
        return first()

    def run_second():
        try:
            assert reached.wait(60)
            return second()
        finally:
            go_on.set()

    return in_threads(run_first, run_second)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def with_batch_norm():
    norm = layers.BatchNormalization()
    return keras.Sequential([keras.Input((4,)), layers.Dense(5), norm, Pause(), layers.Dense(2)])


def normalized(name):
    steps = [WeightNorm(layers.Dense(5), name=f"{name}1"), Pause()]
    return keras.Sequential([keras.Input((4,)), *steps, WeightNorm(layers.Dense(2), name=name)])


def weights_equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_gains_start_from_norms_while_another_thread_copies():
    def build():
        layer = WeightNorm(layers.Dense(3))
        layer.build((None, 4))
        return layer

    source = with_batch_norm()
    swap, layer = interleaved(lambda: kerasnorm.swap_norms(source, "weight"), build)
    np.testing.assert_allclose(layer.g, np.linalg.norm(layer.layer.kernel, axis=0), rtol=1e-6)
    np.testing.assert_array_less(0, layer.g)
    alone = kerasnorm.swap_norms(source, "weight").model
    assert weights_equal(swap.model.get_weights(), alone.get_weights())


def test_data_init_starts_the_layers_of_its_own_thread():
    one, other = normalized("a"), normalized("b")
    before, x = other.get_weights(), normal(32, 4) + 1
    started, _ = interleaved(lambda: data_init(one, x), lambda: other(x))
    assert started == ["a1", "a"]
    assert weights_equal(before, other.get_weights())


def test_two_data_inits_at_once():
    models, x = [normalized("a"), normalized("b")], normal(32, 4) + 1
    started = interleaved(lambda: data_init(models[0], x), lambda: data_init(models[1], x))
    assert started == [["a1", "a"], ["b1", "b"]]
    for model in models:
        answers = np.asarray(model(x))
        np.testing.assert_allclose(answers.mean(0), 0, atol=1e-5)  # float32, of values around 1
        np.testing.assert_allclose(answers.var(0), 1, rtol=1e-4)


def test_what_is_recorded_are_the_calls_of_the_recorder():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(5, name="first"), Pause()])
    model = keras.Sequential([inner, layers.Dense(2, name="second")])
    x, others = normal(32, 4), normal(32, 4, seed=1) + 9

    def recorder():
        watch = ActivationDrift(x)
        watch.set_model(model)
        return watch

    def attributes():
        held = [vars(layer) for layer in (model, *model.layers, *inner.layers)]
        return [{name: id(value) for name, value in attributes.items()} for attributes in held]

    alone, watch = recorder(), recorder()
    alone.on_train_begin()
    expected, before = np.asarray(model(others)), attributes()
    _, (meanwhile, answers) = interleaved(
        watch.on_train_begin, lambda: (attributes(), np.asarray(model(others)))
    )
    assert meanwhile == before
    assert np.array_equal(answers, expected)
    assert watch.means.keys() == alone.means.keys()
    assert all(weights_equal(watch.means[name], alone.means[name]) for name in alone.means)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_platform_is_assumed_in_one_thread(platform):
    usual = sums.for_cpu()

    def first():
        with sums.assuming(platform):
            pause()
            return sums.for_cpu()

    def second():
        with sums.assuming("tpu" if platform == "cpu" else "cpu"):
            inside = sums.for_cpu()
        return inside, sums.for_cpu()

    assert interleaved(first, second) == [platform == "cpu", (platform != "cpu", usual)]


def test_many_threads_get_what_one_gets():
    x = normal(16, 4) + 1
    sources = [with_batch_norm() for _ in range(3)]
    starts = [normalized("a").get_weights() for _ in sources]

    def work(number):
        swap = kerasnorm.swap_norms(sources[number], "weight").model
        model = normalized("a")
        norms = [np.linalg.norm(la.layer.kernel, axis=0) for la in model.layers if la.weights]
        gains = [np.array(layer.g) for layer in model.layers if layer.weights]
        np.testing.assert_allclose(np.concatenate(gains), np.concatenate(norms), rtol=1e-6)
        model.set_weights(starts[number])
        data_init(model, x)
        return [*swap.get_weights(), *model.get_weights(), np.asarray(model(x))]

    alone = [work(number) for number in range(3)]
    for _ in range(2):
        together = in_threads(*[functools.partial(work, n % 3) for n in range(6)])
        assert all(weights_equal(alone[n % 3], results) for n, results in enumerate(together))


@keras.saving.register_keras_serializable("test_threads")
class Long(layers.Layer):
    """Code of many calls."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.steps = [layers.Dense(4) for _ in range(30)]
        self.norm = layers.BatchNormalization(name="norm")

    def build(self, shape):
        for step in (*self.steps, self.norm):
            step.build(shape)

    def call(self, x):
        for step in self.steps:
            x = step(x)
        return self.norm(x)


def test_one_model_is_looked_at_in_many_threads():
    model = keras.Sequential([keras.Input((4,)), Long(name="long")])
    alone = kerasnorm.inspect_norms(model).sites
    for _ in range(3):
        for report in in_threads(*[functools.partial(kerasnorm.inspect_norms, model)] * 3):
            assert report.sites == alone
