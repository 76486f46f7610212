"""Student and teacher: two models that can be compared, output by output."""

from __future__ import annotations

from typing import Any

from keras import tree

from kerasnorm.errors import SwapError
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.output_heads import Head, heads_of


def common_heads(student: ModelGraphs, teacher: ModelGraphs) -> list[Head]:
    """How to read the outputs of both models.

    Raises:
        SwapError: If these are not alike, or one of the models cannot be used.
    """
    name = student.root.owner.name
    shared = {id(v) for v in student.root.owner.variables} & {
        id(v) for v in teacher.root.owner.variables
    }
    if shared:
        raise SwapError(
            "Student and teacher must have no variable in common. Received models that share "
            f"{len(shared)}.",
            model=name,
            hint="Train a copy: `swap_norms(…).model`, or `keras.models.clone_model` with the "
            "weights set.",
        )
    for what in ("inputs", "outputs"):
        ends = getattr(student.root, what), getattr(teacher.root, what)
        if not _alike(*ends):
            said = [tree.map_structure(lambda t: tuple(t.shape), end) for end in ends]
            raise SwapError(
                f"Student and teacher must have the same {what}. Received {said[0]} and {said[1]}.",
                model=name,
                hint="Distill a model into one made of it, as `swap_norms` does.",
            )
    heads = heads_of(student), heads_of(teacher)
    for number, (mine, other) in enumerate(zip(*heads, strict=True)):
        if mine != other:
            raise SwapError(
                "The outputs of student and teacher must end in the same function. Received "
                f"{mine.kind} and {other.kind} at output {number}.",
                model=name,
                hint="Give both models, or none, a final softmax or sigmoid.",
            )
    return heads[1]


def _alike(student: Any, teacher: Any) -> bool:
    """Whether two structures of tensors are the same, and may have the same shapes."""
    try:
        tree.assert_same_structure(student, teacher)
    except (ValueError, TypeError):
        return False
    return all(
        len(a.shape) == len(b.shape)
        and all(None in (m, n) or m == n for m, n in zip(a.shape, b.shape, strict=True))
        for a, b in zip(tree.flatten(student), tree.flatten(teacher), strict=True)
    )
