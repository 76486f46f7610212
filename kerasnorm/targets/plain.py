"""Affine and BatchNorm as plain Keras layers, and back, wherever that is exact.

1. Affine: Rescaling with a scale and an offset for each channel, where nothing beside it takes it
   in (`targets.merge_affine`). Its constants are of the whole rank, (1, 1, 1, C), so that any axis
   is right; it takes any sizes, passes masks on, and is one multiplication and one addition in any
   runtime, which converters quantize as they do those of a convolution.

   a. In 16 bits it computes in float32, as Affine does, and an Identity casts what it gives.
   b. Where a call names a mask of its own, a TimeDistributed(Identity) takes that.
   c. Keras's setting `image_data_format="channels_first"` has Rescaling lay out a scale of fewer
      than three axes along the wrong ones: vectors get a diagonal EinsumDense there.
2. BatchNorm: BatchNormalization, weight by weight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container

import keras
import numpy as np

from kerasnorm import keras_private
from kerasnorm.clone.edits import Replace
from kerasnorm.clone.state import assign_copy, copy_state
from kerasnorm.errors import Refusal
from kerasnorm.graph.graph import Call
from kerasnorm.layers import Affine, BatchNorm, kernels

_WIDE = ("float32", "float64")


def drop_penalties(layer: keras.Layer, kept: tuple[str, ...]) -> None:
    """Take the regularizers and constraints off a new, unbuilt layer that gets other weights.

    They meant the weights of its source.

    Args:
        layer: The layer; those in it count too.
        kept: How the names of arguments begin that go on meaning the same.
    """
    for part in (layer, *keras_private.sublayers(layer)):
        for name in list(vars(part)):
            if name.endswith(("_regularizer", "_constraint")) and not name.startswith(kept):
                setattr(part, name, None)


def leave_for_now(layer: Affine, calls: list[Call], name: str) -> None:
    """An Affine waits until it is known what can be merged (`targets.merge_affine`)."""


def fold_affine(
    layer: Affine, calls: list[Call], name: str, masked: Container[int] = ()
) -> Replace | Refusal:
    """An Affine as Rescaling (case 1).

    Args:
        layer, calls, name: See `targets.target.Fold`.
        masked: The `id` of what those calls give that name a mask of their own, one that does not
            travel with their input.
    """
    ranks = {len(call.output.shape) for call in calls}
    if len(ranks) > 1 and layer.axis != -1:
        return Refusal("its inputs differ in how many axes they have")
    rank = min(ranks)
    own_masks = any(id(call.output) in masked for call in calls)
    if own_masks and rank < 3:
        return Refusal("it is called on vectors with a mask of its own")
    if rank < 3 and keras.config.image_data_format() == "channels_first":
        return _as_einsum(layer, name)
    shape = [1] * rank
    shape[layer.axis] = -1
    narrow = layer.compute_dtype not in _WIDE
    after: Callable[[], keras.Layer] | None = None
    if own_masks:
        after = functools.partial(_passing_a_mask, layer, name)
    elif narrow:
        after = functools.partial(_last, keras.layers.Identity, layer, name)

    def constant(weight: keras.Variable) -> np.ndarray:
        dtype = "float32" if narrow else layer.compute_dtype
        return np.array(keras.ops.convert_to_numpy(weight), dtype).reshape(shape)

    def make() -> keras.Layer:
        return keras.layers.Rescaling(
            constant(layer.kernel),
            0.0 if layer.bias is None else constant(layer.bias),
            activity_regularizer=None if after else layer.activity_regularizer,
            dtype="float32" if narrow else layer.dtype_policy,
            name=f"{name}_map" if after else name,
        )

    if after is None:
        return Replace(make, _nothing)
    return Replace(after, _nothing, first=Replace(make, _nothing))


def _nothing(new: keras.Layer) -> None:
    """There are no weights to fill."""


def _last(kind: type, layer: Affine, name: str) -> keras.Layer:
    return kind(
        activity_regularizer=layer.activity_regularizer, dtype=layer.compute_dtype, name=name
    )


def _passing_a_mask(layer: Affine, name: str) -> keras.Layer:
    return keras.layers.TimeDistributed(
        keras.layers.Identity(dtype=layer.compute_dtype),
        activity_regularizer=layer.activity_regularizer,
        dtype=layer.compute_dtype,
        name=name,
    )


def _as_einsum(layer: Affine, name: str) -> Replace:
    """An Affine of vectors as EinsumDense with a diagonal kernel."""

    def make() -> keras.Layer:
        return keras.layers.EinsumDense(
            "ab,b->ab",
            output_shape=layer.kernel.shape,
            bias_axes="b" if layer.use_bias else None,
            activity_regularizer=layer.activity_regularizer,
            trainable=layer.trainable,
            dtype=layer.dtype_policy,
            name=name,
        )

    def fill(plain: keras.Layer) -> None:
        assign_copy(plain.kernel, layer.kernel)
        if layer.use_bias:
            assign_copy(plain.bias, layer.bias)

    return Replace(make, fill, keywords=frozenset(["inputs"]))


def fold_batch_norm(layer: BatchNorm, calls: list[Call], name: str) -> Replace:
    """A BatchNorm as BatchNormalization."""
    config = {**layer.get_config(), "name": name}
    return Replace(
        lambda: keras.layers.BatchNormalization.from_config(config),
        lambda plain: copy_state(layer, plain),
    )


def unfold_affine(layer: keras.layers.EinsumDense, calls: list[Call], name: str) -> Replace | None:
    """The way back from an EinsumDense with a diagonal kernel."""
    inputs, letter, output = kernels.einsum_letters(layer.equation)
    diagonal = inputs == output and len(letter) == 1 and layer.bias_axes in (None, letter)
    linear = layer.activation is keras.activations.linear
    if not (diagonal and linear and "." not in inputs and kernels.has_plain_kernel(layer)):
        return None

    def make() -> keras.Layer:
        return Affine(
            axis=inputs.index(letter),
            use_bias=layer.bias is not None,
            trainable=layer.trainable,
            dtype=layer.dtype_policy,
            name=name,
        )

    def fill(affine: keras.Layer) -> None:
        assign_copy(affine.kernel, layer.kernel)
        if layer.bias is not None:
            assign_copy(affine.bias, keras.ops.reshape(layer.bias, (-1,)))

    return Replace(make, fill)
