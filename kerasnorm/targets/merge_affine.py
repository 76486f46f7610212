"""An Affine merged into the plain linear layers beside it, wherever that is exact.

With y = a·x + c, one of a and c per channel:

1. Behind a linear layer x = W·u + b₀ of its own, as a BatchNorm is (`targets.fold_into`).
2. In front of linear layers z = W·y + b₀ only, each called once, W's inputs scaled:

       z = (W·a)·x + (b₀ + W·c).

   a. Dense, EinsumDense, and the convolutions, depthwise and separable ones included, where the
      channels are the axis that is contracted.
   b. W·c is one number per output unit only where every output sees all of the kernel: zeros that
      a convolution pads with are not shifted. With padding other than "valid", and for the
      transposes, whose outputs see different parts of the kernel, c must be 0 (a kernel of size 1
      sees all or nothing of itself: there "same" and "causal" do not pad).

What penalizes or constrains a weight that changes is left out. The arithmetic is done in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kerasnorm.clone.by_config import copy_layer
from kerasnorm.clone.edits import Replace, Skip
from kerasnorm.clone.state import assign_copy, copy_state
from kerasnorm.errors import Refusal
from kerasnorm.graph.graph import Call, Graph
from kerasnorm.graph.keras_add import adds_bias_along
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import Site, is_plain_linear
from kerasnorm.graph.stored_statistics import StoredStatistics
from kerasnorm.layers import Affine, kernels
from kerasnorm.targets import fold_into
from kerasnorm.targets.fold_into import float64
from kerasnorm.targets.plain import drop_penalties
from kerasnorm.targets.plan import name_alone, name_of_partner, names_output
from kerasnorm.targets.target import Edits

_layers = keras.layers
_CONVS = (_layers.Conv1D, _layers.Conv2D, _layers.Conv3D)
_DEPTHWISE = (_layers.DepthwiseConv1D, _layers.DepthwiseConv2D)
_SEPARABLE = (_layers.SeparableConv1D, _layers.SeparableConv2D)
_TRANSPOSES = (_layers.Conv1DTranspose, _layers.Conv2DTranspose, _layers.Conv3DTranspose)
# Affine computes in float32 at least: its gains may be too large for the kernels of other dtypes.
_DTYPES = ("float32", "float64")


@dataclass(frozen=True, eq=False)
class Merge:
    """An Affine that the linear layers beside it take in.

    Attributes:
        affine: Its call.
        edits: What to do with it, with the layers that take it in, and with nothing else.
        partners: The calls of these layers.
        graph: The graph that all of them are in.
        gone: The tensors whose values no tensor of the copy has.
        across: The calls in between, the one next to the Affine first.
    """

    affine: Call
    edits: Edits
    partners: tuple[Call, ...]
    graph: Graph
    gone: tuple[Any, ...]
    across: tuple[Call, ...] = ()

    @property
    def is_behind(self) -> bool:
        """Whether the layers that take it in are those behind it (case 2)."""
        return self.gone[0] is self.affine.output


def merges(model_graphs: ModelGraphs) -> list[Merge]:
    """What can be merged at once; no layer takes in two maps."""
    found: list[Merge] = []
    taken: set[Call] = set()
    for graph in model_graphs.graphs.values():
        for call in graph.calls:
            layer = call.operation
            once = type(layer) is Affine and model_graphs.calls[id(layer)] == 1
            if once and layer.activity_regularizer is None and layer.compute_dtype in _DTYPES:
                merge = _in_front(graph, call, model_graphs) or _behind(graph, call, model_graphs)
                if merge is not None and taken.isdisjoint(merge.edits):
                    taken.update(merge.edits)
                    found.append(merge)
    return found


def _map_of(layer: Affine) -> StoredStatistics:
    a = float64(layer.kernel)
    c = np.zeros_like(a) if layer.bias is None else float64(layer.bias)
    zeros, ones = np.zeros_like(a), np.ones_like(a)
    return StoredStatistics(a, c, c, zeros, ones, ones)


def _in_front(graph: Graph, call: Call, model_graphs: ModelGraphs) -> Merge | None:
    """Case 1."""
    layer, found = call.operation, _map_of(call.operation)
    site = Site(layer.name, call, graph, layer.axis % len(call.output.shape))
    partner = fold_into.partner_of(site, model_graphs, found)
    if isinstance(partner, Refusal):
        return None
    name = name_of_partner(site, partner, model_graphs)
    named = partner.commuted and names_output(site, model_graphs)
    edits = {
        partner.call: fold_into.with_map_folded_in(partner, found, name),
        call: name_alone(site) if named else Skip(into=name),
    }
    crossed = (partner.call, *partner.commuted)
    gone = tuple(c.output for c in crossed)
    return Merge(call, edits, (partner.call,), graph, gone, partner.commuted)


def _behind(graph: Graph, call: Call, model_graphs: ModelGraphs) -> Merge | None:
    """Case 2."""
    affine, readers = call.operation, graph.consumers(call.output)
    if graph.is_output(call.output) or not readers or id(graph.owner) in model_graphs.branches:
        return None
    axis, found = affine.axis % len(call.output.shape), _map_of(affine)
    taken: Edits = {}
    for reader in readers:
        layer = reader.operation
        if not is_plain_linear(layer) or type(layer) is Affine or len(reader.inputs) != 1:
            return None
        if model_graphs.calls[id(layer)] != 1 or layer.compute_dtype != affine.compute_dtype:
            return None
        edit = _taking_in(layer, reader, axis, found)
        if edit is None:
            return None
        taken[reader] = edit
    edits = {**taken, call: Skip(into=readers[0].operation.name)}
    return Merge(call, edits, tuple(readers), graph, (call.output,))


def _taking_in(layer: Any, call: Call, axis: int, found: StoredStatistics) -> Replace | None:
    shifts = bool(found.shift.any())
    axes = _input_axes(layer, call, axis)
    if axes is None or (shifts and not _sees_all(layer)):
        return None
    first, *_ = _kernels(layer)
    weight = float64(first)
    a = _along(found.scale, axes, weight.shape, layer)
    if not shifts:
        return Replace(_making(layer, {}, ("bias",)), _filling(layer, weight * a, None))
    more = _units_of(layer, weight * _along(found.shift, axes, weight.shape, layer))
    changes = _with_bias(layer, call, more.shape)
    if changes is None:
        return None
    bias = more if layer.bias is None else float64(layer.bias) + more.reshape(layer.bias.shape)
    return Replace(_making(layer, changes, ()), _filling(layer, weight * a, bias))


def _making(layer: Any, changes: dict[str, Any], kept: tuple[str, ...]):
    def make() -> keras.Layer:
        new = copy_layer(layer, **changes)
        drop_penalties(new, ("activity", "pointwise", *kept))
        return new

    return make


def _filling(layer: Any, weight: np.ndarray, bias: np.ndarray | None):
    def fill(new: Any) -> None:
        if (new.bias is None) == (layer.bias is None):
            copy_state(layer, new)
        for own, source in zip(_kernels(new), _kernels(layer), strict=True):
            assign_copy(own, source)
        next(_kernels(new)).assign(weight)
        if bias is not None:
            new.bias.assign(bias.reshape(new.bias.shape))
        new.trainable = layer.trainable
        fold_into.freeze_alike(new, layer)

    return fill


def _kernels(layer: Any) -> Iterator[keras.Variable]:
    """Its kernels, the one nearest to the input first."""
    yield from [kernel.variable for kernel in kernels.kernels_of(layer).values()][::-1]


def _input_axes(layer: Any, call: Call, axis: int) -> tuple[int, ...] | None:
    """Where the channels of `axis` of a layer's input lie in its first kernel; None: nowhere."""
    rank = len(call.inputs[0].shape)
    if isinstance(layer, _layers.EinsumDense):
        letter = _input_letter(layer, axis, rank)
        letters = kernels.einsum_letters(layer.equation)[1]
        return (letters.index(letter),) if letter in letters else None
    if axis != kernels.channel_axis(layer, rank):
        return None
    if isinstance(layer, _layers.Dense):
        return (0,)
    shape = next(_kernels(layer)).shape
    return (len(shape) - (1 if isinstance(layer, _TRANSPOSES) else 2),)


def _input_letter(layer: Any, axis: int, rank: int) -> str:
    """The einsum letter of an input axis; "." where `...` covers it."""
    before, _, after = kernels.einsum_letters(layer.equation)[0].partition("...")
    if axis < len(before):
        return before[axis]
    return after[axis - rank] if rank - axis <= len(after) else "."


def _along(vector: np.ndarray, axes: tuple[int, ...], shape, layer: Any) -> np.ndarray:
    """A vector over input channels laid out to multiply the first kernel."""
    (axis,) = axes
    groups = vector.size // shape[axis] if isinstance(layer, _CONVS) else 1
    if groups == 1:
        return vector.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    # the filters of a group, which lie side by side, see its channels only
    per_group = vector.reshape(groups, shape[axis]).T
    return np.repeat(per_group, shape[-1] // groups, axis=1)


def _sees_all(layer: Any) -> bool:
    """Case 2b: whether every output sees all of the kernel on inputs, none on padding."""
    if isinstance(layer, _TRANSPOSES):
        return False
    if not isinstance(layer, (*_CONVS, *_DEPTHWISE, *_SEPARABLE)):
        return True
    return layer.padding == "valid" or all(size == 1 for size in layer.kernel_size)


def _units_of(layer: Any, shifted: np.ndarray) -> np.ndarray:
    """W·c for each output unit, from W with c on its inputs."""
    if isinstance(layer, _layers.EinsumDense):
        _, letters, output = kernels.einsum_letters(layer.equation)
        kept = "".join(x for x in output if x in letters)
        return np.einsum(f"{letters}->{kept}", shifted)
    if isinstance(layer, _layers.Dense):
        return shifted.sum(0)
    space = tuple(range(shifted.ndim - 2))
    if isinstance(layer, _CONVS):
        return shifted.sum((*space, -2))
    per_unit = shifted.sum(space).reshape(-1)
    if isinstance(layer, _DEPTHWISE):
        return per_unit
    return per_unit @ float64(layer.pointwise_kernel).reshape(per_unit.size, -1)


def _with_bias(layer: Any, call: Call, shape: tuple[int, ...]) -> dict[str, Any] | None:
    """What to change in a layer's config for it to have a bias of one entry for each unit.

    None where its own bias has another form, or Keras would add one along another axis.
    """
    output = call.output.shape
    if not isinstance(layer, _layers.EinsumDense):
        axis = kernels.channel_axis(layer, len(output))
        assert axis is not None
        fits = adds_bias_along(axis, output, shape[0])
        return {"use_bias": True} if fits else None
    _, letters, outputs = kernels.einsum_letters(layer.equation)
    kept = "".join(x for x in outputs if x in letters)
    wide = [letter for letter, size in zip(kept, shape, strict=True) if size > 1]
    if len(wide) == 1:
        from_end = outputs.index(wide[0]) >= outputs.find(".")  # without dots, either is the same
        axis = outputs.index(wide[0]) + (len(output) - len(outputs) if from_end else 0)
        if not adds_bias_along(axis, output, shape[kept.index(wide[0])]):
            return None
    if layer.bias is not None and set(layer.bias_axes) != set(kept):
        return None
    return {"bias_axes": kept} if kept else None
