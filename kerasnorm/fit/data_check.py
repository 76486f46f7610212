"""Whether inputs are of the kind that a model was trained on, by what its BatchNorm remember."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from keras import ops

from kerasnorm.errors import DataError, Refusal
from kerasnorm.fit.split import same_shapes
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import Site
from kerasnorm.graph.steps import Key, Steps
from kerasnorm.graph.stored_statistics import StoredStatistics, stored_statistics

# A site's inputs are unlike where their deviation, of the middle channel, is so many times the
# stored one or smaller, or their mean so many stored deviations away. Other images of the same kind
# stay below 3: another camera, poor light.
_UNLIKE = 5.0
# Pixels of 0 to 255 for those of 0 to 1, or of −1 to 1, are 255 and 127 times as large.
_FAR = 20.0
# How many samples are looked at.
SAMPLES = 64


@dataclass(frozen=True)
class UnlikeData:
    """What the first BatchNorm meets beside what it met in training.

    Attributes:
        site: Its name.
        spread: The deviation of its inputs over the stored one, of the middle channel.
        shift: How many stored deviations their mean is from the stored one.
    """

    site: str
    spread: float
    shift: float

    @property
    def is_far(self) -> bool:
        """Whether nothing that is measured on such inputs says how the model does on its own."""
        return _is_beyond(_FAR, self.spread, self.shift)

    def __str__(self) -> str:
        return (
            "inputs unlike those that the model was trained on: at "
            f"'{self.site}' their deviation is {self.spread:.2g} times the stored one, and their "
            f"mean {self.shift:.2g} stored deviations away"
        )


def check_like(unlike: UnlikeData | None, strict: bool, allowed: bool, model: str) -> None:
    """Refuse data that is far from that of the training, or under `strict`, any unlike it.

    Raises:
        DataError: If it is, and it is not allowed.
    """
    if unlike is None or not (strict or (unlike.is_far and not allowed)):
        return
    raise DataError(
        f"The data must be like that of the training. Received {unlike}.",
        model=model,
        hint="Scale it as for training, or where it is meant, pass allow_unlike_data=True "
        "(--allow-unlike-data), and not `strict`.",
    )


def unlike_data(
    model_graphs: ModelGraphs, sites: Iterable[Site], batches: list[list[np.ndarray]]
) -> UnlikeData | None:
    """What is unlike at the first BatchNorm that was trained; None if nothing is.

    Args:
        model_graphs: The source's graphs.
        sites: Its sites.
        batches: Some of its inputs, flat.
    """
    if not batches:
        return None
    parts = [arrays for arrays in batches if same_shapes(arrays, batches[0])]
    if model_graphs.root.batch_size is not None:
        parts = parts[:1]
    arrays = [np.concatenate(column) for column in zip(*parts, strict=True)]
    if model_graphs.root.batch_size is None:
        arrays = [array[:SAMPLES] for array in arrays]
    by_call = {id(site.call): site for site in sites}
    steps = Steps(model_graphs.root, model_graphs.graphs)
    values: dict[Key, object] = dict(
        zip(steps.inputs, map(ops.convert_to_tensor, arrays), strict=True)
    )
    for step in steps.steps:
        site = by_call.get(id(step.call))
        known = None if site is None else _trained_statistics(site)
        if site is not None and known is not None:
            x = ops.convert_to_numpy(values[step.keys[id(site.call.inputs[0])]])
            spread, shift = _beside(x, site.axis, known)
            return (
                UnlikeData(site.name, spread, shift) if _is_beyond(_UNLIKE, spread, shift) else None
            )
        values.update(zip(step.gives, step.run(values), strict=True))
    return None


def _trained_statistics(site: Site) -> StoredStatistics | None:
    known = stored_statistics(site.call.operation)
    if isinstance(known, Refusal) or (np.all(known.mean == 0) and np.all(known.variance == 1)):
        return None
    return known


def _beside(x: np.ndarray, axis: int, known: StoredStatistics) -> tuple[float, float]:
    rows = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]).astype("float64")
    stored = np.sqrt(known.variance) + 1e-12
    spread = float(np.median(rows.std(axis=0) / stored))
    return spread, float(np.median(np.abs(rows.mean(axis=0) - known.mean) / stored))


def _is_beyond(times: float, spread: float, shift: float) -> bool:
    return not (1 / times < spread < times and shift < times)
