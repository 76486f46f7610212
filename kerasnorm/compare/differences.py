"""Compare a rewritten model with its source, at every call that was rewritten.

A difference of the outputs alone proves little: behind a softmax, networks agree that differ by
far before it. Both models are run from the same inputs, without side effects; the calls inside a
nested model are compared on what the source feeds that model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from keras import tree

from kerasnorm.compare.random_inputs import NotComparableError, random_inputs
from kerasnorm.compare.rounding import moved_weights
from kerasnorm.compare.tensor_pairs import TensorPair
from kerasnorm.compare.tolerances import EPSILONS, OF_DEVIATION, coarsest_dtype
from kerasnorm.errors import SwapError
from kerasnorm.graph.execute import run
from kerasnorm.graph.graph import Graph
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.trace import fed, fed_by

# Where a tensor varies by less than this fraction of its size, its variation is mostly rounding.
_LEAST_SPREAD = 1e-4
# How many times further than by one rounding of each of its weights a model may be off: each of
# its operations rounds too, in the source and in the result.
_ROUNDINGS = 32
# The same for dtypes whose own tolerance is that large already.
_ROUNDINGS_OF_16_BITS = 4
_FREE_SIZE = 32
_ROWS = 2
# Numbers in the tensors that are compared, and in a single one, for a sample: beyond, a model is
# not run by itself. 600 images of 600 by 600 pixels are a tenth of it.
_MOST_COMPARED, _MOST_IN_ONE = 2**29, 2**27


def differences(
    model_graphs: ModelGraphs, pairs: Sequence[TensorPair], inputs: Any = None
) -> dict[str, float]:
    """max|Δ| / std of the source's tensor, by name.

    Args:
        model_graphs: The source's graphs.
        pairs: The pairs to compare.
        inputs: A batch in the structure of the model's inputs; None for seeded random numbers.

    Raises:
        NotComparableError: If the source cannot be run.
    """
    if inputs is None:
        _check_room(model_graphs, pairs)
        arrays = _random_inputs(model_graphs.root)
    else:
        arrays = tree.flatten(inputs)
    return dict(in_graph(model_graphs, model_graphs.root, pairs, arrays))


def _check_room(model_graphs: ModelGraphs, pairs: Sequence[TensorPair]) -> None:
    def size(tensor: Any) -> int:
        return math.prod(_FREE_SIZE if n is None else n for n in tensor.shape[1:])

    calls = [call for graph in model_graphs.graphs.values() for call in graph.calls]
    made = [size(output) for call in calls for output in call.outputs]
    compared = sum(size(pair.expected) for pair in pairs)
    if max(made, default=0) > _MOST_IN_ONE or compared > _MOST_COMPARED:
        raise NotComparableError(
            f"it would take {4 * max(compared, *made):,} bytes a sample to run it"
        )


def check_equal(
    model_graphs: ModelGraphs, pairs: Sequence[TensorPair], exact: bool = True
) -> tuple[dict[str, float], list[str]]:
    """Raise SwapError where the models differ by more than rounding; otherwise how far they do.

    A swap that is not exact may differ, but must be finite where its source is. The inputs are
    seeded random numbers. A source that cannot be run on such is said to be uncompared in the
    notes that are returned beside the differences.
    """
    try:
        found = differences(model_graphs, pairs)
    except NotComparableError as reason:
        return {}, [f"not compared with its source: {reason}"]
    if not exact:
        _check_finite(model_graphs, found)
        return found, []
    dtype = coarsest_dtype(model_graphs.root.owner)
    tolerance = OF_DEVIATION[dtype]
    if max(found.values()) <= tolerance:
        return found, []
    epsilon = max(EPSILONS[dtype], EPSILONS["float32"])
    roundings = _ROUNDINGS if epsilon == EPSILONS["float32"] else _ROUNDINGS_OF_16_BITS
    for moved in _own_movements(model_graphs, pairs, epsilon):
        off = [n for n, d in found.items() if not d <= max(tolerance, roundings * moved[n])]
        if not off:
            return found, []
    raise SwapError(
        f"The rewritten model differs from its source at '{off[0]}' by {found[off[0]]:.2g} "
        f"standard deviations on random inputs; allowed is {tolerance:.0e}.",
        model=model_graphs.root.owner.name,
        hint="A layer may hold more than its config and variables tell, or the weights amplify "
        "rounding. Leave that site out with `sites=`.",
    )


def _check_finite(model_graphs: ModelGraphs, found: dict[str, float]) -> None:
    broken = [name for name, difference in found.items() if not np.isfinite(difference)]
    if broken:
        raise SwapError(
            f"The swapped model must be finite where its source is. Received NaN or infinities at "
            f"'{broken[0]}' on random inputs.",
            model=model_graphs.root.owner.name,
            hint="Leave that site out with `sites=`.",
        )


def _random_inputs(root: Graph) -> list[np.ndarray]:
    free = (_FREE_SIZE, _FREE_SIZE)
    return random_inputs(tree.flatten(root.inputs), root.owner, _ROWS, free=free)


def in_graph(
    model_graphs: ModelGraphs,
    graph: Graph,
    pairs: Sequence[TensorPair],
    arrays: list[Any],
    step: tuple[int, float] | None = None,
    measure: Callable[[TensorPair, np.ndarray, np.ndarray], float] | None = None,
) -> Iterator[tuple[str, float]]:
    here = [pair for pair in pairs if pair.graph.owner is graph.owner]
    nested = {c.operation: c for c in graph.calls if id(c.operation) in model_graphs.graphs}
    fed_to = {owner: fed_by(model_graphs.graphs[id(owner)], call) for owner, call in nested.items()}
    asked = [tensor for tensors in fed_to.values() for tensor in tensors]
    try:
        answers = run(graph, arrays, [*(t.expected for t in here), *asked])
    except Exception as error:
        # any model of any user, on inputs it was not made for
        said = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise NotComparableError(f"the source fails on random inputs ({said[:100]})") from error
    values = iter(answers[len(here) :])
    for owner, tensors in fed_to.items():
        inner = model_graphs.graphs[id(owner)]
        inner_arrays = fed(inner, [next(values) for _ in tensors])
        yield from in_graph(model_graphs, inner, pairs, inner_arrays, step, measure)
    if here:
        state = moved_weights(here[0].copy.owner.variables, *step) if step else []
        received = run(here[0].copy, arrays, [pair.received for pair in here], state)
        for pair, expected, answer in zip(here, answers, received, strict=False):
            yield (
                pair.name,
                measure(pair, expected, answer) if measure else spread_difference(expected, answer),
            )


def _own_movements(
    model_graphs: ModelGraphs, pairs: Sequence[TensorPair], epsilon: float
) -> Iterator[dict[str, float]]:
    """How far the source itself moves when all its weights move by one rounding step.

    Again and again, each time the largest seen so far.

    Where weights amplify rounding, as a BatchNorm does behind channels that hardly vary, this is
    what any other way to compute the same may be off by.
    """
    arrays = _random_inputs(model_graphs.root)
    same = [TensorPair(t.name, t.graph, t.graph, t.expected, t.expected) for t in pairs]
    moved: dict[str, float] = {}
    for seed in range(3):
        for name, distance in in_graph(
            model_graphs, model_graphs.root, same, arrays, (seed, epsilon)
        ):
            moved[name] = max(moved.get(name, 0.0), distance)
        yield moved


def spread_difference(expected: np.ndarray, received: np.ndarray) -> float:
    """max|Δ| over the standard deviation of what was expected; infinite if shapes differ."""
    if expected.shape != received.shape:
        return float("inf")
    expected, received = expected.astype("float64"), received.astype("float64")
    if not np.array_equal(np.isfinite(expected), np.isfinite(received)):
        return float("inf")
    finite = np.isfinite(expected)
    if not finite.any():
        return 0.0
    expected, received = expected[finite], received[finite]
    spread = max(expected.std(), _LEAST_SPREAD * np.abs(expected).max())
    return float(np.abs(expected - received).max() / (spread or 1.0))
