"""How far the answers of a whole model agree with those of its source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kerasnorm.compare.differences import in_graph
from kerasnorm.compare.tensor_pairs import TensorPair
from kerasnorm.graph.execute import run
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.output_heads import heads_of
from kerasnorm.math.r_squared import RSquared

_SAMPLES_AT_ONCE = 8


@dataclass(frozen=True)
class Agreement:
    """How far the whole model agrees with its source, on samples held out.

    Neither the fits nor the training used them but to choose: which strength of a fit, and which
    epoch, to keep.

    Attributes:
        samples: How many these are.
        same_answers: The share of places where both say the same: the likeliest class of a
            softmax, yes or no of a sigmoid; None for models that end in neither.
        fit: R² of the outputs.
    """

    samples: int
    same_answers: float | None
    fit: float

    def __str__(self) -> str:
        same = "" if self.same_answers is None else f"{self.same_answers:.1%} same answers, "
        return f"on {self.samples} samples held out: {same}R² of the outputs {self.fit:.4f}"


def fits(
    model_graphs: ModelGraphs, pairs: Sequence[TensorPair], arrays: list[np.ndarray]
) -> dict[str, float]:
    """R² of what the result has against what the source has, by name."""
    found = {pair.name: RSquared() for pair in pairs}

    def add(pair: TensorPair, expected: np.ndarray, received: np.ndarray) -> float:
        ends = (np.moveaxis(y, pair.axis, -1) for y in (expected, received))
        found[pair.name].add(*map(_rows, ends))
        return found[pair.name].value

    for part in _parts(arrays):
        scores = dict(in_graph(model_graphs, model_graphs.root, pairs, part, measure=add))
    return scores


def agreement(
    model_graphs: ModelGraphs, pairs: Sequence[TensorPair], arrays: list[np.ndarray]
) -> Agreement:
    """How far the outputs of two models agree on some inputs."""
    root = model_graphs.root
    ends = [pair for pair in pairs if pair.name.startswith("output ") and pair.graph is root]
    found, same = [RSquared() for _ in ends], []
    heads = heads_of(model_graphs)
    for part in _parts(arrays):
        expected = run(root, part, [pair.expected for pair in ends])
        received = run(ends[0].copy, part, [pair.received for pair in ends])
        for fit, head, a, b in zip(found, heads, expected, received, strict=True):
            fit.add(_rows(a), _rows(b))
            if head.kind != "linear":
                said, answered = (head.answers(head.logits(y)) for y in (a, b))
                same.append(np.ravel(said == answered))
    return Agreement(
        samples=len(arrays[0]),
        same_answers=float(np.mean(np.concatenate(same))) if same else None,
        fit=float(np.mean([fit.value for fit in found])),
    )


def _parts(arrays: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """A few samples at a time, since the tensors of every call are held at once."""
    for first in range(0, len(arrays[0]), _SAMPLES_AT_ONCE):
        yield [array[first : first + _SAMPLES_AT_ONCE] for array in arrays]


def _rows(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)
