"""Affine and BatchNorm as plain Keras layers, and back, wherever that is exact.

1. Affine: EinsumDense with a diagonal kernel, "bhwc,c->bhwc", where nothing beside it takes it in
   (`targets.merge_affine`).
2. BatchNorm: BatchNormalization, weight by weight.
"""

from __future__ import annotations

import string

import keras
import numpy as np

from kerasnorm import keras_private
from kerasnorm.clone.edits import Replace
from kerasnorm.clone.state import assign_copy, copy_state
from kerasnorm.errors import Refusal
from kerasnorm.graph.graph import Call
from kerasnorm.graph.linear_partner import adds_bias_along
from kerasnorm.layers import Affine, BatchNorm, kernels


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


def fold_affine(layer: Affine, calls: list[Call], name: str) -> Replace | Refusal:
    """An Affine as EinsumDense: the channel's letter in kernel and output, contracted nowhere."""
    if any(keras_private.attached_mask(call.output) is not None for call in calls):
        return Refusal("it passes on a mask, which EinsumDense would drop")
    shapes = [call.output.shape for call in calls]
    rank = len(shapes[0])
    if any(len(shape) != rank for shape in shapes):
        return Refusal("its inputs differ in how many axes they have")
    axis = layer.axis % rank
    if layer.use_bias and not all(
        adds_bias_along(axis, shape, layer.kernel.shape[0]) for shape in shapes
    ):
        return Refusal("Keras would add its bias along another axis")
    # Every axis has its letter: with "..." Keras 3.15 infers height and width the wrong way round.
    letters = string.ascii_lowercase[:rank]
    letter = letters[axis]
    equation = f"{letters},{letter}->{letters}"
    # Sizes have to be named, or the layers behind it would not know them.
    output_shape = tuple(
        sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True)
    )[1:]

    def make() -> keras.Layer:
        return keras.layers.EinsumDense(
            equation,
            output_shape=output_shape,
            bias_axes=letter if layer.use_bias else None,
            kernel_regularizer=layer.kernel_regularizer,
            bias_regularizer=layer.bias_regularizer,
            kernel_constraint=layer.kernel_constraint,
            bias_constraint=layer.bias_constraint,
            activity_regularizer=layer.activity_regularizer,
            trainable=layer.trainable,
            dtype=layer.dtype_policy,
            name=name,
        )

    def fill(plain: keras.Layer) -> None:
        assign_copy(plain.kernel, layer.kernel)
        if layer.use_bias:
            bias = np.asarray(keras.ops.convert_to_numpy(layer.bias))
            plain.bias.assign(bias.reshape(plain.bias.shape))

    return Replace(make, fill, keywords=frozenset(["inputs"]))


def fold_batch_norm(layer: BatchNorm, calls: list[Call], name: str) -> Replace:
    """A BatchNorm as BatchNormalization."""
    config = {**layer.get_config(), "name": name}
    return Replace(
        lambda: keras.layers.BatchNormalization.from_config(config),
        lambda plain: copy_state(layer, plain),
    )


def unfold_affine(layer: keras.layers.EinsumDense, calls: list[Call], name: str) -> Replace | None:
    """The way back from `fold_affine`."""
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
