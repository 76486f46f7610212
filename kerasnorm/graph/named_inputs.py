"""Data by name, in the order in which a model takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras import tree

from kerasnorm.errors import DataError
from kerasnorm.graph.graph import Graph


def in_order_of_inputs(data: Any, root: Graph, where: str = "") -> Any:
    """A dictionary as the list of what a model's inputs are given; anything else as it is.

    Args:
        data: What is to be fed to the model. What a dictionary has beside the inputs is left out;
            of one input and one entry the name is not looked at.
        root: The model's graph.
        where: What an error says after what was received.

    Raises:
        DataError: If it has not every input by its name.
    """
    names = _names(root)
    if not isinstance(data, Mapping) or names is None:
        return data
    if len(data) == len(names) == 1:
        return list(data.values())
    missing = [name for name in names if name not in data]
    if missing:
        given = ", ".join(f"{name}=…" for name in names)
        raise DataError(
            f"The data must have the inputs of the model by name: {_listed(names)}. Received "
            f"{_listed(data)}{where}; missing: {_listed(missing)}.",
            model=root.owner.name,
            hint="Give the array alone, of an .npz file by its name: x.npz:KEY."
            if len(names) == 1
            else f"Save them under those names: `numpy.savez(path, {given})`.",
        )
    return [data[name] for name in names]


def _names(root: Graph) -> list[str] | None:
    """What a model's inputs are called, in their order; None where they have no names."""
    structure = root.inputs
    if root.is_code:
        args, kwargs = root.arguments
        structure = args[0] if len(args) == 1 and not kwargs else None
    if isinstance(structure, Mapping):
        keys = {id(value): str(key) for key, value in structure.items()}
        found = [keys.get(id(tensor)) for tensor in tree.flatten(structure)]
        return None if None in found else [key for key in found if key is not None]
    return None if root.is_code else [tensor.name for tensor in tree.flatten(structure)]


def _listed(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names) or "nothing"
