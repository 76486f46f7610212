"""Whether inputs are of the kind that a model was trained on, by what its BatchNorm remember."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from keras import tree

from kerasnorm.errors import Refusal
from kerasnorm.fit.split import same_shapes
from kerasnorm.graph.execute import run
from kerasnorm.graph.graph import Graph
from kerasnorm.graph.sites import Site
from kerasnorm.graph.stored_statistics import stored_statistics

# A site's inputs are unlike where their deviation, of the middle channel, is so many times the
# stored one or smaller, or their mean so many stored deviations away. Other images of the same kind
# stay below 3: another camera, poor light.
_TIMES, _DEVIATIONS = 5.0, 5.0
_SAMPLES = 64


class FirstSamples:
    """Remembers the first samples that pass, in whole batches."""

    def __init__(self) -> None:
        self._parts: list[list[np.ndarray]] = []
        self._count = 0

    def collect(self, batches: Iterable[list[np.ndarray]]) -> Iterator[list[np.ndarray]]:
        """Pass batches on."""
        for arrays in batches:
            if self._count < _SAMPLES and (not self._parts or same_shapes(arrays, self._parts[0])):
                self._parts.append(arrays)
                self._count += len(arrays[0])
            yield arrays

    def arrays(self, root: Graph) -> list[np.ndarray]:
        """The samples for a model, as flat inputs."""
        sizes = [t.shape[0] for t in tree.flatten(root.inputs) if t.shape[0] is not None]
        if sizes:  # of every batch, by the model
            return self._parts[0]
        columns = zip(*self._parts, strict=True)
        return [np.concatenate(column)[:_SAMPLES] for column in columns]


def check_data(root: Graph, sites: Iterable[Site], arrays: list[np.ndarray]) -> list[str]:
    """What to be warned of where the first BatchNorm meets something else than it did in training.

    Args:
        root: The source's own graph.
        sites: Its sites, in order.
        arrays: Inputs, flat.
    """
    for site in sites:
        known = stored_statistics(site.call.operation)
        if site.graph is not root or isinstance(known, Refusal):
            continue
        [values] = run(root, arrays, [site.call.inputs[0]])
        rows = np.moveaxis(values, site.axis, -1).reshape(-1, values.shape[site.axis])
        rows = rows.astype("float64")
        stored = np.sqrt(known.variance) + 1e-12
        spread = float(np.median(rows.std(axis=0) / stored))
        shift = float(np.median(np.abs(rows.mean(axis=0) - known.mean) / stored))
        if not (1 / _TIMES < spread < _TIMES and shift < _DEVIATIONS):
            return [
                "these inputs are unlike those that the model was trained on: at "
                f"'{site.name}' their deviation is {spread:.2g} times the stored one, and their "
                f"mean {shift:.2g} stored deviations away. Scale them as for training"
            ]
        return []
    return []
