"""Make each layer of a clone once, call them in graph order, then carry the state over."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras

from kerasnorm import keras_private
from kerasnorm.clone.by_config import copy_layer
from kerasnorm.clone.edits import Edits, Replace, Skip
from kerasnorm.clone.functional import clone_graph
from kerasnorm.clone.model_attributes import carry_attributes
from kerasnorm.clone.objects import LIBRARIES, module_of
from kerasnorm.clone.operation import clone_operation
from kerasnorm.clone.replace_sublayer import replace_sublayer
from kerasnorm.clone.state import copy_state, own_penalties
from kerasnorm.clone.traced_layer import clone_traced, trace_again
from kerasnorm.errors import SwapError
from kerasnorm.graph.graph import Call, Graph, graph_of
from kerasnorm.graph.model_graphs import ModelGraphs


class Builder:
    """Builds the clones of the owners of some graphs.

    Args:
        model_graphs: The graphs of the source model.
        edits: What to do with single calls.
        skip_init: Called on each new layer before it is built.

    Attributes:
        names: The new name of each source layer, both by path.
        notes: What could not be kept.
        graphs: The graph of the clone of each graph's owner, by the owner's `id`.
        tensors: The new symbolic tensor of each of the source's, by the `id` of the graph's owner
            and of the tensor.
        copies: The new layer of each source layer and of each `Replace`, by `id`.
    """

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
        self.copies: dict[int, Any] = {}
        self._carried: list[tuple[keras.Layer, keras.Layer]] = []
        self._filled: list[tuple[Replace, keras.Layer]] = []

    def custom_objects(self) -> dict[str, Any]:
        """The user's own classes and functions in use, by the names that configs call them by."""
        in_use: dict[Any, None] = {}  # in order, and each once
        root = self.model_graphs.root.owner
        for layer in (root, *keras_private.sublayers(root)):
            in_use[type(layer)] = None
            for value in vars(layer).values():
                in_use[value if inspect.isfunction(value) else type(value)] = None
        found: dict[str, list[Any]] = {}
        for thing in in_use:
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
        """The clone of a graph's owner."""
        if graph.is_code:
            return self._traced(graph)
        source = graph.owner
        clone, tensors = clone_graph(
            graph,
            functools.partial(self._clone_input, graph),
            functools.partial(self._operations, graph),
            self._takes,
        )
        self._record_tensors(graph, tensors)
        if not keras_private.is_plain(source):
            self.notes.append(
                f"model '{source.name}' was a {type(source).__name__}; it is a plain "
                f"{'Sequential' if isinstance(source, keras.Sequential) else 'functional'} model "
                "now, without the methods of that class"
            )
        if clone.dtype_policy != source.dtype_policy:
            clone.dtype_policy = source.dtype_policy
        if not source.trainable:
            clone.trainable = False  # cascades; `carry_state` then sets each layer's own flag
        self.notes += carry_attributes(source, clone)
        self.graphs[id(source)] = graph_of(clone)
        return clone

    def carry_state(self) -> None:
        """Give the new layers their weights, once all of them are built."""
        for source, clone in self._carried:
            self._share_inner_layers(source, clone)  # those of a late `build` too
        for source, clone in self._carried:
            copy_state(source, clone)
        self._check_what_is_shared()
        for edit, layer in self._filled:
            edit.fill(layer)

    def _given_by(self, before: Call, after: Call) -> Sequence[Any]:
        """What the clone of a call gives; of one that is skipped, what it is given itself."""
        return after.inputs if isinstance(self.edits.get(before), Skip) else after.outputs

    def _traced(self, graph: Graph) -> keras.Layer:
        """The clone of a layer with code of its own, other layers put into it."""
        source = graph.owner
        clone = clone_traced(graph)
        sources, own = keras_private.sublayers(source), keras_private.sublayers(clone)
        inner = dict(zip(map(id, sources), own, strict=True))
        replaced = []
        for call in graph.calls:
            old = inner.pop(id(call.operation), None)
            if old is None:
                continue
            if self._is_replaced(graph, call):
                replaced.append(old)
                replace_sublayer(clone, old, self._built(graph, call))
            else:
                self.copies[id(call.operation)] = old
                self._record_name(graph, call.operation, old)
        for layer in [call.operation for call in graph.calls]:
            if id(layer) in self.model_graphs.holders and id(layer) in self.copies:
                self._share_inner_layers(layer, self.copies[id(layer)])
        retraced = trace_again(graph, clone, replaced)
        tensors = {
            id(old): new
            for before, after in zip(graph.calls, retraced.calls, strict=True)
            for old, new in zip(before.outputs, self._given_by(before, after), strict=True)
        }
        self._record_tensors(graph, tensors)
        self.graphs[id(source)] = retraced
        if not isinstance(source, keras.layers.TimeDistributed):
            self.notes += carry_attributes(source, clone)
            self.notes.append(
                f"'{source.name}' is made by the code of {type(source).__name__}, which makes "
                "BatchNorm: to load saved weights, swap a new instance the same way and load them "
                "into the result"
            )
        return clone

    def _is_replaced(self, graph: Graph, call: Call) -> bool:
        """Whether code has to be given another layer for a call than the one in its clone."""
        operation = call.operation
        here = sum(other.operation is operation for other in graph.calls)
        shared = self.model_graphs.calls[id(operation)] > here
        return call in self.edits or id(operation) in self.model_graphs.graphs or shared

    def _built(self, graph: Graph, call: Call) -> keras.Layer:
        operations = self._operations(graph, call)
        if not operations:
            source = call.operation
            return keras.layers.Identity(name=source.name, dtype=source.compute_dtype)
        [layer] = operations
        if not layer.built and call in self.edits:
            layer.build(call.inputs[0].shape)
        elif not layer.built:
            layer.build_from_config(call.operation.get_build_config())
        return layer

    def _takes(self, call: Call, layer, keyword: str) -> bool:
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

    def _operations(self, graph: Graph, call: Call) -> list[Any]:
        """What is called in the place of a call, one after the other."""
        source, edit = call.operation, self.edits.get(call)
        if isinstance(edit, Skip):
            self._record_name(graph, source, edit.into)
            return []
        if isinstance(edit, Replace):
            operations = [self._replacement(e) for e in (edit.first, edit) if e is not None]
        else:
            if id(source) not in self.copies:
                self.copies[id(source)] = self._clone(source)
            operations = [self.copies[id(source)]]
        self._record_name(graph, source, operations[-1])
        return operations

    def _replacement(self, edit: Replace) -> keras.Layer:
        if id(edit) not in self.copies:
            layer = self.copies[id(edit)] = edit.make()
            own_penalties(layer)
            self.skip_init(layer)
            self._filled.append((edit, layer))
        return self.copies[id(edit)]

    def _clone_input(self, graph: Graph, layer: keras.layers.InputLayer) -> keras.layers.InputLayer:
        clone = self._clone(layer)
        self._record_name(graph, layer, clone)
        return clone

    def _clone(self, source):
        if not isinstance(source, keras.Layer):
            return clone_operation(source)
        if id(source) in self.model_graphs.graphs:
            return self.owner(self.model_graphs.graphs[id(source)])
        clone = copy_layer(source)
        self._share_inner_layers(source, clone)
        self.skip_init(clone)
        self._carried.append((source, clone))
        return clone

    def _share_inner_layers(self, holder: keras.Layer, clone: keras.Layer) -> None:
        """What a layer holds that is held or called elsewhere too stays one layer in the clone."""
        sources, copies = keras_private.sublayers(holder), keras_private.sublayers(clone)
        if list(map(type, sources)) != list(map(type, copies)):
            return
        for source, own in zip(sources, copies, strict=True):
            is_shared = self.model_graphs.calls[id(source)] > 1
            if is_shared and id(source) not in self.model_graphs.graphs:
                shared = self.copies.setdefault(id(source), own)
                if shared is not own:
                    replace_sublayer(clone, own, shared)

    def _check_what_is_shared(self) -> None:
        """Raise SwapError where copies do not share the variables that their sources share."""
        of_sources: set[int] = set()
        of_clones: set[int] = set()
        replaced: dict[int, set[int]] = {}  # variables, and the layers that hold them
        for layer in {id(call.operation): call.operation for call in self.edits}.values():
            for variable in layer.variables:
                replaced.setdefault(id(variable), set()).update(_layers_at(layer))
        for source, clone in self._carried:
            of_sources.update(map(id, source.variables))
            of_clones.update(map(id, clone.variables))
            own = _layers_at(source)
            # a layer that both hold may be replaced in the one and stay in the other
            is_tied = any(own.isdisjoint(replaced.get(id(v), own)) for v in source.variables)
            if is_tied or len(of_sources) != len(of_clones):
                raise SwapError(
                    f"What layers share must be one thing in their copies too. Received a "
                    f"{type(source).__name__} whose copy has variables of its own for shared ones.",
                    layer=source.name,
                    hint="Have layers share a layer that each of them holds, not its variables.",
                )

    def _record_tensors(self, graph: Graph, tensors: dict[int, Any]) -> None:
        self.tensors.update({(id(graph.owner), key): new for key, new in tensors.items()})

    def _record_name(self, graph: Graph, source, new) -> None:
        if isinstance(source, keras.Layer):
            path = self.model_graphs.paths[id(graph.owner)]
            self.names[path + source.name] = path + (new if isinstance(new, str) else new.name)


def _layers_at(layer: keras.Layer) -> set[int]:
    """The `id` of a layer and of each inside it."""
    return set(map(id, (layer, *keras_private.sublayers(layer))))
