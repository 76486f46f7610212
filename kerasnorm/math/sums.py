"""Sums over axes, in the form that XLA makes the most of on the device at hand.

An accelerator fuses what is summed into the sum. XLA for CPUs hands a plain sum to a library, and
first writes out whatever has to be computed for it: a mean of squares then costs as much as three
passes. Two forms avoid that. A sum over the last axis is a product with a vector of ones, into
which XLA fuses what is multiplied; on an accelerator such a product might be rounded to TF32 or
bfloat16. A sum over leading axes begins with adding up quarters, which is elementwise.

Where XLA compiles nothing, plain sums take about half the time, and a quarter of the time to trace.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import keras
from keras import ops

_PARTS = 4
# XLA sums up to 32 rows column by column, in strides through memory: parts have to be longer. An
# unknown size may be that of a small batch.
_LONG = 33 * _PARTS
# A row of no more than this is summed as fast as it is written out.
_SHORT = 32
# LLVM unrolls a loop over no more than this; what it then adds up, it does not vectorize unless
# each entry has a factor.
_UNROLLED = 64
UNCOMPILED = "uncompiled"
_assumed: ContextVar[str | None] = ContextVar("platform", default=None)


@contextlib.contextmanager
def assuming(platform: str) -> Iterator[None]:
    """Have everything meanwhile take the form for XLA on a "cpu", or for another platform.

    For compiling on one machine what is to run on another, or in another runtime; `UNCOMPILED` for
    what TensorFlow runs itself. Other threads see nothing of it.
    """
    before = _assumed.set(platform)
    try:
        yield
    finally:
        _assumed.reset(before)


def total(x, axes: Sequence[int]):
    """Σ x over `axes` (counted from the front), dimensions kept."""
    if not axes:
        return x
    axes = sorted(axes)
    if for_cpu():
        last = x.shape[-1]
        if axes[-1] == len(x.shape) - 1 and last is not None and last > _SHORT:
            return _by_product(x, axes)
        run = max(_runs(axes, len(x.shape) - 1), key=lambda run: _known_size(x, run), default=())
        if _known_size(x, run) >= _LONG:
            return _by_parts(x, run, axes)
    return ops.sum(x, axis=axes, keepdims=True)


def count(x, axes: Sequence[int]):
    """How many entries of x each sum over `axes` adds up, and 1 if none: to divide the sum by.

    A float, or a tensor where the sizes are not known.
    """
    sizes = [ops.shape(x)[axis] for axis in axes]
    if all(isinstance(size, int) for size in sizes):
        return float(max(math.prod(sizes), 1))
    entries = ops.prod(ops.stack([ops.cast(size, x.dtype) for size in sizes]))
    return ops.maximum(entries, 1.0)


def _by_product(x, axes: Sequence[int]):
    size = x.shape[-1]
    factor = 0.5 if size <= _UNROLLED else 1.0
    rows = ops.tensordot(x, ops.full((size,), factor, x.dtype), axes=[[-1], [0]]) / factor
    if len(axes) > 1:
        rows = ops.sum(rows, axis=axes[:-1], keepdims=True)
    return ops.expand_dims(rows, -1)


def _runs(axes: Sequence[int], end: int) -> list[range]:
    """Neighbouring ones among the axes before `end`."""
    runs: list[range] = []
    for axis in (a for a in axes if a < end):
        first = runs.pop().start if runs and runs[-1].stop == axis else axis
        runs.append(range(first, axis + 1))
    return runs


def _known_size(x, run: Sequence[int]) -> int:
    return math.prod(x.shape[axis] or 1 for axis in run)


def _by_parts(x, run: Sequence[int], axes: Sequence[int]):
    """The sum, begun by adding up quarters of a run of the axes."""
    start, others = run[0], len(run) - 1
    sizes = ops.shape(x)
    flat = ops.reshape(x, (*sizes[:start], -1, *sizes[run[-1] + 1 :]))
    part = ops.shape(flat)[start] // _PARTS

    def cut(*limits):
        return flat[(*[slice(None)] * start, slice(*limits))]

    parts = [cut(number * part, (number + 1) * part) for number in range(_PARTS)]
    axes = [a if a <= start else a - others for a in axes if a not in run[1:]]
    result = sum(
        ops.sum(t, axis=axes, keepdims=True)
        for t in (sum(parts[1:], parts[0]), cut(_PARTS * part, None))
    )
    for _ in range(others):
        result = ops.expand_dims(result, start)
    return result


def for_cpu() -> bool:
    """Whether everything takes its form for TensorFlow's XLA for CPUs: it sees nothing else.

    What runs eagerly is not compiled. Whether a graph will be, nothing tells while it is traced.
    """
    assumed = _assumed.get()
    if assumed is not None:
        return assumed == "cpu"
    if keras.backend.backend() != "tensorflow":
        return False  # the XLA that JAX brings is another version, for which neither form is faster
    import tensorflow as tf

    if tf.executing_eagerly():
        return False
    remote = isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)
    return not remote and {d.device_type for d in tf.config.get_visible_devices()} == {"CPU"}
