"""Compare a rewritten model with its source, at every call that was rewritten.

A difference of the outputs alone proves little: behind a softmax, networks agree that differ by
far before it. Nor does one relative to a whole tensor: a channel of small numbers may be wrong
beside one of large numbers. Each channel is judged by its own spread.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import keras
import numpy as np
from keras import tree

from kerasnorm.compare.in_float32 import SIXTEEN_BITS, in_float32
from kerasnorm.compare.measures import as_rows, channel_differences
from kerasnorm.compare.random_inputs import (
    NotComparableError,
    is_saturated,
    random_inputs,
    scaled_off_saturation,
)
from kerasnorm.compare.rounding import MOVES, ROUNDINGS
from kerasnorm.compare.side_by_side import SideBySide, Values, joined, source_values
from kerasnorm.compare.tensor_pairs import ModelPair
from kerasnorm.compare.tolerances import EPSILONS, OF_DEVIATION, coarsest_dtype
from kerasnorm.errors import DataError, SwapError
from kerasnorm.graph.graph import Graph
from kerasnorm.graph.named_inputs import in_order_of_inputs

# Samples in the random inputs: so many that a channel has this many numbers at every site, and more
# where the tensors of all calls are no larger than this together. A deviation of two numbers may
# be anything.
_NUMBERS_OF_CHANNEL, _NUMBERS_IN_ALL = 4, 2**20
_FEWEST_SAMPLES, _MOST_SAMPLES = 2, 32
_FREE_SIZE = 32
# Numbers in the tensors that are compared, and in a single one, for a sample: beyond, a model is
# not run by itself. 600 images of 600 by 600 pixels are a tenth of it.
_MOST_COMPARED, _MOST_IN_ONE = 2**29, 2**27


def differences(models: ModelPair, inputs: Any = None) -> dict[str, float]:
    """max|Δ| over the channel's standard deviation in the source, the worst channel, by name.

    Args:
        models: The models.
        inputs: A batch in the structure of the source's inputs; None for seeded random numbers.

    Raises:
        SwapError: If the source cannot be run on them. DataError, which is one, if they do not fill
            a batch of a model that takes batches of one size.
    """
    try:
        root = models.source.root
        if inputs is None:
            parts = [random_batch(models)]
        else:
            parts = _in_batches(root, tree.flatten(in_order_of_inputs(inputs, root)))
        runs = zip(*(SideBySide(models).run(arrays) for arrays in parts), strict=True)
        return {found[0].name: _worst(_of_channels(joined(found))) for found in runs}
    except NotComparableError as reason:
        kind = "random" if inputs is None else "the given"
        raise SwapError(
            f"The source must be able to run on {kind} inputs. Received: {reason}.",
            model=models.source.root.owner.name,
        ) from reason


def check_equal(models: ModelPair) -> tuple[dict[str, float], list[str]]:
    """Raise SwapError where two models differ by more than rounding; otherwise how far they do.

    The inputs are seeded random numbers: smaller or larger ones too where probabilities that the
    models end in hide what is in front of them, and positive ones where the source is not finite.
    Behind each tensor that is compared both models go on
    from what the source has there, so that each is judged by what was computed since the last one.
    A channel may be off by what is allowed for the dtype; where its weights amplify rounding, by 8
    times what moving them by one rounding step does to this channel in the source.

    What computes in 16 bits is judged in float32 as well.

    Args:
        models: The models.

    Returns:
        The differences of the pairs that are to be the same, by name, and notes on what could not
        be compared.
    """
    dtype = coarsest_dtype(models.source.root.owner)
    found, notes = _checked(models, dtype)
    if dtype not in SIXTEEN_BITS:
        return found, notes
    with in_float32(models) as wide:
        if wide is not None:
            in_wide, notes = _checked(wide, "float32")
            return found or in_wide, notes
    return found, [
        *notes,
        f"compared in {dtype} alone, whose rounding may hide differences of less than "
        f"{OF_DEVIATION[dtype]:g} standard deviations: a layer cannot be had in float32",
    ]


def check_finite(models: ModelPair) -> tuple[dict[str, float], list[str]]:
    """Raise SwapError where the copy is not finite and its source is.

    Returns:
        As `check_equal`.
    """
    dtype = coarsest_dtype(models.source.root.owner)
    found, broken = {}, []
    try:
        for values in SideBySide(models).run(random_batch(models)):
            found[values.name] = _worst(_of_channels(values, dtype))
            if (np.isfinite(values.expected) & ~np.isfinite(values.received)).any():
                broken.append(values.name)
    except NotComparableError as reason:
        return {}, [_not_compared(reason)]
    if broken:
        raise SwapError(
            f"The swapped model must be finite where its source is. Received NaN or infinities at "
            f"'{broken[0]}' on random inputs.",
            model=models.source.root.owner.name,
            hint="Leave that site out with `sites=`.",
        )
    return found, []


def random_batch(models: ModelPair) -> list[np.ndarray]:
    """Seeded random inputs for both models.

    Raises:
        NotComparableError: If an input takes text, or the tensors would take too much room.
    """
    calls = [call for graph in models.source.graphs.values() for call in graph.calls]
    sizes = [_size(output) for call in calls for output in call.outputs]
    compared = sum(_size(pair.expected) for pair in models.pairs)
    if max(sizes, default=0) > _MOST_IN_ONE or compared > _MOST_COMPARED:
        raise NotComparableError(
            f"it would take {4 * max(compared, *sizes):,} bytes a sample to run it"
        )
    positions = [_size(p.expected) // (p.expected.shape[p.axis] or 1) for p in models.sites]
    fewest = min(positions, default=_NUMBERS_OF_CHANNEL) or 1
    least = max(_FEWEST_SAMPLES, math.ceil(_NUMBERS_OF_CHANNEL / fewest))
    samples = min(max(least, _NUMBERS_IN_ALL // max(1, sum(sizes))), _MOST_SAMPLES)
    root, free = models.source.root, (_FREE_SIZE, _FREE_SIZE)
    return random_inputs(tree.flatten(root.inputs), root.owner, samples, free=free)


def unsaturated_batch(models: ModelPair) -> list[np.ndarray]:
    """The same, scaled so that not every probability among the source's outputs is 0 or 1."""

    def answer(arrays: list[np.ndarray]) -> list[np.ndarray]:
        outputs = [pair.expected for pair in models.outputs]
        values = source_values(models.source.root, arrays, outputs)
        return [keras.ops.convert_to_numpy(value) for value in values]

    return scaled_off_saturation(random_batch(models), answer)[0]


def _in_batches(root: Graph, arrays: list[Any]) -> list[list[Any]]:
    """Inputs as they are; for a model of one batch size in such batches, the rest left out."""
    size = root.batch_size
    if size is None:
        return [arrays]
    count = min(len(array) for array in arrays)
    if count < size:
        raise DataError(
            f"The inputs must fill a batch of the model, which takes {size:,} samples at a time. "
            f"Received {count:,}.",
            model=root.owner.name,
        )
    firsts = range(0, count - size + 1, size)
    return [[array[first : first + size] for array in arrays] for first in firsts]


def _size(tensor: Any) -> int:
    return math.prod(_FREE_SIZE if n is None else n for n in tensor.shape[1:])


def _of_channels(values: Values, dtype: str = "float32") -> np.ndarray:
    """How far each channel is off.

    float16 ends at 65,504: what random inputs bring to more than that is compared in float32 alone.
    """
    expected, received, axis = values.expected, values.received, values.pair.axis
    if dtype == "float16" and expected.shape == received.shape:
        rows, others = as_rows(expected, axis), as_rows(received, axis)
        finite = np.isfinite(rows).all(1, keepdims=True)
        if not finite.all():
            expected, received = (np.where(finite, v, np.nan) for v in (rows, others))
            axis = -1
    return channel_differences(expected, received, axis)


def _worst(channels: np.ndarray) -> float:
    """The largest of some differences; NaN where none of them is a number."""
    return float(np.fmax.reduce(channels))


def _checked(models: ModelPair, dtype: str) -> tuple[dict[str, float], list[str]]:
    """What `check_equal` returns, for what is rounded in a dtype."""
    try:
        arrays = random_batch(models)
        found, saturated = _judged(models, arrays, dtype)
        if saturated:
            _judged(models, unsaturated_batch(models), dtype, saturated)
        unseen = [name for name, channels in found.items() if np.isnan(channels).any()]
        if unseen:
            positive = [np.abs(a) if a.dtype.name in EPSILONS else a for a in arrays]
            again, _ = _judged(models, positive, dtype, unseen)
            found |= {name: np.fmax(found[name], again[name]) for name in unseen}
    except NotComparableError as reason:
        return {}, [_not_compared(reason)]
    unseen = [name for name in unseen if np.isnan(found[name]).any()]
    notes = [
        f"not every channel of '{name}' is compared with its source, which is not finite there on "
        "random inputs, positive ones neither"
        for name in unseen
    ]
    return {name: _worst(channels) for name, channels in found.items()}, notes


def _judged(
    models: ModelPair, arrays: list[np.ndarray], dtype: str, names: Collection[str] | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """How far each channel is off where two models are to be the same, and what is saturated.

    Args:
        models: The models.
        arrays: The inputs, flat.
        dtype: That of the rounding.
        names: What to look at; None for all.

    Returns:
        The differences by name, NaN where nothing is finite; and the names of outputs whose
        probabilities are all 0 or 1.

    Raises:
        SwapError: Where one is further off than rounding.
    """
    found: dict[str, np.ndarray] = {}
    saturated = []
    for values in SideBySide(models, stepwise=True).run(arrays):
        pair, name = values.pair, values.name
        if not pair.exact or (names is not None and name not in names):
            continue
        found[name] = _of_channels(values, dtype)
        is_seen = not np.isnan(found[name]).any()
        if is_seen and pair.graph.is_output(pair.expected) and is_saturated(values.expected):
            saturated.append(name)
    allowed = _allowed(models, arrays, found, dtype)
    off = [name for name, channels in found.items() if (channels > allowed[name]).any()]
    if not off:
        return found, saturated
    name, channels = off[0], found[off[0]]
    channel = int(np.nanargmax(channels / allowed[name]))
    raise SwapError(
        f"The rewritten model differs from its source at '{name}', in channel {channel}, by "
        f"{channels[channel]:.2g} of its standard deviations on random inputs; allowed is "
        f"{allowed[name][channel]:.2g}.",
        model=models.source.root.owner.name,
        hint="A layer may hold more than its config and variables tell, or the weights amplify "
        "rounding. Leave that site out with `sites=`.",
    )


def _allowed(
    models: ModelPair, arrays: list[np.ndarray], found: dict[str, np.ndarray], dtype: str
) -> dict[str, np.ndarray]:
    """How far each channel may be off. Rounding is looked at only where something is further off.

    Where weights amplify rounding, as a BatchNorm does behind channels that hardly vary, how far
    the source moves with them is what any other way to compute the same may be off by.
    """
    allowed = {name: np.full(len(d), OF_DEVIATION[dtype]) for name, d in found.items()}
    for seed in range(MOVES):
        if not any((channels > allowed[name]).any() for name, channels in found.items()):
            break
        moved = SideBySide(models.of_source(), stepwise=True, moved=(seed, EPSILONS[dtype]))
        for values in moved.run(arrays):
            if values.name in allowed:
                movement = ROUNDINGS * _of_channels(values, dtype)
                allowed[values.name] = np.fmax(allowed[values.name], movement)
    return allowed


def _not_compared(reason: Exception) -> str:
    return f"not compared with its source on random inputs: {reason}"
