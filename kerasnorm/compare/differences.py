"""Compare a rewritten model with its source, at every call that was rewritten.

A difference of the outputs alone proves little: behind a softmax, networks agree that differ by
far before it. Both models are run from the same inputs, without side effects; the calls inside a
nested model are compared on what the source feeds that model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import tree

from kerasnorm import keras_private
from kerasnorm.compare.agreement import Agreement
from kerasnorm.errors import SwapError
from kerasnorm.graph.execute import run
from kerasnorm.graph.graph import Graph
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.output_heads import heads_of
from kerasnorm.graph.trace import fed, fed_by
from kerasnorm.math.r_squared import RSquared

# In standard deviations. Folding is exact but for what float32 rounds differently in a network
# with other weights: 1e-6 to 1e-5 in trained ones, up to 2e-3 where random weights amplify it.
# What is wrong in the algebra is off by 0.1 and more.
TOLERANCES = {"float16": 0.3, "bfloat16": 1.0}
DEFAULT_TOLERANCE = 1e-2
# Where a tensor varies by less than this fraction of its size, its variation is mostly rounding.
_LEAST_SPREAD = 1e-4
# How many times further than by one rounding of each of its weights a model may be off: each of
# its operations rounds too, in the source and in the result.
_ROUNDINGS = 32
# The same for dtypes whose own tolerance is that large already, and the size of their rounding.
_ROUNDINGS_OF_16_BITS = 4
_EPSILONS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
_FREE_SIZE = 32
_ROWS = 2
_SAMPLES_AT_ONCE = 8
# Numbers in the tensors that are compared, and in a single one, for a sample: beyond, a model is
# not run by itself. 600 images of 600 by 600 pixels are a tenth of it.
_MOST_COMPARED, _MOST_IN_ONE = 2**29, 2**27


@dataclass(frozen=True)
class TensorPair:
    """The output of one call of the source, and what stands in its place.

    Attributes:
        name: What to call it in messages.
        graph: The source's graph that the call is in.
        copy: The result's graph of the same owner.
        expected: The symbolic tensor in the source.
        received: The symbolic tensor in the result.
        axis: The channel axis.
    """

    name: str
    graph: Graph
    copy: Graph
    expected: Any
    received: Any
    axis: int = -1


class NotComparableError(SwapError):
    """The source itself cannot be run on the inputs."""


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
        arrays = random_inputs(model_graphs.root)
    else:
        arrays = tree.flatten(inputs)
    return dict(_in_graph(model_graphs, model_graphs.root, pairs, arrays))


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
        scores = dict(_in_graph(model_graphs, model_graphs.root, pairs, part, measure=add))
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


def insist(
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
    dtypes = {layer.compute_dtype for layer in keras_private.sublayers(model_graphs.root.owner)}
    tolerance = max(TOLERANCES.get(dtype, DEFAULT_TOLERANCE) for dtype in (*dtypes, "float32"))
    if max(found.values()) <= tolerance:
        return found, []
    epsilon = max(_EPSILONS.get(dtype, 2.0**-23) for dtype in (*dtypes, "float32"))
    roundings = _ROUNDINGS if epsilon == 2.0**-23 else _ROUNDINGS_OF_16_BITS
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


def random_inputs(root: Graph) -> list[np.ndarray]:
    """Seeded inputs: standard normal, integers below every vocabulary, booleans.

    Raises:
        NotComparableError: If an input takes something else, such as text.
    """
    generator = np.random.default_rng(0)
    vocabularies = [
        getattr(layer, "input_dim", None) for layer in keras_private.sublayers(root.owner)
    ]
    limit = min([size for size in vocabularies if isinstance(size, int)], default=10)
    arrays = []
    for tensor in tree.flatten(root.inputs):
        shape = [_FREE_SIZE if size is None else size for size in tensor.shape]
        if tensor.shape and tensor.shape[0] is None:
            shape[0] = _ROWS
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if dtype == "bool":
            arrays.append(generator.integers(0, 2, shape).astype(bool))
        elif "int" in dtype:
            arrays.append(generator.integers(0, limit, shape).astype(dtype))
        elif "float" in dtype:
            arrays.append(generator.standard_normal(shape).astype("float32"))
        else:
            raise NotComparableError(f"input '{tensor.name}' takes {dtype}")
    return arrays


def _in_graph(
    model_graphs: ModelGraphs,
    graph: Graph,
    pairs: Sequence[TensorPair],
    arrays: list[Any],
    nudge: _Nudge | None = None,
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
        yield from _in_graph(model_graphs, inner, pairs, inner_arrays, nudge, measure)
    if here:
        state = _nudged(here[0].copy.owner, nudge) if nudge else []
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
    arrays = random_inputs(model_graphs.root)
    same = [TensorPair(t.name, t.graph, t.graph, t.expected, t.expected) for t in pairs]
    moved: dict[str, float] = {}
    for seed in range(3):
        for name, distance in _in_graph(
            model_graphs, model_graphs.root, same, arrays, _Nudge(seed, epsilon)
        ):
            moved[name] = max(moved.get(name, 0.0), distance)
        yield moved


@dataclass(frozen=True)
class _Nudge:
    """Move every floating weight up or down, as the seed has it, by one rounding step."""

    seed: int
    epsilon: float


def _nudged(owner: keras.Layer, nudge: _Nudge) -> list[tuple[keras.Variable, Any]]:
    generator = np.random.default_rng(nudge.seed)
    state = []
    for variable in owner.variables:
        if keras.backend.is_float_dtype(variable.dtype):
            up = generator.integers(0, 2, variable.shape, dtype=bool)
            steps = np.where(up, np.float32(nudge.epsilon), np.float32(-nudge.epsilon))
            state.append((variable, keras.ops.cast(variable.value * (1 + steps), variable.dtype)))
    return state


def output_pairs(model_graphs: ModelGraphs, copy: Graph) -> list[TensorPair]:
    """The outputs of a model and of its copy, as "output 0", "output 1", …."""
    root = model_graphs.root
    ends = zip(tree.flatten(root.outputs), tree.flatten(copy.outputs), strict=True)
    return [TensorPair(f"output {number}", root, copy, *pair) for number, pair in enumerate(ends)]


def _rows(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)


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
