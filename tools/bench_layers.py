"""Speed of the layers under XLA, beside Keras's own, the bare layers and PyTorch's.

    python tools/bench_layers.py [--groups NAME ...] [--largest ENTRIES] [--rounds N] [--threads N]
                                 [--plot FILE]
    KERAS_BACKEND=jax python tools/bench_layers.py …

A table for each group of layers, from small to large inputs (of up to --largest entries): the
milliseconds of the first, and of the others the ratio to it, with the quartiles of the ratios
within a round in brackets; under it their geometric mean and the worst. All layers of a row run in
one process, in turn, in a random order in each round, every one for about 50 ms. A training step is
the forward pass and the gradients in the input and in all weights; BatchNorm also moves its
statistics. The column `again` is the first layer once more: what it is off 1.00 is noise.

The last group is a whole training step, SGD included, of fashion_resnet of the test material and of
what `swap_norms` makes of it. PyTorch's layer norm runs eagerly, where PyTorch is installed. One
thread unless told otherwise: on a machine that others use too, threads that wait for each other
drown the differences. With --plot, ratios over the size of the input are drawn as well, which needs
`pip install .[plot]`.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers
from steps import step
from timing import times

import kerasnorm as kn

PASSES = {"forward": False, "training step": True}

ROWS = ((32, 64), (256, 512), (4096, 1024), (32768, 64))
IMAGES = ((16, 14, 14, 64), (32, 28, 28, 64), (32, 56, 56, 64))


class Group(NamedTuple):
    """Layers to compare, the first with all others, and the shapes of their inputs."""

    makers: Mapping[str, Callable[[int], Any]]
    shapes: Sequence[tuple[int, ...]]


class Line(NamedTuple):
    """What was measured of one shape: seconds in each round by name of the layer."""

    what: str
    size: int
    took: dict[str, list[float]]


class ConvolutionAndBatchNorm(keras.layers.Layer):
    """A convolution and the batch normalization behind it, as one layer."""

    def __init__(self, filters):
        super().__init__()
        self.convolution = layers.Conv2D(filters, 3, padding="same", use_bias=False)
        self.norm = layers.BatchNormalization()

    def build(self, input_shape):
        self.convolution.build(input_shape)
        self.norm.build(self.convolution.compute_output_shape(input_shape))

    def call(self, inputs, training=None):
        return self.norm(self.convolution(inputs), training=training)


def convolution(units: int) -> keras.layers.Layer:
    """The bare convolution that all others are compared with."""
    return layers.Conv2D(units, 3, padding="same")


GROUPS = {
    "BatchNorm": Group(
        {
            "keras BatchNormalization": lambda units: layers.BatchNormalization(),
            "BatchNorm": lambda units: kn.BatchNorm(),
        },
        (*ROWS[:3], *IMAGES),
    ),
    "LayerNorm": Group(
        {
            "keras LayerNormalization": lambda units: layers.LayerNormalization(),
            "LayerNorm": lambda units: kn.LayerNorm(),
        },
        (*ROWS, *IMAGES[:2]),
    ),
    "Conv2D": Group(
        {
            "Conv2D": convolution,
            "WeightNorm(Conv2D)": lambda units: kn.WeightNorm(convolution(units)),
            "CosineNorm(Conv2D)": lambda units: kn.CosineNorm(convolution(units)),
            "Conv2D + BatchNormalization": ConvolutionAndBatchNorm,
        },
        (
            (16, 14, 14, 32), (16, 28, 28, 32), (16, 7, 7, 128), (16, 14, 14, 64), (16, 28, 28, 64),
            (64, 28, 28, 64), (16, 14, 14, 256),
        ),
    ),
    "Dense": Group(
        {
            "Dense": layers.Dense,
            "WeightNorm(Dense)": lambda units: kn.WeightNorm(layers.Dense(units)),
            "CosineNorm(Dense)": lambda units: kn.CosineNorm(layers.Dense(units)),
        },
        ((32, 64), (64, 256), (128, 512), (256, 1024), (1024, 1024), (4096, 1024)),
    ),
}  # fmt: skip
MODEL = "fashion_resnet"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [*GROUPS, MODEL]
    parser.add_argument("--groups", nargs="*", choices=names, default=names, metavar="NAME")
    default = os.environ.get("KERASNORM_MATERIAL", "../shared/material")
    parser.add_argument("--material", type=Path, default=Path(default), metavar="FOLDER")
    parser.add_argument("--largest", type=float, default=math.inf, metavar="ENTRIES")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="0: as many as cores")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios as a PNG")
    args = parser.parse_args()
    use_threads(args.threads)
    drawn: dict[str, list[Line]] = {}
    for name in args.groups:
        for passing in PASSES if name in GROUPS else ["training step"]:
            lines = drawn[f"{name}, {passing}"] = []
            for line in measured(name, passing, args):
                if not lines:
                    print_head(name, passing, line)
                lines.append(line)
                print_line(line)
            print_summary(lines)
    if args.plot:
        draw(drawn, args.plot)


def use_threads(number: int) -> None:
    """Of TensorFlow and PyTorch; JAX reads XLA_FLAGS, as the environment has it."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(number)
        tf.config.threading.set_inter_op_parallelism_threads(number)
    if number and importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(number)


def measured(name: str, passing: str, args: Any) -> Iterable[Line]:
    """The lines of one group, in one pass."""
    if name == MODEL:
        runs = model_steps(args.material / "models" / f"{MODEL}.keras")
        yield Line("batch of 32", 32, times(runs, args.rounds))
        return
    group = GROUPS[name]
    for shape in (s for s in group.shapes if math.prod(s) <= args.largest):
        makers = {**group.makers, "again": next(iter(group.makers.values()))}
        runs = {n: runner(make(shape[-1]), shape, PASSES[passing]) for n, make in makers.items()}
        if name == "LayerNorm" and importlib.util.find_spec("torch"):
            runs["PyTorch"] = torch_runner(shape, PASSES[passing])
        yield Line(" × ".join(map(str, shape)), math.prod(shape), times(runs, args.rounds))


def runner(layer: Any, shape: tuple[int, ...], gradients: bool) -> Callable[[], Any]:
    """One call of a compiled layer; forward, a BatchNorm runs on its stored statistics."""
    function, arguments = step(layer, shape, gradients, training=gradients)
    if keras.backend.backend() != "jax":
        return lambda: function(*arguments)
    import jax

    return lambda: jax.block_until_ready(function(*arguments))


def torch_runner(shape: tuple[int, ...], gradients: bool) -> Callable[[], Any]:
    """The same of torch.nn.LayerNorm, eagerly."""
    import torch

    layer = torch.nn.LayerNorm(shape[-1], eps=1e-3)
    x = torch.randn(shape, requires_grad=gradients)
    behind = torch.randn(shape)

    def forward():
        with torch.no_grad():
            return layer(x)

    def both():
        y = layer(x)
        return y, torch.autograd.grad(y, [x, *layer.parameters()], behind)

    return both if gradients else forward


def model_steps(path: Path) -> dict[str, Callable[[], Any]]:
    """A training step, compiled by XLA, of a model and of what each swap makes of it."""
    import tensorflow as tf

    source = kn.load_model(path)
    x = np.random.default_rng(0).uniform(size=(32, *source.input_shape[1:])).astype("float32")
    y = np.random.default_rng(1).integers(source.output_shape[-1], size=32)
    models = {"BatchNormalization": source}
    for to in ("weight", "layer", "group", "cosine"):
        models[to] = kn.swap_norms(source, to, None if to == "weight" else x).model
    for model in models.values():
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(), jit_compile=True)
    batch = tf.constant(x), tf.constant(y)
    models["again"] = source
    return {n: functools.partial(model.train_on_batch, *batch) for n, model in models.items()}


def ratio(line: Line, name: str) -> float:
    """Of the medians, to the first layer."""
    first = next(iter(line.took.values()))
    return statistics.median(line.took[name]) / statistics.median(first)


def print_head(name: str, passing: str, line: Line) -> None:
    """The header of a table."""
    first, *others = line.took
    print(f"\n### {name}, {passing}\n")
    print_row(["input", f"{first}, ms", *others])
    print_row(["---"] * (2 + len(others)))


def print_line(line: Line) -> None:
    """One row of it."""
    first, *others = line.took
    cells = [f"{1e3 * statistics.median(line.took[first]):.2f}"]
    for name in others:
        pairs = zip(line.took[first], line.took[name], strict=True)
        low, _, high = statistics.quantiles([b / a for a, b in pairs], method="inclusive")
        cells.append(f"{ratio(line, name):.2f} ({low:.2f}–{high:.2f})")
    print_row([line.what, *cells])


def print_summary(lines: Sequence[Line]) -> None:
    """The last row of a table with more than one."""
    if len(lines) < 2:
        return
    ratios = [[ratio(line, name) for line in lines] for name in list(lines[0].took)[1:]]
    means = [f"**{statistics.geometric_mean(r):.2f}**, worst {max(r):.2f}" for r in ratios]
    print_row(["geometric mean", "", *means])


def print_row(cells: Iterable[str]) -> None:
    """One line of a Markdown table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def draw(drawn: Mapping[str, Sequence[Line]], path: Path) -> None:
    """A panel for each table: ratios over the size of the input."""
    import matplotlib.pyplot as plt

    panels = {title: lines for title, lines in drawn.items() if len(lines) > 1}
    columns = 2
    height = -(-len(panels) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(11, 3.2 * height), squeeze=False)
    for ax, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        lines = sorted(lines, key=lambda line: line.size)
        first, *names = lines[0].took
        for name in (n for n in names if n != "again"):
            ax.plot([x.size for x in lines], [ratio(x, name) for x in lines], "o-", label=name)
        ax.axhline(1, color="black", linewidth=1, label=first)
        ax.set(title=title, xscale="log", xlabel="entries of the input", ylabel="time, ratio")
        ax.set_ylim(0, max(1.3, ax.get_ylim()[1]))
        ax.legend(fontsize="small", loc="best")
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    figure.tight_layout()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
