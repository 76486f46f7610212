"""What a final softmax or sigmoid makes probabilities of, in a file and in its graph.

Probabilities next to 0 and 1 are the same whatever is wrong before them; their logits are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kerasnorm.onnx.frozen_graph import FrozenGraph
from kerasnorm.onnx.run_inside import run_inside

_PROBABILITIES = {"Softmax", "Sigmoid"}
_PASSING = {"Identity", "Cast", "Transpose"}


@dataclass(frozen=True)
class Logits:
    """The logits of one output.

    Args:
        output: Its name.
        kind: "Softmax" or "Sigmoid".
        in_file: Their name in the ONNX file.
        in_graph: Their name in the frozen graph.
        orders: The orders of axes that the file puts them in behind, one after the other; None
            for the reverse order.
        orders_in_graph: The names of those of the frozen graph.
    """

    output: str
    kind: str
    in_file: str
    in_graph: str
    orders: tuple[tuple[int, ...] | None, ...]
    orders_in_graph: tuple[str, ...]


def logits_of(proto: Any, frozen: FrozenGraph) -> list[Logits]:
    """The logits of every output that is probabilities in a file and in its graph."""
    producers = {name: node for node in proto.graph.node for name in node.output}
    operations = {node.name: node for node in frozen.graph.node}
    found = []
    for output, tensor in zip(frozen.output_names, frozen.outputs, strict=True):
        node = producers.get(output)
        orders: list[tuple[int, ...] | None] = []
        while node is not None and node.op_type in _PASSING:
            if node.op_type == "Transpose":
                orders.append(next((tuple(a.ints) for a in node.attribute), None))
            node = producers.get(node.input[0])
        operation, orders_in_graph = operations.get(tensor.split(":")[0]), []
        while operation is not None and operation.op in _PASSING:
            if operation.op == "Transpose":
                orders_in_graph.append(_tensor(operation.input[1]))
            operation = operations.get(operation.input[0].split(":")[0])
        if node is None or operation is None or node.op_type != operation.op:
            continue
        if node.op_type in _PROBABILITIES:
            found.append(
                Logits(
                    output,
                    node.op_type,
                    node.input[0],
                    _tensor(operation.input[0]),
                    tuple(reversed(orders)),
                    tuple(reversed(orders_in_graph)),
                )
            )
    return found


def _tensor(name: str) -> str:
    """The full name of what an operation of a frozen graph reads."""
    return name if ":" in name else f"{name}:0"


def compared(
    proto: Any, frozen: FrozenGraph, found: list[Logits], batch: list[np.ndarray]
) -> Iterator[tuple[Logits, np.ndarray, np.ndarray]]:
    """The logits of some outputs, as the graph and as the file has them, in the outputs' order."""
    expected = frozen.run(batch, [logits.in_graph for logits in found])
    received = run_inside(proto, frozen, batch, [logits.in_file for logits in found])
    for logits, reference, answer in zip(found, expected, received, strict=True):
        orders_in_graph = frozen.run(batch, list(logits.orders_in_graph))
        yield logits, _in_order(reference, orders_in_graph), _in_order(answer, logits.orders)


def _in_order(values: np.ndarray, orders: Iterable[Any]) -> np.ndarray:
    for order in orders:
        values = np.transpose(values, order)
    return values
