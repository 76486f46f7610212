"""Find every BatchNorm call of a model, and what stands in front of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kerasnorm.layers import BatchNorm
from kerasnorm.layers import kernel as kernels
from kerasnorm.rewrite import graph as graphs
from kerasnorm.rewrite.graph import Call, Forest, Graph


@dataclass(frozen=True)
class Statistics:
    """What a BatchNorm computes at inference, in float64: y = γ(x − m)/s + β.

    Attributes:
        scale: γ/s for each channel, where s = sqrt(v + ε).
        shift: β − m·γ/s for each channel.
    """

    scale: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True, eq=False)
class Site:
    """One BatchNorm call.

    Attributes:
        name: Path of the layer, "backbone/bn"; further calls of a layer are "bn#2", "bn#3".
        call: The call.
        graph: The graph that the call is part of.
        axis: The channel axis, counted from 0.
    """

    name: str
    call: Call
    graph: Graph
    axis: int

    @property
    def layer(self) -> keras.Layer:
        return self.call.operation

    @property
    def rank(self) -> int:
        return len(self.call.output.shape)

    @property
    def producer(self) -> Call:
        """The call whose output is normalized."""
        return self.graph.producer(self.call.inputs[0])


@dataclass(frozen=True)
class Hidden:
    """A BatchNorm inside another layer, where no graph shows its calls."""

    name: str
    holder: str


BATCH_NORMS = (keras.layers.BatchNormalization, BatchNorm)


def is_batch_norm(layer: Any) -> bool:
    """Whether a layer is Keras's BatchNormalization or ours, subclasses included."""
    return isinstance(layer, BATCH_NORMS)


def has_known_call(layer: Any) -> bool:
    """Whether a BatchNorm, subclass or not, computes as one of the classes we know."""
    return any(type(layer).call is known.call for known in BATCH_NORMS)


def find_sites(forest: Forest) -> tuple[list[Site], list[Hidden]]:
    """Every BatchNorm call in the graphs of a model, in graph order, and those hidden in layers."""
    sites: list[Site] = []
    hidden: list[Hidden] = []
    for graph in forest.graphs.values():
        path = forest.paths[id(graph.model)]
        times: dict[int, int] = {}
        for call in graph.calls:
            layer = call.operation
            if is_batch_norm(layer):
                count = times[id(layer)] = times.get(id(layer), 0) + 1
                name = path + layer.name + (f"#{count}" if count > 1 else "")
                axis = layer.axis[0] if isinstance(layer.axis, (list, tuple)) else layer.axis
                rank = len(call.output.shape)
                sites.append(Site(name, call, graph, axis % rank))
            elif not graphs.has_graph(layer) and id(layer) not in times:
                times[id(layer)] = 1
                hidden += [
                    Hidden(f"{path}{layer.name}/{inner.name}", layer.name)
                    for inner in graphs.sublayers(layer)
                    if is_batch_norm(inner)
                ]
    return sites, hidden


def statistics(layer: keras.Layer) -> Statistics | str:
    """The affine map a BatchNorm computes at inference, or why it has none."""
    values = {
        name: None if variable is None else np.asarray(variable.numpy(), np.float64)
        for name, variable in (
            ("gamma", layer.gamma),
            ("beta", layer.beta),
            ("moving_mean", layer.moving_mean),
            ("moving_variance", layer.moving_variance),
        )
    }
    for name, value in values.items():
        if value is not None and not np.isfinite(value).all():
            return f"its {name} holds {_count(~np.isfinite(value))} NaN or infinite: retrain it"
    variance = values["moving_variance"] + layer.epsilon
    if (variance <= 0).any():
        return (
            f"its moving_variance + epsilon is not positive for {_count(variance <= 0)}: "
            "re-estimate its statistics"
        )
    gamma = 1.0 if values["gamma"] is None else values["gamma"]
    beta = 0.0 if values["beta"] is None else values["beta"]
    scale = gamma / np.sqrt(variance)
    return Statistics(scale, beta - values["moving_mean"] * scale)


def _count(which: np.ndarray) -> str:
    return f"{int(which.sum())} of {which.size} channels"


@dataclass(frozen=True)
class NoPartner:
    """Why the layer in front of a site cannot take it in."""

    reason: str


def linear_partner(site: Site, forest: Forest) -> Call | NoPartner:
    """The linear layer in front of a BatchNorm that may take it in, or why there is none.

    It must be

    1. a linear layer of the table in `layers.kernel`, not a subclass (its call may do anything),
       neither quantized nor LoRA-enabled,
    2. without an activation between it and the BatchNorm,
    3. read by nothing but the BatchNorm, which passes on the mask it was given,
    4. called once, in all graphs of the model,
    5. of the same compute dtype, and without an activity regularizer, which would see the
       normalized output instead,
    6. with output units along the axis that the BatchNorm normalizes,
    7. with a bias that Keras adds along that axis (see `adds_bias_along`).
    """
    call = site.producer
    layer, tensor = call.operation, site.call.inputs[0]
    if call.is_input:
        return NoPartner("it normalizes an input of the model")
    if has_own_mask(site):
        return NoPartner("it is called with a mask of its own")
    name = f"'{layer.name}' ({type(layer).__name__})"
    for holds, reason in (
        (_is_plain_linear(layer), f"{name} in front of it is no linear layer"),  # 1
        (_is_linear_activation(layer), f"{name} in front of it has an activation"),  # 2
        (
            len(site.graph.consumers(tensor)) == 1 and not site.graph.is_output(tensor),
            f"the output of {name} is used elsewhere too",
        ),  # 3
        (forest.calls[id(layer)] == 1, f"{name} is called more than once"),  # 4
        (
            getattr(layer, "activity_regularizer", None) is None,
            f"{name} has an activity regularizer",
        ),  # 5
        (
            getattr(layer, "compute_dtype", None) == site.layer.compute_dtype,
            f"{name} computes in another dtype",
        ),  # 5
    ):
        if not holds:
            return NoPartner(reason)
    size = np.zeros(site.call.output.shape[site.axis])
    if kernels.per_unit(layer, size, site.axis, site.rank) is None:  # 6
        return NoPartner(f"the output units of {name} do not run along axis {site.axis}")
    if not adds_bias_along(site.axis, site.call.output.shape, size.size):  # 7
        return NoPartner(f"Keras would add the bias of {name} along another axis")
    return call


def adds_bias_along(axis: int, shape: tuple, size: int) -> bool:
    """Whether `ops.add(x, bias)` in Keras adds a bias of this size along this axis for certain.

    On TensorFlow, Keras 3.15 turns the addition of anything that squeezes to one axis into
    `tf.nn.bias_add` along x's last axis, if that has its size, or else along axis 1, if that has,
    whichever axis it was laid along.
    """
    if axis == len(shape) - 1 or size == 1:
        return True
    return shape[-1] not in (None, size) and (axis == 1 or shape[1] not in (None, size))


def has_own_mask(site: Site) -> bool:
    """Whether a call names a mask that is not the one travelling with its input."""
    mask = site.call.kwargs.get("mask")
    return mask is not None and mask is not graphs.attached_mask(site.call.inputs[0])


def has_plain_kernel(layer: Any) -> bool:
    """Whether a layer's kernel is one variable: not quantized, no LoRA factors beside it."""
    quantized = getattr(layer, "quantization_mode", None) is not None
    return not quantized and not getattr(layer, "lora_enabled", False)


def _is_plain_linear(layer: Any) -> bool:
    return kernels.kernel_class(layer) is type(layer) and has_plain_kernel(layer)


def _is_linear_activation(layer) -> bool:
    return getattr(layer, "activation", None) in (None, keras.activations.linear)
