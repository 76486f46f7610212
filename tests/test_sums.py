"""Sums in the form for a CPU and in the form for an accelerator are the same sums."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from helpers import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from kerasnorm.math import sums

# Shapes and axes that reach every form, with sizes around the ones where it changes.
FORMS = {
    "a product": ((6, 40), (1,)),
    "a product of an unrolled row": ((6, 64), (1,)),
    "a product of a row beyond that": ((6, 65), (1,)),
    "a product, then a sum": ((3, 5, 7, 48), (1, 2, 3)),
    "a row too short for one": ((6, 32), (1,)),
    "parts": ((132, 5), (0,)),
    "parts and a rest": ((135, 5), (0,)),
    "too few rows for parts": ((131, 5), (0,)),
    "parts of leading axes": ((2, 11, 13, 4), (0, 1, 2)),
    "parts of axes in the middle": ((2, 11, 13, 4), (1, 2)),
    "parts, with short rows summed too": ((2, 11, 13, 4), (1, 2, 3)),
    "parts of the second axis": ((3, 140, 5), (1,)),
    "parts of two axes, with a later one summed too": ((2, 11, 13, 3, 4), (1, 2, 4)),
    "parts of the longer of two runs": ((3, 4, 140, 2, 5), (0, 2)),
    "all axes": ((2, 3), (0, 1)),
    "none": ((2, 3), ()),
}


def sum_of(x, axes, platform):
    with sums.assuming(platform):
        return keras.ops.convert_to_numpy(sums.total(keras.ops.convert_to_tensor(x), axes))


def test_what_is_assumed_is_of_this_thread_alone():
    with ThreadPoolExecutor(1) as other_thread:
        before = sums.for_cpu()
        for platform in ("cpu", "gpu"):
            with sums.assuming(platform):
                assert sums.for_cpu() is (platform == "cpu")
                assert other_thread.submit(sums.for_cpu).result() is before
        assert sums.for_cpu() is before


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("form", FORMS)
def test_each_form(form, platform):
    shape, axes = FORMS[form]
    x = np.random.default_rng(0).normal(size=shape)
    result = sum_of(x, axes, platform)
    # JAX has no float64 unless asked for
    assert_close(result, x.sum(axes, keepdims=True), result.dtype.name)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's operations")
@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_taken_where_it_is_quicker(form):
    import tensorflow as tf

    shape, axes = FORMS[form]

    def operations(platform):
        with sums.assuming(platform):
            traced = tf.function(lambda x: sums.total(x, axes), autograph=False)
            function = traced.get_concrete_function(tf.TensorSpec(shape, "float32"))
        return [operation.type for operation in function.graph.get_operations()]

    on_cpu = operations("cpu")
    assert ("MatMul" in on_cpu) == form.startswith("a product")
    # four quarters, and what is left over
    assert on_cpu.count("StridedSlice") == (5 if form.startswith("parts") else 0)
    assert not {"MatMul", "StridedSlice"} & set(operations("gpu"))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's operations")
def test_an_unknown_size_counts_as_one():
    import tensorflow as tf

    for rows, parts in ((12, True), (10, False)):
        with sums.assuming("cpu"):
            traced = tf.function(lambda x: sums.total(x, (0, 1, 2)), autograph=False)
            function = traced.get_concrete_function(tf.TensorSpec((None, rows, 12, 8), "float32"))
        kinds = [operation.type for operation in function.graph.get_operations()]
        assert ("AddV2" in kinds) == parts


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's operations")
@pytest.mark.parametrize(("size", "factor"), [(33, 0.5), (64, 0.5), (65, 1.0)])
def test_entries_of_an_unrolled_row_have_a_factor(size, factor):
    import tensorflow as tf

    with sums.assuming("cpu"):
        traced = tf.function(lambda x: sums.total(x, (1,)), autograph=False)
        function = traced.get_concrete_function(tf.TensorSpec((4, size), "float32"))
    constants = [
        tf.make_ndarray(operation.get_attr("value"))
        for operation in function.graph.get_operations()
        if operation.type == "Const"
    ]
    floats = {float(c) for c in constants if c.dtype == np.float32 and c.shape == ()}
    assert floats == {factor}


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_any_shape_and_axes(data):
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 31, 33, 70]), min_size=1, max_size=4))
    shape = shape if np.prod(shape) < 2e5 else shape[:2]
    axes = data.draw(st.sets(st.sampled_from(range(len(shape)))))
    x = np.random.default_rng(0).normal(size=shape)
    expected = x.sum(tuple(axes), keepdims=True)
    # cancellation: relative to what was added up
    result = sum_of(x, tuple(axes), "cpu")
    limit = 10 * np.finfo(result.dtype).eps * np.abs(x).sum(tuple(axes)).max()
    assert np.abs(result - expected).max() < limit


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="sizes are known under JAX")
@pytest.mark.parametrize("size", [1, 3, 4, 6])
def test_sizes_that_are_not_known_when_it_is_traced(size):
    import tensorflow as tf

    x = np.random.default_rng(0).normal(size=(size, 12, 12, 40))
    for axes in [(0, 1, 2), (1, 2), (3,)]:
        for jit in (False, True):
            function = tf.function(
                lambda x, axes=axes: sums.total(x, axes),
                input_signature=[tf.TensorSpec((None, 12, 12, 40), "float64")],
                jit_compile=jit,
            )
            with sums.assuming("cpu"):
                result = function(x)
            assert_close(result, x.sum(axes, keepdims=True), "float64")


def test_count_is_a_number_to_divide_by():
    assert sums.count(np.zeros((4, 5, 6)), (0, 2)) == 24.0
    assert sums.count(np.zeros((4, 0, 6)), (0, 1)) == 1.0


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX takes one form always")
def test_what_runs_eagerly_takes_plain_sums():
    import tensorflow as tf

    traced = []
    tf.function(lambda: traced.append(sums.for_cpu()), autograph=False)()
    assert traced == [not tf.config.list_physical_devices("GPU")]
    assert not sums.for_cpu()
