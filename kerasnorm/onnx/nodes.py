"""`all_nodes`: what an ONNX graph consists of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def all_nodes(graph: Any) -> Iterator[Any]:
    """The nodes of an ONNX graph and of the graphs inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from all_nodes(inner)
