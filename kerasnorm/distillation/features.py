"""Where two models compute the same thing: the tensors to compare a student and its teacher at.

Answers alone say little about what went wrong on the way, and a few hundred samples are soon known
by heart. What is compared besides are the ends of blocks:

1. what layers give that join branches or reduce resolution, and nested models: both models have
   them under one name,
2. what stands for a BatchNorm of the teacher, unless an activation alone reads it: there, the
   student may find another way to the end of its block.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import keras

from kerasnorm.graph import sites
from kerasnorm.graph.graph import Call, Graph
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.layers import CosineNorm, WeightNorm

_layers = keras.layers
_BLOCK_ENDS = (
    _layers.Add, _layers.Average, _layers.Concatenate, _layers.Maximum, _layers.Multiply,
    _layers.Subtract,
    _layers.AveragePooling1D, _layers.AveragePooling2D, _layers.AveragePooling3D,
    _layers.MaxPooling1D, _layers.MaxPooling2D, _layers.MaxPooling3D,
    _layers.GlobalAveragePooling1D, _layers.GlobalAveragePooling2D, _layers.GlobalAveragePooling3D,
    _layers.GlobalMaxPooling1D, _layers.GlobalMaxPooling2D, _layers.GlobalMaxPooling3D,
    keras.Model,
)  # fmt: skip
_WRAPPERS = (WeightNorm, CosineNorm)


@dataclass(frozen=True)
class Feature:
    """A symbolic tensor of the student's graph and the teacher's in its place."""

    student: Any
    teacher: Any


def common_features(student: ModelGraphs, teacher: ModelGraphs) -> list[Feature]:
    """The ends of blocks that both models have, in the teacher's order.

    None where a model is made by code, whose tensors cannot be asked for.
    """
    if student.root.is_code or teacher.root.is_code:
        return []
    mine, others = _called_once(student.root), _called_once(teacher.root)
    found = []
    for name, call in others.items():
        own = mine.get(name)
        if sites.is_batch_norm(call.operation):
            own = _in_place_of(call, teacher.root, mine)
        elif not isinstance(call.operation, _BLOCK_ENDS):
            own = None
        if own is not None and _comparable(own, call):
            found.append(Feature(own.output, call.output))
    return found


def _called_once(graph: Graph) -> dict[str, Call]:
    """The calls of a graph by their layers' names, without those of layers called again."""
    calls = [call for call in graph.calls if not call.is_input]
    times = Counter(call.operation.name for call in calls)
    return {c.operation.name: c for c in calls if times[c.operation.name] == 1}


def _in_place_of(norm: Call, graph: Graph, mine: dict[str, Call]) -> Call | None:
    """The student's call that stands for a BatchNorm that not only an activation reads."""
    readers = graph.consumers(norm.output)
    if len(readers) == 1 and isinstance(readers[0].operation, (_layers.ReLU, _layers.Activation)):
        return None
    if norm.operation.name in mine:
        return mine[norm.operation.name]
    own = mine.get(graph.producer(norm.inputs[0]).operation.name)
    return own if own is not None and isinstance(own.operation, _WRAPPERS) else None


def _comparable(own: Call, other: Call) -> bool:
    if len(own.outputs) != 1 or len(other.outputs) != 1:
        return False
    ends = own.output, other.output
    floating = all("float" in keras.backend.standardize_dtype(end.dtype) for end in ends)
    return floating and tuple(ends[0].shape) == tuple(ends[1].shape)
