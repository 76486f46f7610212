"""Our layers as plain Keras layers, wherever that is exact.

1. WeightNorm(layer): the layer with kernel w = g · v / ‖v‖, and its moving mean taken from the
   bias where it keeps one.
2. Affine: EinsumDense with a diagonal kernel, "bhwc,c->bhwc", where nothing beside it takes it in
   (`targets.merge_affine`).
3. BatchNorm: BatchNormalization, weight by weight.
4. LayerNorm: LayerNormalization; for axis="sample", a GroupNormalization of one group. A single
   gain for all becomes as many equal ones.

A rule gets a layer, its calls and the name of the new layer. It gives the replacement, or the
reason why there is none.
"""

from __future__ import annotations

import math
import string
from typing import Any

import keras
import numpy as np

from kerasnorm import keras_private
from kerasnorm.clone.by_config import copy_layer, copy_state
from kerasnorm.clone.rebuild import Replace
from kerasnorm.graph import sites
from kerasnorm.graph.graph import Call
from kerasnorm.layers import Affine, BatchNorm, LayerNorm, WeightNorm, kernels
from kerasnorm.layers.patches import Contraction


def fold_weight_norm(layer: WeightNorm, calls: list[Call], name: str) -> Replace | str:
    return fold_weight_norm_if_exact(layer, calls, name) or "its mean has no place in a bias"


def leave_for_now(layer: Affine, calls: list[Call], name: str) -> None:
    """An Affine waits until it is known what can be merged (`targets.merge_affine`)."""


def fold_weight_norm_if_exact(layer: WeightNorm, calls: list[Call], name: str) -> Replace | None:
    """The wrapped layer with kernel w and, for mean-only batch norm, bias b − moving mean.

    None for `mean_only="layer"`, whose mean is another one for each sample, and where Keras would
    add the bias along another axis.
    """
    inner = layer.layer
    if layer.mean_only == "layer":
        return None
    changes: dict[str, Any] = {"name": name}
    if layer.mean_only and not _bias_lies_right(layer, calls):
        return None
    if layer.mean_only and inner.bias is None:
        if isinstance(inner, keras.layers.EinsumDense):
            letters = kernels.einsum_letters(inner.equation)
            changes["bias_axes"] = "".join(x for x in letters[2] if x in letters[1])
        else:
            changes["use_bias"] = True
    rank = len(calls[0].inputs[0].shape)

    def fill(plain: keras.Layer) -> None:
        if "use_bias" not in changes and "bias_axes" not in changes:
            copy_state(inner, plain)
        weights = layer.normalized_kernels()
        for gain, kernel in kernels.kernels_of(plain).items():
            kernel.variable.assign(weights[gain])
            kernel.variable.trainable = plain.trainable
        if layer.mean_only:
            bias = plain.bias if inner.bias is not None else keras.ops.zeros_like(plain.bias)
            shift = Contraction(plain, rank).units_to_bias(layer.moving_mean)
            plain.bias.assign(bias - shift)

    return Replace(lambda: copy_layer(inner, **changes), fill)


def fold_affine(layer: Affine, calls: list[Call], name: str) -> Replace | str:
    """An Affine as EinsumDense: the channel's letter in kernel and output, contracted nowhere."""
    if any(keras_private.attached_mask(call.output) is not None for call in calls):
        return "it passes on a mask, which EinsumDense would drop"
    shapes = [call.output.shape for call in calls]
    rank = len(shapes[0])
    axis = layer.axis % rank
    if layer.use_bias and not all(
        sites.adds_bias_along(axis, shape, layer.kernel.shape[0]) for shape in shapes
    ):
        return "Keras would add its bias along another axis"
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
            trainable=layer.trainable,
            dtype=layer.dtype_policy,
            name=name,
        )

    def fill(plain: keras.Layer) -> None:
        plain.kernel.assign(layer.kernel)
        if layer.use_bias:
            bias = np.asarray(keras.ops.convert_to_numpy(layer.bias))
            plain.bias.assign(bias.reshape(plain.bias.shape))

    return Replace(make, fill, keywords=frozenset(["inputs"]))


def _bias_lies_right(layer: WeightNorm, calls: list[Call]) -> bool:
    shapes = [call.output.shape for call in calls]
    axis = kernels.channel_axis(layer.layer, len(shapes[0]))
    if axis is None:  # EinsumDense: right where its bias runs along the last axes only
        _, kernel, output = kernels.einsum_letters(layer.layer.equation)
        return output[-1] in kernel and output[-1] in (layer.layer.bias_axes or output)
    size = math.prod(layer.moving_mean.shape)
    return all(sites.adds_bias_along(axis, shape, size) for shape in shapes)


def fold_batch_norm(layer: BatchNorm, calls: list[Call], name: str) -> Replace:
    """Case 3."""
    config = {**layer.get_config(), "name": name}
    return Replace(
        lambda: keras.layers.BatchNormalization.from_config(config),
        lambda plain: copy_state(layer, plain),
    )


def fold_layer_norm(layer: LayerNorm, calls: list[Call], name: str) -> Replace | str:
    """Case 4."""
    rank = len(calls[0].output.shape)
    last_only = layer.axis in (-1, rank - 1, (-1,), [-1])
    if not last_only and any(
        keras_private.attached_mask(call.output) is not None for call in calls
    ):
        return "it leaves masked steps out of its mean"
    config = layer.get_config()
    axis, channel_axis = config.pop("axis"), config.pop("channel_axis")
    del config["scalar_affine"]
    config["name"] = name

    def make() -> keras.Layer:
        if axis == "sample":
            return keras.layers.GroupNormalization(1, axis=channel_axis, **config)
        return keras.layers.LayerNormalization(axis=axis, **config)

    def fill(plain: keras.Layer) -> None:
        for weight in ("gamma", "beta"):
            value = getattr(layer, weight)
            if value is not None:
                target = getattr(plain, weight)
                target.assign(keras.ops.broadcast_to(value, target.shape))

    return Replace(make, fill)


def as_affine(layer: keras.layers.EinsumDense, calls: list[Call], name: str) -> Replace | None:
    """The way back from `fold_affine`."""
    inputs, letter, output = kernels.einsum_letters(layer.equation)
    diagonal = inputs == output and len(letter) == 1 and layer.bias_axes in (None, letter)
    linear = layer.activation is keras.activations.linear
    if not (diagonal and linear and "." not in inputs and sites.has_plain_kernel(layer)):
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
        affine.kernel.assign(layer.kernel)
        if layer.bias is not None:
            affine.bias.assign(keras.ops.reshape(layer.bias, (-1,)))

    return Replace(make, fill)
