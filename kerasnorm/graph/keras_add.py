"""Along which axis `keras.ops.add` adds.

On TensorFlow, Keras 3.7 to at least 3.15 turns `ops.add(x, y)` into `tf.nn.bias_add` where all axes
of y but one have length 1: it adds along x's last axis, if that is as long, or else along axis 1,
if that is, whichever axis of y it was.
"""

from __future__ import annotations


def adds_bias_along(axis: int, shape: tuple, size: int | None) -> bool:
    """Whether `ops.add(x, bias)` in Keras adds a bias of this size along this axis for certain."""
    if axis == len(shape) - 1 or size == 1:
        return True
    return shape[-1] not in (None, size) and (axis == 1 or shape[1] not in (None, size))


def is_added_in_place(x: tuple[int | None, ...], y: tuple[int | None, ...]) -> bool:
    """Whether `ops.add` adds along the right axis for certain, given the two shapes."""
    if x == y and None not in x[1:]:
        return True
    long = [axis - len(y) for axis, size in enumerate(y) if size is not None and size > 1]
    if len(long) != 1:  # with more than one it is no bias
        return bool(long) or None not in y
    size = y[long[0]]
    if len(y) <= len(x) and x[long[0]] == size:
        return adds_bias_along(len(x) + long[0], x, size)
    return len(x) < 2 or {None, size}.isdisjoint((x[1], x[-1]))
