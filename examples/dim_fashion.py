"""What the examples on dim images share: the images, and a trained net as each method has it.

The net is a small residual one with seven BatchNorm calls, trained here, in about a minute, on
Fashion-MNIST at half its size. What it has to learn then is dim, as of another camera in poor
light: 0.4·x plus noise of deviation 0.1. Those images are of the test file, none of which it has
seen.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import fashion
import keras
import numpy as np

import kerasnorm

METHODS = ("batch", "batch, frozen", "weight", "layer")
COLORS = {
    "batch": "tab:red",
    "batch, frozen": "tab:orange",
    "weight": "tab:blue",
    "layer": "tab:green",
    "group": "tab:olive",
    "cosine": "tab:purple",
}


@dataclass
class Task:
    """Well-lit images to train on, and dim ones in three parts, by their indices."""

    lit_x: np.ndarray
    lit_y: np.ndarray
    x: np.ndarray
    y: np.ndarray
    test: np.ndarray
    validation: np.ndarray
    pool: np.ndarray
    epochs: int = 4
    calibration: int = 512


def parser_for(description: str) -> argparse.ArgumentParser:
    """The arguments that the examples have in common."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument(
        "--methods", nargs="+", default=METHODS, metavar="NAME", help=", ".join(COLORS)
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="draw the figures as a PNG")
    parser.add_argument("--folder", type=Path, help="keep the trained and swapped nets in it")
    return parser


@contextlib.contextmanager
def folder_of(arguments: argparse.Namespace) -> Iterator[Path]:
    """Where the nets are kept: as was asked for, or for as long as this runs."""
    with tempfile.TemporaryDirectory() as folder:
        yield arguments.folder or Path(folder)


def load(quick: bool) -> Task:
    data = fashion.load(fashion.Settings(images=256 if quick else 20_000))
    lit, x = (_half_size(images) for images in (data.x, data.test_x))
    dim = 0.4 * x + np.random.default_rng(0).normal(0, 0.1, x.shape)
    dim = np.clip(dim, 0, 1).astype("float32")
    order = np.random.default_rng(1).permutation(len(dim))
    tested, validated = (100, 50) if quick else (2000, 2000)
    parts = np.split(order, [tested, tested + validated])
    how_much = (1, 40) if quick else (4, 512)
    return Task(lit, data.y, dim, data.test_y, *parts, *how_much)


def _half_size(images: np.ndarray) -> np.ndarray:
    return images.reshape(-1, 14, 2, 14, 2, 1).mean(axis=(2, 4)).astype("float32")


def residual_net() -> keras.Model:
    layers = keras.layers

    def normed(x, filters, size=3, strides=1):
        x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.95)(x)

    inputs = keras.Input((14, 14, 1))
    x = layers.ReLU()(normed(inputs, 16))
    for filters in (16, 32):
        strides = filters // 16
        y = layers.ReLU()(normed(x, filters, strides=strides))
        y = normed(y, filters)
        x = x if strides == 1 else normed(x, filters, 1, strides)
        x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.ReLU()(normed(x, 32, strides=2))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x), name="small_resnet")


def source_of(task: Task, folder: Path) -> keras.Model:
    """The net, trained on the well-lit images."""

    def trained():
        keras.utils.set_random_seed(0)
        model = residual_net()
        steps = task.epochs * len(task.lit_x) // 64
        rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(rate), loss)
        model.fit(task.lit_x, task.lit_y, batch_size=64, epochs=task.epochs, verbose=0)
        return model

    return _kept(folder, "source", trained)


def model_of(method: str, task: Task, folder: Path) -> keras.Model:
    """The trained net: "batch", "batch, frozen", or swapped to the target that a method names.

    Fits are to unlabelled images that the net was trained on, so that no dim one is looked at.
    """
    source = source_of(task, folder)
    if not method.startswith("batch"):
        data = None if method == "weight" else task.lit_x[: task.calibration]
        return _kept(folder, method, lambda: kerasnorm.swap_norms(source, method, data).model)
    for layer in source.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = method == "batch"
    return source


def _kept(folder: Path, name: str, make: Callable[[], keras.Model]) -> keras.Model:
    """What `make` makes, kept in a folder; taken from there where it is."""
    path = folder / f"dim_fashion_{name}.keras"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        make().save(path)
    return kerasnorm.load_model(path)


def accuracy(model: keras.Model, task: Task, chosen: np.ndarray) -> float:
    """Of the answers on some of the dim images, in per cent."""
    answers = model.predict(task.x[chosen], batch_size=500, verbose=0)
    return 100 * float(np.mean(answers.argmax(axis=1) == task.y[chosen]))


def spread(scores: np.ndarray) -> str:
    """Mean, lowest and highest."""
    return f"{scores.mean():.1f} ({scores.min():.1f}..{scores.max():.1f})"


def draw(curves: Mapping[str, np.ndarray], steps: np.ndarray, title: str, path: Path) -> None:
    """Test accuracy by method: the mean of the seeds, and a band from the lowest to the highest.

    A curve has a row for each seed. `title` says what the steps are, behind a semicolon.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    ax = figure.subplots()
    for method, curve in curves.items():
        # weight norm and a frozen BatchNorm begin as one function: dashes show both
        line = "--" if method == "batch, frozen" else "-"
        drawn = {"color": COLORS.get(method, "tab:gray"), "zorder": 3 if line == "--" else 2}
        ax.plot(steps, curve.mean(axis=0), line, marker="o", markersize=3, label=method, **drawn)
        low, high = curve.min(axis=0), curve.max(axis=0)
        ax.fill_between(steps, low, high, color=drawn["color"], alpha=0.1, linewidth=0)
    heading, _, unit = title.partition("; ")
    ax.set(title=heading, xlabel=unit, ylabel="test accuracy, %")
    ax.grid(alpha=0.3)
    ax.legend()
    figure.savefig(path, dpi=100)
