"""The calls of a functional model as Keras 1 and 2 stored them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CONSTANT = "_CONSTANT_VALUE"


@dataclass(frozen=True)
class Reference:
    """An output of an earlier call: of which layer, which call of it, which of its outputs."""

    layer: str
    call: int
    tensor: int


@dataclass(frozen=True)
class StoredCall:
    """One call of a layer.

    Attributes:
        inputs: The first argument, in its structure, with a `Reference` for each tensor.
        arguments: The others by name, likewise.
    """

    inputs: Any
    arguments: dict[str, Any]

    def references(self) -> list[Reference]:
        """All outputs that the call needs."""
        found: list[Reference] = []
        mapped((self.inputs, self.arguments), found.append)
        return found


def stored_call(data: Any) -> StoredCall:
    """Read one of the `inbound_nodes` of a layer.

    A tensor is `[layer, node, tensor]` or `[layer, node, tensor, arguments]`, a constant
    `["_CONSTANT_VALUE", -1, value, arguments]`; the first argument may be any structure of them,
    and the other arguments stand with its first tensor.
    """
    arguments: dict[str, Any] = {}

    def first_argument(item: Any) -> Any:
        if _is_tensor(item):
            if len(item) == 4 and isinstance(item[3], dict):
                arguments.update(item[3])
            return item[2] if item[0] == CONSTANT else Reference(*item[:3])
        if isinstance(item, dict):
            return {key: first_argument(value) for key, value in item.items()}
        if isinstance(item, list):
            return [first_argument(value) for value in item]
        return item

    inputs = single(first_argument(data))
    return StoredCall(inputs, {key: _argument(value) for key, value in arguments.items()})


def outputs(data: Any) -> Any:
    """Read `input_layers` or `output_layers`: a structure of tensors, a list of one unpacked."""
    return single(_argument(data))


def mapped(structure: Any, function: Callable[[Reference], Any]) -> Any:
    """The structure with every reference replaced."""
    if isinstance(structure, Reference):
        return function(structure)
    if isinstance(structure, dict):
        return {key: mapped(value, function) for key, value in structure.items()}
    if isinstance(structure, list | tuple):
        return [mapped(value, function) for value in structure]
    return structure


def single(value: Any) -> Any:
    """A list of one is the one: Keras 2 unpacked it, Keras 3 does not."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _argument(item: Any) -> Any:
    if _is_tensor(item) and len(item) == 3:
        return Reference(*item)
    if isinstance(item, dict):
        return {key: _argument(value) for key, value in item.items()}
    if isinstance(item, list):
        return [_argument(value) for value in item]
    return item


def _is_tensor(item: Any) -> bool:
    if not isinstance(item, list) or len(item) not in (3, 4) or not isinstance(item[0], str):
        return False
    return item[0] == CONSTANT or all(type(number) is int and number >= 0 for number in item[1:3])
