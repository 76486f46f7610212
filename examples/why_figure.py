"""The figure of `why_normalization_works.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SCALES = (0.5, 1, 2)
LAMBDA = 10.0
HEADS = ("out", "∂/∂x", "∂/∂W")
PLACES = ("raw, norm inside", "raw, norm first", "standardized")
# Curves that coincide are seen all the same.
STYLES: dict[str, dict[str, Any]] = {
    "none": {"linewidth": 6, "color": "lightgray"},
    "weight": {"linewidth": 1.5, "color": "tab:green"},
    "batch": {"linewidth": 4, "color": "tab:blue", "alpha": 0.5},
    "weight, data_init": {"linewidth": 1.5, "color": "tab:purple", "linestyle": "--"},
    "layer": {"linewidth": 4, "color": "tab:orange", "alpha": 0.5},
    "cosine": {"linewidth": 1.5, "color": "tab:red", "linestyle": ":"},
}


@dataclass
class Measured:
    """What the four parts found, by normalization."""

    depth: dict[str, list[tuple[np.ndarray, np.ndarray]]]
    scales: dict[str, list[float | None]]
    unlike: dict[str, list[float | None]]
    length: dict[str, float]


def as_factor(number: float | None) -> str:
    return "no factor" if number is None else f"{number:.3g}"


def draw(found: Measured, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 12), layout="constrained")
    grid = figure.subplots(3, 3)
    for column, scale in enumerate(SCALES):
        for line, what in enumerate(("signal", "gradient")):
            axes = grid[line, column]
            for name, sizes in found.depth.items():
                depth = np.arange(1, len(sizes[column][line]) + 1)
                axes.plot(depth, sizes[column][line], label=name, **STYLES[name])
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, 0.1), max(high, 10))
            axes.set(xlabel="layer", title=f"(a) size of the {what}, {scale:g} × He")
            axes.grid(alpha=0.25)
    grid[0, 0].set_ylabel("root mean square")
    grid[1, 0].set_ylabel("relative to the last layer")
    grid[0, 0].legend(fontsize="small")
    draw_factors(grid[2, 0], found.scales)
    draw_bars(grid[2, 1], found.unlike, PLACES, "(c) features unlike each other")
    lengths = {name: [score] for name, score in found.length.items()}
    draw_bars(grid[2, 2], lengths, ("",), "(d) only the length tells")
    figure.savefig(path)


def draw_factors(axes, found: Mapping[str, list[float | None]]) -> None:
    shades = np.array([[np.nan if f is None else f for f in row] for row in found.values()])
    axes.imshow(np.log10(shades), cmap="coolwarm", vmin=-2, vmax=2, aspect="auto")
    for y, numbers in enumerate(found.values()):
        for x, number in enumerate(numbers):
            axes.text(x, y, as_factor(number).replace(" ", "\n"), ha="center", va="center", size=9)
    axes.set_yticks(range(len(found)), [name.replace(", ", ",\n") for name in found])
    heads = [f"{LAMBDA:g}·{by}:\n{head}" for by in ("W", "x") for head in HEADS]
    axes.set_xticks(range(len(heads)), heads, size=8)
    axes.set_title(f"(b) factors, weights or inputs times {LAMBDA:g}")


def draw_bars(axes, found: Mapping[str, list[float | None]], columns, title: str) -> None:
    height = 0.8 / len(columns)
    for number, label in enumerate(columns):
        at = np.arange(len(found)) + (number - (len(columns) - 1) / 2) * height
        scores = [100 * (numbers[number] or 0) for numbers in found.values()]
        axes.barh(at, scores, height, label=label)
    axes.axvline(50, color="black", linewidth=1, linestyle=":")
    axes.set_yticks(range(len(found)), [name.replace(", ", ",\n") for name in found])
    axes.invert_yaxis()
    axes.set(xlim=(40, 100), xlabel="test accuracy, percent (guessing: 50)", title=title)
    if len(columns) > 1:
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.4, -0.15), ncols=3)
