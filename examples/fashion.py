"""What the examples share: Fashion-MNIST, mini-batches of two kinds, and a table of accuracies."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np


@dataclass
class Data:
    """Images in [0, 1], to be trained on and to be tested on."""

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


@dataclass
class Settings:
    """How much is trained; `--quick` makes it a matter of seconds."""

    images: int = 10_000
    test_images: int = 10_000
    epochs: int = 4
    batch_sizes: tuple[int, ...] = (128, 4)
    seeds: int = 1


def settings_from_command_line(description: str) -> Settings:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--seeds", type=int, default=1, help="runs that each figure is a mean of")
    arguments = parser.parse_args()
    if arguments.quick:
        return Settings(images=256, test_images=256, epochs=1, batch_sizes=(32,), seeds=1)
    return Settings(seeds=arguments.seeds)


def load(settings: Settings) -> Data:
    """Fashion-MNIST from the folder in KERASNORM_MATERIAL (default ../shared/material)."""
    default = Path(__file__).resolve().parents[2] / "shared" / "material"
    path = Path(os.environ.get("KERASNORM_MATERIAL", default)) / "data" / "fashion_mnist.npz"
    if not path.exists():
        sys.exit(f"No {path}. Set KERASNORM_MATERIAL to a folder with data/fashion_mnist.npz.")
    with np.load(path) as stored:
        arrays = {key: stored[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    x, test_x = (
        arrays[f"x_{part}"].reshape(-1, 28, 28, 1).astype("float32") / 255
        for part in ("train", "test")
    )
    chosen = np.random.default_rng(0).permutation(len(x))[: settings.images]
    tested = slice(settings.test_images)
    y, test_y = (arrays[f"y_{part}"].reshape(-1).astype("int32") for part in ("train", "test"))
    return Data(x[chosen], y[chosen], test_x[tested], test_y[tested])


def order(labels: np.ndarray, batch_size: int, by_class: bool, rng) -> np.ndarray:
    """Indices of one epoch, cut into full mini-batches.

    Shuffled, a mini-batch is a mixture of classes. By class, it holds images of one class (or of
    two where a class runs out); which mini-batch comes when is shuffled all the same.
    """
    indices = rng.permutation(len(labels))
    if by_class:
        indices = indices[np.argsort(labels[indices], kind="stable")]
    batches = indices[: len(indices) // batch_size * batch_size].reshape(-1, batch_size)
    return rng.permutation(batches).reshape(-1)


def accuracy(
    make: Callable[[np.ndarray], keras.Model],
    data: Data,
    settings: Settings,
    batch_size: int,
    by_class: bool,
) -> float:
    """Mean test accuracy of models trained from scratch under XLA, one per seed.

    `make` builds a model; it is given a shuffled batch that it may start from.
    """
    scores = []
    for seed in range(settings.seeds):
        keras.utils.set_random_seed(seed)
        rng = np.random.default_rng(seed)
        model = make(data.x[rng.permutation(len(data.x))[:128]])
        # smaller batches are noisier and take more steps: the usual square-root rule
        optimizer = keras.optimizers.Adam(2e-3 * (batch_size / 128) ** 0.5)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(
            optimizer,
            loss,
            metrics=["accuracy"],
            jit_compile=True,
            # small steps are over sooner than Python can start the next one
            steps_per_execution=max(1, 64 // batch_size),
        )
        for _ in range(settings.epochs):
            chosen = order(data.y, batch_size, by_class, rng)
            x, y = data.x[chosen], data.y[chosen]
            model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)
        scores.append(model.evaluate(data.test_x, data.test_y, batch_size=256, verbose=0)[1])
    return float(np.mean(scores))


def print_table(
    models: dict[str, Callable[[np.ndarray], keras.Model]], data: Data, settings: Settings
) -> dict[str, list[float]]:
    """Train every model in every setting and print test accuracies, line by line."""
    columns = [(size, by_class) for size in settings.batch_sizes for by_class in (False, True)]
    print(f"test accuracy, {settings.images} training images, {settings.epochs} epochs")
    heads = (f"{size}, {'by class' if by_class else 'shuffled'}" for size, by_class in columns)
    print(f"{'mini-batches of':18s}" + "".join(f"{head:>16s}" for head in heads))
    table = {}
    for name, make in models.items():
        table[name] = [accuracy(make, data, settings, *column) for column in columns]
        print(f"{name:18s}" + "".join(f"{score:15.1%} " for score in table[name]), flush=True)
    return table
