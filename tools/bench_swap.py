"""Time and memory of a swap to weight norm, beside those of copying the model as Keras does.

    python tools/bench_swap.py [ARCHITECTURE …] [--size PIXELS] [--rounds N] [--write FILE]

Time: `keras.models.clone_model` with `set_weights`, and `swap_norms`, which also compares its
result with the source, in turn in one process. The ratio is that of the medians; with it stand
the smallest and the largest ratio of two neighbours in time. The first round, in which TensorFlow
loads its kernels, does not count.

Memory, each in a fresh process and less what a process has that swaps a model of a few kilobytes:
what is resident once the source is built; the peak of building and cloning it; the peak of building
and swapping it; and what is resident when the source and the swapped model are all that is left.
The share is the last peak over that. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import keras

import kerasnorm

ARCHITECTURES = ("ResNet152V2", "EfficientNetB7", "DenseNet201", "NASNetLarge")
HEADER = (
    "model", "layers", "clone, s", "swap, s", "ratio", "weights of both, MB", "source, MB",
    "cloning, peak", "swapping, peak", "both models", "share",
)  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=ARCHITECTURES, metavar="ARCHITECTURE")
    parser.add_argument("--size", type=int, default=32, metavar="PIXELS")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--write", type=Path, metavar="FILE")
    args = parser.parse_args()
    lines = [row(HEADER), row(["---"] * len(HEADER))]
    print(*lines, sep="\n", flush=True)
    base = alone(memory_of, None, args.size, "swap").kept
    for name in args.names:
        lines.append(measure(name, args.size, args.rounds, base))
        print(lines[-1], flush=True)
    if args.write:
        args.write.write_text("\n".join(lines) + "\n")


def measure(name: str, size: int, rounds: int, base: float) -> str:
    """The row of one architecture."""
    layers, clone, swap = alone(times_of, name, size, rounds)
    source = alone(memory_of, name, size, "nothing").kept - base
    cloning = alone(memory_of, name, size, "clone").peak - base
    swapping = alone(memory_of, name, size, "swap")
    peak, kept = swapping.peak - base, swapping.kept - base
    return row(
        [
            name,
            str(layers),
            f"{statistics.median(clone):.1f}",
            f"{statistics.median(swap):.1f}",
            ratio(clone, swap),
            *(f"{size:.0f}" for size in (swapping.weights, source, cloning, peak, kept)),
            f"{peak / kept:.2f}",
        ]
    )


def alone(function: Callable, *args) -> Any:
    """What a function returns in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def times_of(name: str, size: int, rounds: int) -> tuple[int, list[float], list[float]]:
    """How many layers a model has, and the seconds of copying and of swapping it."""
    model = built(name, size)
    return len(model.layers), *times_in_turn(model, rounds)


def times_in_turn(model: keras.Model, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of copying a model and of swapping it to weight norm, in turn."""
    clone, swap = [], []
    for _ in range(rounds + 1):
        clone.append(seconds(lambda: cloned(model)))
        swap.append(seconds(lambda: kerasnorm.swap_norms(model, "weight")))
    return clone[1:], swap[1:]


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes, its result thrown away afterwards."""
    start = time.perf_counter()
    result = function()
    took = time.perf_counter() - start
    del result
    return took


def ratio(clone: Sequence[float], swap: Sequence[float]) -> str:
    """The ratio of the medians, and the range of those of neighbours in time."""
    ratios = sorted(b / a for a, b in zip(clone, swap, strict=True))
    middle = statistics.median(swap) / statistics.median(clone)
    return f"{middle:.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"


class Memory(NamedTuple):
    """Of one process, in MB."""

    peak: float
    kept: float
    weights: float
    """Of all models."""


def memory_of(name: str | None, size: int, then: str) -> Memory:
    """The resident set of this process: its peak, and with nothing but the models left.

    Args:
        name: The architecture to build first; None for a tiny model.
        size: Of its input.
        then: "nothing", "clone" or "swap".
    """
    models = [tiny() if name is None else built(name, size)]
    if then == "clone":
        models.append(cloned(models[0]))
    elif then == "swap":
        models.append(kerasnorm.swap_norms(models[0], "weight").model)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else what is free counts too
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    kept = pages * resource.getpagesize() / 2**20
    weights = sum(v.value.dtype.size * math.prod(v.shape) for m in models for v in m.variables)
    return Memory(peak, kept, weights / 2**20)


def built(name: str, size: int) -> keras.Model:
    """A keras.applications model with random weights."""
    return getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3))


def cloned(model: keras.Model) -> keras.Model:
    """A copy of a model, as Keras makes it."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def tiny() -> keras.Model:
    """A model of the layers that the architectures are made of."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(8, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3),
            layers.BatchNormalization(),
            layers.SeparableConv2D(8, 3),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(8, activation="softmax"),
        ]
    )


def row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
