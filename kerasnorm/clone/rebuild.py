"""Build a copy of a model with some of its calls replaced.

The source is only read: every layer of the copy is a new one, made from the source layer's
config and given its weights.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import tree

from kerasnorm import keras_private
from kerasnorm.clone.by_attributes import can_clone_by_attributes, clone_by_attributes
from kerasnorm.clone.by_config import carry_attributes, copy_layer
from kerasnorm.clone.objects import LIBRARIES, module_of
from kerasnorm.clone.operation import copied_arguments, copied_operation
from kerasnorm.clone.replace_sublayer import replace_sublayer
from kerasnorm.clone.shared import check_nothing_shared
from kerasnorm.clone.skip_init import skipped_initializers
from kerasnorm.clone.state import build_alike, copy_state
from kerasnorm.errors import SwapError
from kerasnorm.graph import graph as graphs
from kerasnorm.graph.graph import Call, Graph
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.trace import trace


@dataclass(frozen=True, eq=False)
class Skip:
    """Let a call's only input through in its place.

    Attributes:
        into: Name of the layer that does the work of the call now.
    """

    into: str


@dataclass(frozen=True, eq=False)
class Replace:
    """Call another layer in place of the source's. Calls that share one `Replace` share the layer.

    Attributes:
        make: Gives the new, unbuilt layer.
        fill: Sets the weights of the new layer once it is built.
        keywords: The keyword arguments of the call that the new layer gets; None for those that
            it has parameters for.
        first: Another layer that is called before it; not where code makes the call.
    """

    make: Callable[[], keras.Layer]
    fill: Callable[[keras.Layer], None]
    keywords: frozenset[str] | None = None
    first: Replace | None = None


Edits = Mapping[Call, Skip | Replace]


@dataclass
class Rebuilt:
    """A rebuilt model and how it lies over its source.

    Attributes:
        model: The new model.
        layers: The name of each source layer in it.
        notes: What could not be kept.
        graphs: The graph of the copy of each graph's owner, by the owner's `id`.
        tensors: The new symbolic tensor of each of the source's, by the `id` of the graph's owner
            and of the tensor: graphs may have tensors in common.
        copies: The new layer of each source layer and of each `Replace`, by `id`.
    """

    model: keras.Model
    layers: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    graphs: dict[int, Graph] = field(default_factory=dict)
    tensors: dict[tuple[int, int], Any] = field(default_factory=dict)
    copies: dict[int, Any] = field(default_factory=dict)

    def counterpart(self, graph: Graph, tensor) -> Any:
        """What the copy of a graph has in the place of a tensor."""
        return self.tensors[id(graph.owner), id(tensor)]


def rebuild(model_graphs: ModelGraphs, edits: Edits, *, compiled: bool = True) -> Rebuilt:
    """Copy a model, with its weights, flags and compile state, and apply `edits` on the way.

    Args:
        model_graphs: The graphs of the source model.
        edits: What to do with single calls; all others are copied.
        compiled: Whether the copy gets the source's compile state.

    Returns:
        The copy, which shares no variable with the source, the map from old to new layer names
        (paths such as "backbone/conv" for nested models), and notes on what was not kept.

    Raises:
        SwapError: If a layer cannot be copied from its config.
    """
    with contextlib.ExitStack() as stack:
        builder = _Builder(model_graphs, edits, stack.enter_context(skipped_initializers()))
        stack.enter_context(keras_private.trusted_configs())
        stack.enter_context(keras.saving.custom_object_scope(builder.custom_objects()))
        model = builder.owner(model_graphs.root)
        builder.carry_state()
    check_nothing_shared(model_graphs.root.owner, model)
    result = Rebuilt(
        model, builder.names, builder.notes, builder.graphs, builder.tensors, builder.copies
    )
    if compiled:
        _carry_compile_state(model_graphs.root.owner, result)
    return result


class _Builder:
    """Makes each layer once, calls them in graph order, then carries the state over."""

    def __init__(
        self, model_graphs: ModelGraphs, edits: Edits, skip_init: Callable[[keras.Layer], None]
    ):
        self.model_graphs = model_graphs
        self.edits = edits
        self.skip_init = skip_init
        self.names: dict[str, str] = {}
        self.notes: list[str] = []
        self.graphs: dict[int, Graph] = {}
        self.tensors: dict[tuple[int, int], Any] = {}
        self.copies: dict[int, Any] = {}  # by id of the source operation or of the Replace
        self._carried: list[tuple[keras.Layer, keras.Layer]] = []
        self._filled: list[tuple[Replace, keras.Layer]] = []

    def custom_objects(self) -> dict[str, Any]:
        """The user's own classes and functions in use, by the names that configs call them by."""
        found: dict[str, list[Any]] = {}
        for layer in (
            self.model_graphs.root.owner,
            *keras_private.sublayers(self.model_graphs.root.owner),
        ):
            objects: list[Any] = [type(layer)]
            for value in vars(layer).values():
                objects += [value if inspect.isfunction(value) else type(value)]
            for thing in objects:
                if module_of(thing) not in LIBRARIES:
                    found.setdefault(thing.__name__, []).append(thing)
        # where one name means two things, a config cannot tell which; clones of one function have
        # one code
        return {
            name: things[0]
            for name, things in found.items()
            if len({getattr(thing, "__code__", thing) for thing in things}) == 1
        }

    def owner(self, graph: Graph) -> keras.Layer:
        """The copy of a graph's owner."""
        if graph.is_code:
            return self._code(graph)
        source = graph.owner
        if isinstance(source, keras.Sequential):
            copy = self._sequential(graph)
        else:
            copy = self._functional(graph)
        if not keras_private.is_plain(source):
            self.notes.append(
                f"model '{source.name}' was a {type(source).__name__}; it is a plain "
                f"{'Sequential' if isinstance(source, keras.Sequential) else 'functional'} model "
                "now, without the methods of that class"
            )
        if copy.dtype_policy != source.dtype_policy:
            copy.dtype_policy = source.dtype_policy
        if not source.trainable:
            copy.trainable = False  # cascades; `carry_state` then sets each layer's own flag
        self.notes += carry_attributes(source, copy)
        self.graphs[id(source)] = graphs.graph_of(copy)
        return copy

    def carry_state(self) -> None:
        for source, copy in self._carried:
            copy_state(source, copy)
        for edit, layer in self._filled:
            edit.fill(layer)

    def _functional(self, graph: Graph) -> keras.Model:
        source = graph.owner
        tensors: dict[int, Any] = {}

        def new(value):
            if isinstance(value, keras.KerasTensor):
                return tensors[id(value)]
            return copied_arguments(value, source.name)

        for old in tree.flatten(graph.inputs):
            layer = self._copy(keras_private.input_layer(old))
            tensors[id(old)] = layer.output
            self._name(graph, layer, layer)
        for call in graph.calls:
            if call.is_input:
                continue
            first, layer = self._first(call), self._layer(graph, call)
            passed = {} if first is None else {id(call.inputs[0]): first(new(call.inputs[0]))}

            def given(value, passed=passed):
                return passed[id(value)] if id(value) in passed else new(value)

            args = tree.map_structure(given, call.args)
            kwargs = {
                k: tree.map_structure(given, v)
                for k, v in call.kwargs.items()
                if self._takes(layer, call, k)
            }
            result = new(call.inputs[0]) if layer is None else layer(*args, **kwargs)
            for old, out in zip(call.outputs, tree.flatten(result), strict=True):
                tensors[id(old)] = out
        inputs = tree.map_structure(new, graph.inputs)
        outputs = tree.map_structure(new, graph.outputs)
        self._keep(graph, tensors)
        # never the source's own class: its constructor may build anything
        return keras.Model(inputs, outputs, name=source.name)

    def _sequential(self, graph: Graph) -> keras.Sequential:
        source = graph.owner
        entry = self._copy(keras_private.input_layer(graph.inputs))
        copies = [
            [layer for layer in (self._first(call), self._layer(graph, call)) if layer is not None]
            for call in graph.layer_calls()
        ]
        model = keras.Sequential([entry, *itertools.chain(*copies)], name=source.name)
        tensor = model.inputs[0]
        tensors = {id(graph.inputs): tensor}
        calls = iter(graphs.graph_of(model).layer_calls())
        for call, layers in zip(graph.layer_calls(), copies, strict=True):
            for _ in layers:
                tensor = next(calls).output
            tensors[id(call.output)] = tensor
        self._keep(graph, tensors)
        return model

    def _code(self, graph: Graph) -> keras.Layer:
        """A copy of a layer with code of its own, other layers put into it."""
        source = graph.owner
        args, kwargs = graph.arguments
        try:
            copy = _equal_copy(graph, copy_layer(source))
        except SwapError:
            if not can_clone_by_attributes(source):
                raise
            copy = _equal_copy(graph, clone_by_attributes(source, copy_layer))
        inner = dict(
            zip(
                map(id, keras_private.sublayers(source)), keras_private.sublayers(copy), strict=True
            )
        )
        replaced = []
        for call in graph.calls:
            old = inner.pop(id(call.operation), None)
            if old is None:
                continue
            if self._is_new(graph, call):
                replaced.append(old)
                replace_sublayer(copy, old, self._built(graph, call))
            else:
                self.copies[id(call.operation)] = old
                self._name(graph, call.operation, old)
        for layer in [call.operation for call in graph.calls]:
            if id(layer) in self.model_graphs.holders and id(layer) in self.copies:
                self._share(layer, self.copies[id(layer)])
        gone = [*replaced, source, *keras_private.sublayers(source)]
        with keras_private.unrecorded(gone):
            retraced = trace(copy, args, kwargs)
        tensors: dict[int, Any] = {}
        for before, after in zip(graph.calls, retraced.calls, strict=True):
            if after.operation is before.operation or any(after.operation is x for x in gone):
                raise SwapError(
                    f"The code of a layer must take its layers from its attributes. Received a "
                    f"{type(source).__name__} whose copy calls the source's own "
                    f"'{after.operation.name}'.",
                    layer=source.name,
                    hint="Hold layers in attributes, lists or dicts.",
                )
            for old, new in zip(before.outputs, after.outputs, strict=True):
                tensors[id(old)] = new
        self._keep(graph, tensors)
        self.graphs[id(source)] = retraced
        if not isinstance(source, keras.layers.TimeDistributed):
            self.notes += carry_attributes(source, copy)
            self.notes.append(
                f"'{source.name}' is made by the code of {type(source).__name__}, which makes "
                "BatchNorm: to load saved weights, swap a new instance the same way and load them "
                "into the result"
            )
        return copy

    def _is_new(self, graph: Graph, call: Call) -> bool:
        """Whether code has to be given another layer for a call than its own copy."""
        operation = call.operation
        here = sum(other.operation is operation for other in graph.calls)
        shared = self.model_graphs.calls[id(operation)] > here
        return call in self.edits or id(operation) in self.model_graphs.graphs or shared

    def _built(self, graph: Graph, call: Call) -> keras.Layer:
        layer = self._layer(graph, call)
        if layer is None:
            source = call.operation
            return keras.layers.Identity(name=source.name, dtype=source.dtype_policy)
        if not layer.built and call in self.edits:
            layer.build(call.inputs[0].shape)
        elif not layer.built:
            layer.build_from_config(call.operation.get_build_config())
        return layer

    def _keep(self, graph: Graph, tensors: dict[int, Any]) -> None:
        self.tensors.update({(id(graph.owner), key): new for key, new in tensors.items()})

    def _takes(self, layer, call: Call, keyword: str) -> bool:
        """Whether a layer gets a keyword argument of the source's call.

        Keras records `mask` and `training` with every call of a layer that knows them. The layer
        that replaces it may not.
        """
        edit = self.edits.get(call)
        if not isinstance(edit, Replace):
            return True
        if edit.keywords is not None:
            return keyword in edit.keywords
        return keyword in inspect.signature(layer.call).parameters

    def _layer(self, graph: Graph, call: Call):
        """The new layer for a call, None where its input goes straight through."""
        source, edit = call.operation, self.edits.get(call)
        if isinstance(edit, Skip):
            self._name(graph, source, edit.into)
            return None
        if isinstance(edit, Replace):
            layer = self._made(edit)
            self._name(graph, source, layer)
            return layer
        if id(source) not in self.copies:
            self.copies[id(source)] = self._copy(source)
        self._name(graph, source, self.copies[id(source)])
        return self.copies[id(source)]

    def _first(self, call: Call) -> keras.Layer | None:
        """The new layer that is called before the one for a call."""
        edit = self.edits.get(call)
        first = edit.first if isinstance(edit, Replace) else None
        return None if first is None else self._made(first)

    def _made(self, edit: Replace) -> keras.Layer:
        if id(edit) not in self.copies:
            self.copies[id(edit)] = edit.make()
            self.skip_init(self.copies[id(edit)])
            self._filled.append((edit, self.copies[id(edit)]))
        return self.copies[id(edit)]

    def _copy(self, source):
        if not isinstance(source, keras.Layer):
            return copied_operation(source)
        if id(source) in self.model_graphs.graphs:
            return self.owner(self.model_graphs.graphs[id(source)])
        copy = copy_layer(source)
        self._share(source, copy)
        self.skip_init(copy)
        self._carried.append((source, copy))
        return copy

    def _share(self, holder: keras.Layer, copy: keras.Layer) -> None:
        """What a layer holds that is held or called elsewhere too stays one layer in the copy."""
        inside = list(
            zip(keras_private.sublayers(holder), keras_private.sublayers(copy), strict=False)
        )
        if any(type(source) is not type(own) for source, own in inside):
            return
        for source, own in inside:
            if (
                self.model_graphs.calls[id(source)] > 1
                and id(source) not in self.model_graphs.graphs
            ):
                shared = self.copies.setdefault(id(source), own)
                if shared is not own:
                    replace_sublayer(copy, own, shared)

    def _name(self, graph: Graph, source, new) -> None:
        if isinstance(source, keras.Layer):
            path = self.model_graphs.paths[id(graph.owner)]
            self.names[path + source.name] = path + (new if isinstance(new, str) else new.name)


def _equal_copy(graph: Graph, copy: keras.Layer) -> keras.Layer:
    """The copy of the owner of a graph with code, built and given its state."""
    args, kwargs = graph.arguments
    with keras_private.unrecorded([copy]):
        copy(*args, **kwargs)  # builds it
    if isinstance(graph.owner, keras.layers.TimeDistributed):
        trace(copy, args, kwargs)  # which its own call does not do for what has no `build`
    build_alike(graph.owner, copy)
    copy_state(graph.owner, copy)
    return copy


def _carry_compile_state(source: keras.Model, result: Rebuilt) -> None:
    if not source.compiled:
        return
    try:
        config = source.get_compile_config()
        if config:
            result.model.compile_from_config(config)
    except Exception as error:
        # a loss or metric of the user's own may fail in any way when it is made anew
        result.notes.append(f"not compiled: the source's compile state cannot be copied ({error})")
    else:
        if not result.model.compiled:
            result.notes.append("not compiled: the source does not tell how it was compiled")
