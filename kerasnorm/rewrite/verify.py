"""Compare a rewritten model with its source, at every call that was rewritten.

A difference of the outputs alone proves little: behind a softmax, networks agree that differ by
far before it. Both models are run from the same inputs, without side effects; the calls inside a
nested model are compared on what the source feeds that model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import tree

from kerasnorm.errors import SwapError
from kerasnorm.rewrite import graph as graphs
from kerasnorm.rewrite.graph import Graph

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
_FREE_SIZE = 32
_ROWS = 2


@dataclass(frozen=True)
class Twin:
    """The output of one call of the source, and what stands in its place.

    Attributes:
        name: What to call it in messages.
        graph: The source's graph that the call is in.
        model: The result's model of that graph.
        expected: The symbolic tensor in the source.
        received: The symbolic tensor in the result.
    """

    name: str
    graph: Graph
    model: keras.Model
    expected: Any
    received: Any


class NotComparableError(SwapError):
    """The source itself cannot be run on the inputs."""


def differences(
    root: Graph, model: keras.Model, twins: Sequence[Twin], inputs: Any = None
) -> dict[str, float]:
    """max|Δ| / std of the source's tensor, by name; the outputs follow as "output 0", ….

    Args:
        root: The source's graph.
        model: What it was rewritten to.
        twins: The pairs to compare.
        inputs: A batch in the structure of the model's inputs; None for seeded random numbers.

    Raises:
        NotComparableError: If the source cannot be run.
    """
    arrays = random_inputs(root.model) if inputs is None else tree.flatten(inputs)
    outputs = [
        Twin(f"output {number}", root, model, *pair)
        for number, pair in enumerate(zip(root.model.outputs, model.outputs, strict=True))
    ]
    return dict(_in_graph(root, [*twins, *outputs], arrays))


def insist(root: Graph, model: keras.Model, twins: Sequence[Twin]) -> list[str]:
    """Raise SwapError where the models differ by more than rounding; otherwise notes.

    The inputs are seeded random numbers. A source that cannot be run on such is said to be
    uncompared in the notes.
    """
    try:
        found = differences(root, model, twins)
    except NotComparableError as reason:
        return [f"not compared with its source: {reason}"]
    dtypes = {layer.compute_dtype for layer in graphs.sublayers(root.model)}
    tolerance = max(TOLERANCES.get(dtype, DEFAULT_TOLERANCE) for dtype in (*dtypes, "float32"))
    if max(found.values()) <= tolerance:
        return []
    moved = _own_movement(root, twins)
    for name, difference in found.items():
        if not difference <= max(tolerance, _ROUNDINGS * moved[name]):
            raise SwapError(
                f"The rewritten model differs from its source at '{name}' by {difference:.2g} "
                f"standard deviations on random inputs; allowed is {tolerance:.0e}.",
                model=root.model.name,
                hint="A layer may hold more than its config and variables tell, or the weights "
                "amplify rounding. Leave that site out with `sites=`.",
            )
    return []


def random_inputs(model: keras.Model) -> list[np.ndarray]:
    """Seeded inputs: standard normal, integers below every vocabulary, booleans.

    Raises:
        NotComparableError: If an input takes something else, such as text.
    """
    generator = np.random.default_rng(0)
    vocabularies = [getattr(layer, "input_dim", None) for layer in graphs.sublayers(model)]
    limit = min([size for size in vocabularies if isinstance(size, int)], default=10)
    arrays = []
    for tensor in model.inputs:
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
    graph: Graph, twins: Sequence[Twin], arrays: list[Any], nudge: int = 0
) -> Iterator[tuple[str, float]]:
    here = [twin for twin in twins if twin.graph.model is graph.model]
    nested = {id(call.operation): call for call in graph.calls if graphs.has_graph(call.operation)}
    fed = [tensor for call in nested.values() for tensor in call.inputs]
    try:
        answers = _answers(graph.model, [*(t.expected for t in here), *fed], arrays)
    except Exception as error:
        # any model of any user, on inputs it was not made for
        said = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise NotComparableError(f"the source fails on random inputs ({said[:100]})") from error
    values = iter(answers[len(here) :])
    for call in nested.values():
        inner_arrays = [next(values) for _ in call.inputs]
        yield from _in_graph(Graph(call.operation), twins, inner_arrays, nudge)
    if here:
        received = _answers(here[0].model, [twin.received for twin in here], arrays, nudge)
        for twin, expected, answer in zip(here, answers, received, strict=False):
            yield twin.name, spread_difference(expected, answer)


def _own_movement(root: Graph, twins: Sequence[Twin]) -> dict[str, float]:
    """How far the source itself moves when all its weights move by one rounding step.

    Where weights amplify rounding, as a BatchNorm does behind channels that hardly vary, this is
    what any other way to compute the same may be off by.
    """
    arrays = random_inputs(root.model)
    outputs = [
        Twin(f"output {number}", root, root.model, tensor, tensor)
        for number, tensor in enumerate(root.model.outputs)
    ]
    same = [Twin(t.name, t.graph, t.graph.model, t.expected, t.expected) for t in twins]
    moved: dict[str, float] = {}
    for seed in range(3):
        for name, distance in _in_graph(root, [*same, *outputs], arrays, nudge=seed + 1):
            moved[name] = max(moved.get(name, 0.0), distance)
    return moved


def _answers(
    model: keras.Model, tensors: list[Any], arrays: list[Any], nudge: int = 0
) -> list[np.ndarray]:
    """What a model has at some of its symbolic tensors; its own state stays as it is.

    With `nudge`, a seed, every floating weight is moved by a rounding step of float32 first.
    """
    if not tensors:
        return []
    probe = keras.Model(model.inputs, tensors)
    generator = np.random.default_rng(nudge)

    def value(variable):
        if not nudge or not keras.backend.is_float_dtype(variable.dtype):
            return variable.value
        steps = generator.choice([-1.0, 1.0], variable.shape) * np.finfo("float32").eps
        return keras.ops.cast(variable.value * (1 + steps), variable.dtype)

    values, _ = probe.stateless_call(
        [value(v) for v in probe.trainable_variables],
        [value(v) for v in probe.non_trainable_variables],
        [keras.ops.convert_to_tensor(array) for array in arrays],
        training=False,  # a call fixed to True would move statistics that another call reads
    )
    return [keras.ops.convert_to_numpy(answer) for answer in tree.flatten(values)]


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
