"""Find every BatchNorm call of a model, and what stands in front of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kerasnorm import keras_private
from kerasnorm.graph import commute
from kerasnorm.graph.graph import Call, Graph
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.layers import kernels
from kerasnorm.layers.batch_norm import BATCH_NORMS


@dataclass(frozen=True)
class Statistics:
    """What a BatchNorm computes at inference, in float64: y = γ(x − m)/s + β.

    Attributes, one entry for each channel:
        scale: a = γ/s, where s = sqrt(v + ε).
        shift: c = β − m·γ/s.
        beta: β.
        mean: m.
        variance: v.
    """

    scale: np.ndarray
    shift: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


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
class OpaqueBatchNorm:
    """A BatchNorm inside another layer, none of whose calls is seen."""

    name: str
    reason: str


def is_batch_norm(layer: Any) -> bool:
    """Whether a layer is Keras's BatchNormalization or ours, subclasses included."""
    return isinstance(layer, BATCH_NORMS)


def has_known_call(layer: Any) -> bool:
    """Whether a BatchNorm, subclass or not, computes as one of the classes we know."""
    return any(type(layer).call is known.call for known in BATCH_NORMS)


def holds_batch_norm(layer: keras.Layer) -> bool:
    """Whether there is a BatchNorm inside a layer."""
    return any(is_batch_norm(inner) for inner in keras_private.sublayers(layer))


def find_sites(model_graphs: ModelGraphs) -> tuple[list[Site], list[OpaqueBatchNorm]]:
    """Every BatchNorm call in the graphs of a model, in graph order, and those not seen."""
    names: Counter[str] = Counter()

    def unique(name: str) -> str:
        names[name] += 1
        return name + (f"#{names[name]}" if names[name] > 1 else "")

    sites: list[Site] = []
    for graph in model_graphs.graphs.values():
        for call in graph.calls:
            layer = call.operation
            if is_batch_norm(layer):
                axis = layer.axis[0] if isinstance(layer.axis, (list, tuple)) else layer.axis
                rank = len(call.output.shape)
                sites.append(
                    Site(unique(model_graphs.path(graph, layer)), call, graph, axis % rank)
                )
    seen = {id(site.layer) for site in sites}
    opaque: list[OpaqueBatchNorm] = []
    for holder, path, reason in _opaque_layers(model_graphs):
        for inner in keras_private.sublayers(holder):
            if is_batch_norm(inner) and id(inner) not in seen:
                seen.add(id(inner))
                opaque.append(OpaqueBatchNorm(unique(f"{path}{inner.name}"), reason))
    return sites, opaque


def _opaque_layers(model_graphs: ModelGraphs) -> Iterator[tuple[keras.Layer, str, str]]:
    """(layer, path in front of its own layers, why no call of a BatchNorm in it is seen)."""
    for graph in model_graphs.graphs.values():
        for call in graph.calls:
            layer = call.operation
            if id(layer) not in model_graphs.graphs:
                why = model_graphs.opaque.get(id(layer), "it was not opened")
                path = f"{model_graphs.path(graph, layer)}/"
                yield layer, path, f"it is inside '{layer.name}': {why}"
    for graph in model_graphs.graphs.values():
        if graph.is_code:
            path = model_graphs.paths[id(graph.owner)]
            yield graph.owner, path, f"no call of it is seen in the code of '{graph.owner.name}'"


def statistics(layer: keras.Layer) -> Statistics | str:
    """The affine map a BatchNorm computes at inference, or why it has none."""
    values: dict[str, Any] = {
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
    mean, spread = values["moving_mean"], values["moving_variance"]
    gamma = np.ones_like(mean) if values["gamma"] is None else values["gamma"]
    beta = np.zeros_like(mean) if values["beta"] is None else values["beta"]
    scale = gamma / np.sqrt(variance)
    return Statistics(scale, beta - mean * scale, beta, mean, spread)


def _count(which: np.ndarray) -> str:
    return f"{int(which.sum())} of {which.size} channels"


@dataclass(frozen=True)
class NoPartner:
    """Why no layer in front of a site can take it in."""

    reason: str


@dataclass(frozen=True, eq=False)
class Partner:
    """The linear layer that may take a BatchNorm in.

    Attributes:
        call: Its call.
        axis: The axis of its output that the BatchNorm's channels run along.
        path: Its path in the model.
        commuted: The calls in between, which the BatchNorm's affine map may cross.
        paths_across: The paths of the layers in between.
    """

    call: Call
    axis: int
    path: str
    commuted: tuple[Call, ...] = ()
    paths_across: tuple[str, ...] = ()

    @property
    def layer(self) -> Any:
        return self.call.operation

    @property
    def rank(self) -> int:
        """How many axes its output has."""
        return len(self.call.output.shape)


def linear_partner(site: Site, model_graphs: ModelGraphs, found: Statistics) -> Partner | NoPartner:
    """The linear layer in front of a BatchNorm that may take it in, or why there is none.

    It must be

    1. a linear layer of the table in `layers.kernels`, not a subclass (its call may do anything),
       neither quantized nor LoRA-enabled,
    2. without an activation between it and the BatchNorm, and with nothing else in between but
       what an affine map may cross (`graph.commute`),
    3. read by nothing but the BatchNorm, which passes on the mask it was given,
    4. called once, in all graphs of the model; and in a layer's own code, which cannot be told to
       use another layer for one of several calls, the BatchNorm must be called once too,
    5. of the same compute dtype, and without an activity regularizer, which would see the
       normalized output instead,
    6. with output units along the axis that the BatchNorm normalizes,
    7. with a bias that Keras adds along that axis (see `adds_bias_along`).
    """
    if has_own_mask(site):
        return NoPartner("it is called with a mask of its own")
    if site.graph.is_code and model_graphs.calls[id(site.layer)] > 1:  # 4
        return NoPartner("the code around it calls it more than once")
    tensor, axis, commuted = site.call.inputs[0], site.axis, []
    while True:
        call = site.graph.producer(tensor)
        layer = call.operation
        if call.is_input:
            return NoPartner("it normalizes an input of the model")
        between = commute.commutes(call)
        if not between and not is_plain_linear(layer):  # 1
            return NoPartner(f"{_called(layer)} in front of it is no linear layer")
        if len(site.graph.consumers(tensor)) > 1 or site.graph.is_output(tensor):  # 3
            return NoPartner(f"the output of {_called(layer)} is used elsewhere too")
        if not between:
            break
        if layer.compute_dtype != site.layer.compute_dtype:  # 5
            return NoPartner(f"{_called(layer)} computes in another dtype")
        obstacle = commute.obstacle(call, axis, found.scale, found.shift)  # 2
        if obstacle:
            return NoPartner(obstacle)
        axis = commute.axis_before(call, axis)
        tensor = call.inputs[0]
        commuted.append(call)
    if commuted and site.layer.activity_regularizer is not None:  # 5
        return NoPartner("its activity regularizer has to stay where it is")
    across = tuple(model_graphs.path(site.graph, c.operation) for c in commuted)
    path = model_graphs.path(site.graph, layer)
    partner = Partner(call, axis, path, tuple(commuted), across)
    reason = _unfit(partner, site, model_graphs)
    return NoPartner(reason) if reason else partner


def _unfit(partner: Partner, site: Site, model_graphs: ModelGraphs) -> str | None:
    """Why a layer cannot take in the BatchNorm that follows it."""
    layer, size = partner.layer, site.call.output.shape[site.axis]
    name = _called(layer)
    for holds, reason in (
        (_is_linear_activation(layer), f"{name} in front of it has an activation"),  # 2
        (model_graphs.calls[id(layer)] == 1, f"{name} is called more than once"),  # 4
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
            return reason
    if kernels.per_unit(layer, np.zeros(size), partner.axis, partner.rank) is None:  # 6
        return f"the output units of {name} do not run along axis {partner.axis}"
    if not adds_bias_along(partner.axis, partner.call.output.shape, size):  # 7
        return f"Keras would add the bias of {name} along another axis"
    return None


def _called(layer: Any) -> str:
    return f"'{layer.name}' ({type(layer).__name__})"


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
    return mask is not None and mask is not keras_private.attached_mask(site.call.inputs[0])


def has_plain_kernel(layer: Any) -> bool:
    """Whether a layer's kernel is one variable: not quantized, no LoRA factors beside it."""
    quantized = getattr(layer, "quantization_mode", None) is not None
    return not quantized and not getattr(layer, "lora_enabled", False)


def is_plain_linear(layer: Any) -> bool:
    """Whether a layer is of a linear class of the table itself, its kernel one variable."""
    return kernels.kernel_class(layer) is type(layer) and has_plain_kernel(layer)


def _is_linear_activation(layer) -> bool:
    return getattr(layer, "activation", None) in (None, keras.activations.linear)
