"""`data_init`: the data-dependent start of weight normalization."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kerasnorm.errors import KerasNormError
from kerasnorm.layers import kernels
from kerasnorm.layers.patches import Contraction
from kerasnorm.layers.weight_norm import WeightNorm, watching_calls
from kerasnorm.math import normalize
from kerasnorm.math.running_moments import RunningMoments


def data_init(model: keras.Model, batch: Any) -> list[str]:
    """Start every WeightNorm layer so that its pre-activations are standardized on a batch.

    With t = v·x / ‖v‖ the pre-activation of a unit, and μ, σ its mean and deviation over the
    batch and all positions,

        g ← 1 / σ,    b ← −μ / σ

    layer after layer in the order in which the model calls them, each on what the layers before
    it, already started, put out. A layer that is called several times (shared, or inside
    `TimeDistributed`) is started on all its calls together, each position of each call counting
    the same. Masked steps do not count, as with `mean_only="batch"`. Recurrent layers and
    Embedding, which have no single pre-activation, stay as they are; so do layers without a bias
    but for their g. With `mean_only="batch"` the moving mean becomes μ / σ, and the bias 0.

    Args:
        model: A built model that holds WeightNorm layers, at any depth.
        batch: One batch of its inputs, as the model is called with.

    Returns:
        The names of the layers that were started, in order.

    Raises:
        KerasNormError: If no WeightNorm layer is called, if the model calls other layers in one run
            than in another, if a pre-activation is not finite, if an EinsumDense has a bias that
            does not run along its output units, or if a layer has `mean_only="layer"` (the mean
            over the units would undo the start of each) or a `call` of its own.

    Warns:
        UserWarning: If a unit has the same pre-activation for the whole batch: its g is left.

    Example:

    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), WeightNorm(keras.layers.Dense(4))])
    >>> names = data_init(model, np.random.normal(size=(64, 8)))

    Reference: Salimans & Kingma, 2016, section 3, https://arxiv.org/abs/1602.07868
    """
    if not isinstance(model, keras.Layer):
        raise KerasNormError(f"A model must be given. Received: {type(model).__name__}.")
    counts: dict[int, int] = {}
    _watch(model, batch, lambda layer, *_: counts.update({id(layer): counts.get(id(layer), 0) + 1}))
    if not counts:
        raise KerasNormError(
            "data_init needs a model that calls a WeightNorm layer around a linear layer.",
            model=model.name,
        )
    started: list[WeightNorm] = []
    while len(started) < len(counts):
        before = len(started)
        held: list[tuple[WeightNorm, list[tuple[Any, Any]]]] = []

        def start(layer, inputs, mask, held=held):
            if layer in started:
                return
            if id(layer) not in counts:
                raise _calls_others(model, f"'{layer.name}', which it did not call before")
            if held:  # what follows a layer still to be started has to wait for the next round
                if held[0][0] is layer:
                    held[0][1].append((inputs, mask))
            elif counts[id(layer)] == 1:
                _start(model, layer, [(inputs, mask)])
                started.append(layer)
            else:
                held.append((layer, [(inputs, mask)]))

        _watch(model, batch, start)
        for layer, calls in held:
            _start(model, layer, calls)
            started.append(layer)
        if len(started) == before:
            raise _calls_others(
                model, f"{len(counts) - before} layer(s) that it called before only"
            )
    return [layer.name for layer in started]


def _calls_others(model: keras.Model, received: str) -> KerasNormError:
    return KerasNormError(
        "data_init runs a model several times, and each run has to call the same layers. "
        f"Received {received}.",
        model=model.name,
        hint="Call data_init while what the model draws at random is fixed.",
    )


def _watch(model: keras.Model, batch: Any, report: Callable[[WeightNorm, Any, Any], None]) -> None:
    """Run the model and report every call of a linear WeightNorm layer before it happens."""

    refusals: list[KerasNormError] = []

    def watcher(layer, inputs, mask):
        if kernels.kernel_class(layer.layer) is None:
            return
        try:
            report(layer, inputs, mask)
        except KerasNormError as refusal:
            refusals.append(refusal)
            raise

    try:
        with watching_calls(watcher):
            model(batch, training=False)
    except Exception:
        if refusals:  # as it was raised: Keras makes its own of what a call raises
            raise refusals[0] from None
        raise


def _start(model: keras.Model, layer: WeightNorm, calls: list[tuple[Any, Any]]) -> None:
    if layer.mean_only == "layer":
        raise KerasNormError(
            "data_init cannot start a layer whose pre-activations lose their mean over the units. "
            "Received: mean_only='layer'.",
            model=model.name,
            layer=layer.name,
            hint="Leave data_init out, or use mean_only=None or 'batch'.",
        )
    if kernels.overridden(layer.layer):
        raise KerasNormError(
            "data_init computes the pre-activations of a layer itself, and would not use the "
            f"`{kernels.overridden(layer.layer)}` of {type(layer.layer).__name__}.",
            model=model.name,
            layer=layer.name,
            hint="Leave data_init out: the layer then computes what it did before wrapping.",
        )
    contraction = Contraction(layer.layer, len(calls[0][0].shape))
    bias = layer.layer.bias
    if bias is not None and contraction.bias_to_units(bias) is None:
        raise KerasNormError(
            "data_init needs a bias with one value per output unit. Received: bias_axes="
            f"'{layer.layer.bias_axes}' for equation '{layer.layer.equation}'.",
            model=model.name,
            layer=layer.name,
        )
    mean, variance = _moments(layer, calls)
    if not bool(ops.all(ops.isfinite(variance))):
        raise KerasNormError(
            "The pre-activations must be finite on the batch. Received: infinities or NaN.",
            model=model.name,
            layer=layer.name,
            hint="Check the batch, and scale its inputs to about 1.",
        )
    constant = variance <= 1e-12 * ops.square(mean) + 1e-30
    if bool(ops.any(constant)):
        warnings.warn(
            f"data_init: {int(ops.sum(ops.cast(constant, 'int32')))} unit(s) of WeightNorm "
            f"'{layer.name}' have the same pre-activation for the whole batch, so that no gain "
            "gives it variance 1. Their g is left as it was.",
            stacklevel=3,
        )
    old = ops.cast(layer.g, mean.dtype)
    gain = ops.where(constant, old, ops.rsqrt(ops.where(constant, 1.0, variance)))
    layer.g.assign(ops.cast(gain, layer.g.dtype))
    if layer.mean_only == "batch":
        layer.moving_mean.assign(ops.cast(gain * mean, layer.moving_mean.dtype))
    if bias is not None:
        start = ops.zeros_like(mean) if layer.mean_only == "batch" else -gain * mean
        bias.assign(ops.cast(contraction.units_to_bias(start), bias.dtype))


def _moments(layer: WeightNorm, calls: list[tuple[Any, Any]]):
    """Mean and variance of t = v·x / ‖v‖ per unit over all calls, in the shape of the gains."""
    merged = RunningMoments()
    for inputs, mask in calls:
        contraction = Contraction(layer.layer, len(inputs.shape))
        t = layer.pre_activation(inputs, unit_gain=True)
        units = contraction.unit_axes_of_output()
        others = tuple(a for a in range(len(t.shape)) if a not in units)
        weights = contraction.weights_of_output(mask, t)
        _, mean, variance = normalize.centered_moments(t, others, weights)
        counted = ops.ones_like(t) if weights is None else ops.broadcast_to(weights, ops.shape(t))
        count = ops.sum(counted, axis=others, keepdims=True)
        merged.add(
            *(
                ops.convert_to_numpy(contraction.output_to_units(value)).astype("float64")
                for value in (count, mean, variance)
            )
        )
    dtype = keras.backend.result_type(layer.variable_dtype, "float32")
    return ops.cast(merged.mean, dtype), ops.cast(merged.variance, dtype)
