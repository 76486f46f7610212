"""Exact moving statistics of BatchNorm layers, in one pass over data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from kerasnorm import keras_private
from kerasnorm.clone.by_config import copy_layer
from kerasnorm.clone.rebuild import rebuild
from kerasnorm.clone.state import build_alike, copy_state
from kerasnorm.errors import DataError, KerasNormError
from kerasnorm.fit.batches import batches_of, to_numbers
from kerasnorm.fit.parts import whole_parts
from kerasnorm.graph.graph import graph_of
from kerasnorm.graph.model_graphs import graphs_of
from kerasnorm.layers import masks
from kerasnorm.layers.batch_norm import BATCH_NORMS
from kerasnorm.math import normalize
from kerasnorm.math.running_moments import RunningMoments


def estimate_statistics(model: keras.Model, data: Any, *, batch_size: int = 32) -> None:
    """Set the moving statistics of every BatchNorm to exact ones over a data set, in place.

    In one pass over the data, each BatchNorm (Keras's or this package's, frozen or not) normalizes
    every batch by the batch's own statistics, as in training, while its inputs' mean and variance
    are summed up over the whole data set; these then become its moving mean and variance.
    Everything else in the model runs as at inference (no dropout), and nothing is trained. Masked
    entries do not count.

    The statistics of a layer that follows no other BatchNorm do not depend on how the data is cut
    into batches. Those of deeper layers are of inputs that were normalized batch by batch, so
    larger batches come closer to what inference will see, and one batch is exact throughout.

    Args:
        model: A built model.
        data: Its inputs: an array, a tuple, list or dictionary of arrays for several inputs, or
            an iterable of batches, such as a `tf.data.Dataset`, where a batch that is a tuple
            counts as (inputs, targets, …).
        batch_size: Of the batches that arrays are cut into. A model that takes batches of one size
            gets such, of any data, and what does not fill one is left out.

    Raises:
        KerasNormError: If the model calls no BatchNorm, if the data is empty, if the inputs of a
            layer are not finite, if a list holds several arrays for a model with one input, or if a
            layer cannot be copied: what is run is a copy of the model.

    Example:

    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    >>> estimate_statistics(model, np.random.normal(5.0, size=(1000, 3)))
    """
    if not isinstance(model, keras.Layer):
        raise KerasNormError(f"A model must be given. Received: {type(model).__name__}.")
    _check_no_list_of_batches(model, data)
    size = graph_of(model).batch_size if keras_private.has_graph(model) else None
    batches = batches_of(data, size or batch_size)
    if size is not None:
        batches = _whole(batches, size)
    first = next(batches, None)
    if first is None:
        few = "hold samples" if size is None else f"fill a batch of the model, {size:,} samples"
        raise DataError(f"The data must {few}. Received none.", model=model.name)
    moments: dict[int, RunningMoments] = {}
    copy, pairs = _copy_of(model, first)
    norms = [pair for pair in pairs if isinstance(pair[0], BATCH_NORMS)]
    for norm, norm_copy in norms:
        norm_copy.call = _summing_call(norm_copy, moments, id(norm))
    for batch in itertools.chain([first], batches):
        copy(batch, training=False)
    if not moments:
        raise KerasNormError(
            "estimate_statistics needs a model that calls a BatchNorm. Received: "
            f"{len(norms)} such layers, none of them called.",
            model=model.name,
        )
    for norm, _ in norms:
        if id(norm) in moments and not np.isfinite(moments[id(norm)].variance).all():
            raise KerasNormError(
                "The inputs of a BatchNorm must be finite to have statistics. Received: "
                "infinities or NaN.",
                model=model.name,
                layer=norm.name,
                hint="Check the data, and the statistics of the layers before.",
            )
    for norm, _ in norms:
        if id(norm) in moments:
            _assign(norm, moments[id(norm)])


def _whole(batches: Iterator[Any], size: int) -> Iterator[Any]:
    """Batches in their structure, all of one size."""
    first = next(batches, None)
    if first is None:
        return
    flat = ([to_numbers(a) for a in tree.flatten(b)] for b in itertools.chain([first], batches))
    for arrays in whole_parts(flat, size):
        yield tree.pack_sequence_as(first, arrays)


def _copy_of(model: keras.Model, inputs: Any) -> tuple[Any, list[tuple[Any, Any]]]:
    """A copy of a model to compute on while the model stays as it is; each layer with its copy."""
    if keras_private.has_graph(model):
        graphs = graphs_of(model)
        rebuilt = rebuild(graphs, {}, compiled=False)
        calls = [call.operation for graph in graphs.graphs.values() for call in graph.calls]
        pairs = {
            id(layer): (layer, rebuilt.copies[id(layer)])
            for layer in calls
            if id(layer) in rebuilt.copies and id(layer) not in graphs.graphs
        }
        copy = rebuilt.model
    else:
        copy = copy_layer(model)
        copy(inputs, training=False)  # builds it
        build_alike(model, copy)
        copy_state(model, copy)
        pairs = {id(model): (model, copy)}
    found = []
    for layer, layer_copy in pairs.values():
        inside, copies = map(keras_private.sublayers, (layer, layer_copy))
        found += [(layer, layer_copy), *zip(inside, copies, strict=True)]
    return copy, found


def _summing_call(layer, moments: dict[int, RunningMoments], key: int):
    def call(inputs, training=None, mask=None):
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        channels = layer.axis % len(x.shape)
        axes = tuple(a for a in range(len(x.shape)) if a != channels)
        weights = None if mask is None else masks.as_weights(mask, x, channels)
        centered, _, variance = normalize.centered_moments(x, axes, weights)
        shape = (1,) * channels + (-1,) + (1,) * (len(x.shape) - 1 - channels)
        gain, bias = (
            None if v is None else ops.reshape(ops.cast(v, x.dtype), shape)
            for v in (layer.gamma, layer.beta)
        )
        moments.setdefault(key, RunningMoments()).add(*moments_in_float64(x, axes, weights))
        y = normalize.affine(centered * ops.rsqrt(variance + layer.epsilon), gain, bias)
        return ops.cast(y, layer.compute_dtype)

    return call


def moments_in_float64(x, axes: tuple[int, ...], weights) -> tuple[Any, Any, Any]:
    """(count, mean, variance) over `axes`, entries of weight 0 left out."""
    wide = ops.convert_to_numpy(x).astype("float64")
    counts = np.ones(wide.shape, bool)
    if weights is not None:
        counts = np.broadcast_to(ops.convert_to_numpy(weights) > 0, wide.shape)
    count = counts.sum(axes)
    safe = np.maximum(count, 1)
    with np.errstate(invalid="ignore"):  # infinities are reported once all is summed
        mean = wide.sum(axes, where=counts) / safe
        deviations = wide - np.expand_dims(mean, axes)
        return count, mean, np.square(deviations).sum(axes, where=counts) / safe


def _check_no_list_of_batches(model: keras.Model, data: Any) -> None:
    inputs = getattr(model, "inputs", None)
    if isinstance(data, (list, tuple)) and inputs and len(inputs) == 1 and len(data) > 1:
        raise KerasNormError(
            "A list stands for the several inputs of a model, and this model has one. Received: "
            f"a {type(data).__name__} of {len(data)}.",
            model=model.name,
            hint="Give one array (numpy.concatenate), or an iterator of batches, iter(batches).",
        )


def _assign(layer, found: RunningMoments) -> None:
    layer.moving_mean.assign(found.mean)
    layer.moving_variance.assign(found.variance)
    if layer.renorm:
        deviation = np.sqrt(found.variance + layer.epsilon)
        layer.moving_stddev.assign(deviation)
        layer.renorm_mean.assign(found.mean)
        layer.renorm_stddev.assign(deviation)
