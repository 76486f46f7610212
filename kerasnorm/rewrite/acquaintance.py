"""Whether inputs are of the kind that a model was trained on, by what its BatchNorm remember."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from kerasnorm.rewrite.graph import Graph
from kerasnorm.rewrite.match import Site, statistics
from kerasnorm.rewrite.run import run

# A site's inputs are unlike where their deviation, of the middle channel, is so many times the
# stored one or smaller, or their mean so many stored deviations away. Other images of the same kind
# stay below 3: another camera, poor light.
_TIMES, _DEVIATIONS = 5.0, 5.0
_SAMPLES = 64


class FirstBatch:
    """Remembers the first batch that passes."""

    arrays: list[np.ndarray] | None = None

    def watch(self, batches: Iterable[list[np.ndarray]]) -> Iterator[list[np.ndarray]]:
        """Pass batches on."""
        for arrays in batches:
            if self.arrays is None:
                self.arrays = arrays
            yield arrays


def unlike(root: Graph, sites: Iterable[Site], arrays: list[np.ndarray]) -> list[str]:
    """A warning where the first BatchNorm meets something else than it did in training.

    Args:
        root: The source's own graph.
        sites: Its sites, in order.
        arrays: Inputs, flat.
    """
    for site in sites:
        known = statistics(site.call.operation)
        if site.graph is not root or isinstance(known, str):
            continue
        few = [array[:_SAMPLES] for array in arrays]
        [values] = run(root, few, [site.call.inputs[0]])
        rows = np.moveaxis(values, site.axis, -1).reshape(-1, values.shape[site.axis])
        rows = rows.astype("float64")
        stored = np.sqrt(known.variance) + 1e-12
        spread = float(np.median(rows.std(axis=0) / stored))
        shift = float(np.median(np.abs(rows.mean(axis=0) - known.mean) / stored))
        if not (1 / _TIMES < spread < _TIMES and shift < _DEVIATIONS):
            return [
                "warning: these inputs are unlike those that the model was trained on: at "
                f"'{site.name}' their deviation is {spread:.2g} times the stored one, and their "
                f"mean {shift:.2g} stored deviations away. Scale them as for training"
            ]
        return []
    return []
