"""A functional model of Keras 1 or 2: its layers, called as they were."""

from __future__ import annotations

import functools
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

import keras
from keras import tree

from kerasnorm import keras_private
from kerasnorm.errors import LoadError
from kerasnorm.loading.legacy import inbound_nodes
from kerasnorm.loading.legacy.built_layer import BuiltLayer
from kerasnorm.loading.legacy.calls import call_as_keras2
from kerasnorm.loading.legacy.inbound_nodes import Reference, StoredCall
from kerasnorm.loading.legacy.inputs import input_of
from kerasnorm.loading.repair_log import RepairLog


class FunctionalBuilder:
    """The layers of a functional model and their calls so far.

    Args:
        build: Makes a layer or model from its stored class and configuration.
        operation: Makes a function of tensors from one that stands for a function of TensorFlow;
            None for other layers.
        allowed: Changes a name of the file into one that Keras 3 allows.
        log: Is told of every repair.
    """

    def __init__(
        self,
        build: Callable[[dict[str, Any]], BuiltLayer],
        operation: Callable[[dict[str, Any]], Callable[..., Any] | None],
        allowed: Callable[[str], str],
        log: RepairLog,
    ):
        self.children: list[BuiltLayer] = []
        self._build, self._operation, self._allowed = build, operation, allowed
        self._log = log
        self._calls: dict[str, Callable[..., Any]] = {}
        self._used: Counter[str] = Counter()
        self._waiting: dict[str, list[StoredCall]] = {}
        self._outputs: dict[str, list[list[Any]]] = {}

    def add(self, stored: dict[str, Any]) -> None:
        """Make a layer and remember its calls."""
        name = str(stored.get("name") or stored["config"].get("name"))
        class_name = stored["class_name"]
        if name in self._outputs:
            raise LoadError("The configuration is damaged: two layers have its name.", layer=name)
        self._outputs[name] = []
        if class_name == "InputLayer":
            first = input_of(stored)
            if first is None:
                raise LoadError("The configuration is damaged: no shape.", layer=name)
            tensor = keras.Input(**{**first, "name": self._allowed(name)})
            self._outputs[name].append([tensor])
            return
        function = self._operation(stored)
        if function is not None:
            built = BuiltLayer(name, class_name, None)
            self._calls[name] = functools.partial(self._call_operation, name, function)
        else:
            built = self._build(stored)
            log_repair = functools.partial(self._log.add, layer=name)
            self._calls[name] = functools.partial(call_as_keras2, built, log_repair)
        self.children.append(built)
        self._waiting[name] = [inbound_nodes.stored_call(data) for data in stored["inbound_nodes"]]

    def call_all(self, ends: Any) -> None:
        """Call every layer as often as it was called, each once its inputs are there.

        Args:
            ends: The `output_layers`.
        """
        self._count_from_one(ends)
        waiting_for: dict[str, list[str]] = {}
        todo = deque(self._waiting)
        while todo:
            name = todo.popleft()
            waiting = self._waiting[name]
            while waiting:
                missing = next((r for r in waiting[0].references() if not self._is_there(r)), None)
                if missing is not None:
                    waiting_for.setdefault(missing.layer, []).append(name)
                    break
                self._call(name, waiting.pop(0))
                todo.extend(waiting_for.pop(name, ()))
        stuck = next((name for name, waiting in self._waiting.items() if waiting), None)
        if stuck is not None:
            raise LoadError(
                "The configuration is damaged: its inputs come from nowhere, or from itself.",
                layer=stuck,
            )

    def tensors(self, data: Any) -> Any:
        """The tensors that `input_layers` or `output_layers` mean."""
        return inbound_nodes.mapped(inbound_nodes.outputs(data), self._tensor)

    def _count_from_one(self, ends: Any) -> None:
        # A model's own outputs are its call number 0, so that calls by others begin with 1; in all
        # but those files in which some are called by that number.
        calls = [call for waiting in self._waiting.values() for call in waiting]
        used = [reference for call in calls for reference in call.references()]
        inbound_nodes.mapped(inbound_nodes.outputs(ends), used.append)
        firsts = {reference.layer for reference in used if reference.call == 0}
        for built in self.children:
            if isinstance(built.layer, keras.Model) and built.name not in firsts:
                self._outputs[built.name].append([])

    def _is_there(self, reference: Reference) -> bool:
        if reference.layer not in self._outputs:
            raise LoadError(f"The configuration is damaged: there is no layer '{reference.layer}'.")
        return reference.call < len(self._outputs[reference.layer])

    def _tensor(self, reference: Reference) -> Any:
        if not self._is_there(reference):
            raise LoadError(
                "The configuration is damaged: it is not called so often.", layer=reference.layer
            )
        outputs = self._outputs[reference.layer][reference.call]
        if reference.tensor >= len(outputs):
            raise LoadError(
                "The configuration is damaged: it has not so many outputs.", layer=reference.layer
            )
        return outputs[reference.tensor]

    def _call(self, name: str, call: StoredCall) -> None:
        inputs = inbound_nodes.mapped(call.inputs, self._tensor)
        arguments = inbound_nodes.mapped(call.arguments, self._tensor)
        self._outputs[name].append(tree.flatten(self._calls[name](inputs, **arguments)))

    def name_operations(self, outputs: Any) -> None:
        """Give operations that came about beside the layers, as of masks, names of their own."""
        found = _operations_between(tree.flatten(outputs), ())
        taken = {operation.name for operation in found if isinstance(operation, keras.Layer)}
        for operation in found:
            if not isinstance(operation, keras.Layer):
                own, number = operation.name, 0
                while operation.name in taken:
                    number += 1
                    operation.name = f"{own}.{number}"
                taken.add(operation.name)

    def _call_operation(
        self, name: str, function: Callable[..., Any], inputs: Any, /, **arguments: Any
    ) -> Any:
        """Call operations, whose own names could be those of layers of the file."""
        result = function(inputs, **arguments)
        given = tree.flatten((inputs, arguments))
        for operation in _operations_between(tree.flatten(result), given):
            number = self._used[name]
            self._used[name] += 1
            operation.name = self._allowed(f"{name}.{number}" if number else name)
        return result


def _operations_between(outputs: Iterable[Any], inputs: Iterable[Any]) -> list[Any]:
    """The operations that made some tensors from others, the last first."""
    known, waiting, found = {id(tensor) for tensor in inputs}, list(outputs), []
    while waiting:
        tensor = waiting.pop()
        if id(tensor) not in known:
            known.add(id(tensor))
            node = keras_private.node_of(tensor)
            found.append(node.operation)
            waiting.extend(node.input_tensors)
    return list(dict.fromkeys(found))
