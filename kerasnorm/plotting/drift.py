"""Figures of distributions that move, drawn by matplotlib without its global state."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kerasnorm.plotting import figure as figures

_COLUMNS = 4


def draw_bands(axes: Any, steps: Sequence[int], percentiles: np.ndarray) -> None:
    """A median over training steps, in the band between a lower and an upper percentile."""
    low, middle, high = percentiles
    axes.fill_between(steps, low, high, alpha=0.25, linewidth=0, label="15th to 85th percentile")
    axes.plot(steps, middle, linewidth=1.5, label="median")
    axes.set_xlim(steps[0], steps[-1])
    axes.grid(alpha=0.25)


def save_panels(path: str | os.PathLike[str], panels: Mapping[str, Callable[[Any], None]]) -> None:
    """Write a picture with a panel for each function that draws into axes; one legend for all.

    Raises:
        KerasNormError: If matplotlib is not installed, or the file cannot be written.
    """
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    size = max(4.5, 3.2 * columns), 2.6 * rows + 0.6
    figure = figures.figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for number, (heading, draw) in enumerate(panels.items()):
        axes = grid.flat[number]
        draw(axes)
        axes.set_title(heading, fontsize="medium")
        if number + columns >= len(panels):  # nothing below
            axes.set_xlabel("training steps")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figures.save(figure, path)
