"""The linear layer in front of a BatchNorm that may take it in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import tree

from kerasnorm import keras_private
from kerasnorm.errors import Refusal
from kerasnorm.graph import commute
from kerasnorm.graph.graph import Call
from kerasnorm.graph.keras_add import adds_bias_along
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import Site, is_plain_linear
from kerasnorm.graph.stored_statistics import StoredStatistics
from kerasnorm.layers import kernels


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


def linear_partner(
    site: Site, model_graphs: ModelGraphs, found: StoredStatistics
) -> Partner | Refusal:
    """The linear layer in front of a BatchNorm that may take it in, or why there is none.

    It must be

    1. a linear layer of the table in `layers.kernels`, not a subclass (its call may do anything),
       neither quantized nor LoRA-enabled,
    2. without an activation between it and the BatchNorm, and with nothing else in between but
       what commutes with an affine map (`graph.commute`),
    3. read by nothing but the BatchNorm, which passes on the mask it was given,
    4. called once, in all graphs of the model; and in a layer's own code, which cannot be told to
       use another layer for one of several calls, the BatchNorm must be called once too, and the
       code must be known to call both in this way only (see `ModelGraphs.branches`),
    5. like all in between, of the same compute dtype, and without an activity regularizer, which
       would see the normalized output instead,
    6. with output units along the axis that the BatchNorm normalizes,
    7. with a bias that Keras adds along that axis (see `adds_bias_along`).
    """
    if has_own_mask(site.call):
        return Refusal("it is called with a mask of its own")
    code = _code_around(site, model_graphs)
    if code is not None:  # 4
        return code
    tensor, axis, commuted = site.call.inputs[0], site.axis, []
    while True:
        call = site.graph.producer(tensor)
        layer = call.operation
        if call.is_input:
            inside = site.graph is not model_graphs.root
            owner = f"'{site.graph.owner.name}'" if inside else "the model"
            return Refusal(f"it normalizes an input of {owner}")
        between = commute.commutes(call)
        if not between and not is_plain_linear(layer):  # 1
            is_linear = kernels.kernel_class(layer) is type(layer)
            what = kernels.form_of_kernel(layer) if is_linear else "no linear layer"
            return Refusal(f"{_called(layer)} in front of it is {what}")
        if len(site.graph.consumers(tensor)) > 1 or site.graph.is_output(tensor):  # 3
            return Refusal(f"the output of {_called(layer)} is used elsewhere too")
        if not between:
            break
        if layer.compute_dtype != site.layer.compute_dtype:  # 5
            return Refusal(f"{_called(layer)} computes in another dtype")
        trains = call in model_graphs.trained
        if layer.activity_regularizer is not None:  # 5
            return Refusal(f"{_called(layer)} has an activity regularizer")
        obstacle = commute.obstacle(call, axis, found.scale, found.shift, trains=trains)  # 2
        if obstacle is not None:
            return obstacle
        axis = commute.axis_before(call, axis)
        tensor = call.inputs[0]
        commuted.append(call)
    if commuted and site.layer.activity_regularizer is not None:  # 5
        return Refusal("its activity regularizer has to stay where it is")
    across = tuple(model_graphs.path(site.graph, c.operation) for c in commuted)
    path = model_graphs.path(site.graph, layer)
    partner = Partner(call, axis, path, tuple(commuted), across)
    return _unfit(partner, site, model_graphs) or partner


def _code_around(site: Site, model_graphs: ModelGraphs) -> Refusal | None:
    """Why code that calls a BatchNorm may need it apart from the layer in front."""
    if site.graph.is_code and model_graphs.calls[id(site.layer)] > 1:
        return Refusal("the code around it calls it more than once")
    branch = model_graphs.branches.get(id(site.graph.owner))
    return None if branch is None else Refusal(branch)


def _unfit(partner: Partner, site: Site, model_graphs: ModelGraphs) -> Refusal | None:
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
            return Refusal(reason)
    if kernels.per_unit(layer, np.zeros(size), partner.axis, partner.rank) is None:  # 6
        return Refusal(f"the output units of {name} do not run along axis {partner.axis}")
    if not adds_bias_along(partner.axis, partner.call.output.shape, size):  # 7
        return Refusal(f"Keras would add the bias of {name} along another axis")
    return None


def _called(layer: Any) -> str:
    return f"'{layer.name}' ({type(layer).__name__})"


def has_own_mask(call: Call) -> bool:
    """Whether a call names a mask that is not the one travelling with its input.

    A copy of a model computes once more, and names, the masks that travel with its tensors.
    """
    mask = call.kwargs.get("mask")
    return mask is not None and not _is_same(mask, keras_private.attached_mask(call.inputs[0]))


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are one, or computed alike from the same tensors by `keras.ops`."""
    if not all(isinstance(value, keras.KerasTensor) for value in (one, other)):
        return type(one) is type(other) and bool(np.array_equal(one, other))
    if one is other:
        return True
    a, b = keras_private.node_of(one), keras_private.node_of(other)
    if a.is_input or b.is_input or isinstance(a.operation, keras.Layer):
        return False
    alike = type(a.operation) is type(b.operation) and _settings(a) == _settings(b)
    values = [tree.flatten((n.arguments.args, n.arguments.kwargs)) for n in (a, b)]
    places = [[id(t) for t in n.output_tensors].index(id(t)) for n, t in ((a, one), (b, other))]
    return (
        alike
        and places[0] == places[1]
        and len(values[0]) == len(values[1])
        and all(map(_is_same, *values))
    )


def _settings(node: Any) -> dict[str, Any]:
    own = vars(node.operation).items()
    return {name: value for name, value in own if name[0] != "_" and name != "name"}


def _is_linear_activation(layer) -> bool:
    return getattr(layer, "activation", None) in (None, keras.activations.linear)
