"""How faithful swapped models are to trained ones, as tables for the README.

    python tools/fidelity_table.py [--material FOLDER]
    python tools/fidelity_table.py --fitted [--images 512] [--draws 3] [--models NAME ...]
    python tools/fidelity_table.py --fitted --distill [10000] [--draws 3] [--models NAME ...]

The first table is of the exact swap to weight norm. For each model: how many BatchNorm calls it
has and what they became; the largest difference at any of those calls and at the outputs, in
standard deviations of the source's tensor there, final softmax and sigmoid taken away; the largest
difference between Keras and ONNX Runtime, relative to the output's scale; and, where there is a
labelled test set, accuracy before and after. Inputs are the model's reference inputs, or the first
64 test images of Fashion-MNIST.

The second, `--fitted`, is of the swaps to layer and cosine norm, with the damping that held-out
samples ask for and with none: top-1 accuracy in percent on the whole test set, and in brackets the
share of test images that get the source's own answer. Beside them stands what people do now, gamma
and beta copied into a layer norm over the channels. Calibration images are unlabeled and never from
the test set; with several draws of them the mean stands first and the worst accuracy after the
slash. With `--distill`, as many columns more are of the same swapped models trained to answer as
their source does, on that many unlabeled training images, the calibration images where there are no
others. Below the table stand the points of accuracy that each column loses over models and draws,
and what became of the BatchNorm behind linear layers, where nothing but the norm asked for would be
pure.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kerasnorm

LABELLED = (
    "fashion_resnet.keras",
    "fashion_preact.keras",
    "fashion_mobile.keras",
    "fashion_dense.keras",
    "mini_xception_fer2013.hdf5",
)
# What is swapped to, and with which damping.
SWAPS: dict[str, tuple[str, Any]] = {
    "layer": ("layer", "auto"),
    "layer, damping 0": ("layer", 0.0),
    "group": ("group", "auto"),
    "cosine": ("cosine", "auto"),
    "cosine, damping 0": ("cosine", 0.0),
}
IMPURE = ("Affine", "BatchNorm", "refused")
Score = tuple[float, float]
HEADER = ("model", "BatchNorm calls become", "at every call", "ONNX", "accuracy, same answers")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = os.environ.get("KERASNORM_MATERIAL", "../shared/material")
    parser.add_argument("--material", type=Path, default=Path(default), metavar="FOLDER")
    parser.add_argument("--fitted", action="store_true", help="the table of layer and cosine norm")
    parser.add_argument("--images", type=int, default=512, metavar="N", help="calibration (512)")
    parser.add_argument("--draws", type=int, default=3, metavar="N", help="of the images (3)")
    parser.add_argument(
        "--distill", type=int, nargs="?", const=10_000, default=0, metavar="N", help="(10,000)"
    )
    parser.add_argument("--models", nargs="*", default=LABELLED, metavar="NAME", help="of --fitted")
    arguments = parser.parse_args()
    material = arguments.material
    if arguments.fitted:
        sizes = (arguments.images, arguments.draws, arguments.distill)
        print_fitted(material, arguments.models, *sizes)
        return
    print_row(HEADER)
    print_row(["---"] * len(HEADER))
    for name in sorted(path.name for path in (material / "models").iterdir()):
        print_row(measure(material, name))


def measure(material: Path, name: str) -> tuple[str, ...]:
    """The row of one model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old optimizer states; nothing is trained here
        source = kerasnorm.load_model(material / "models" / name)
    swap = kerasnorm.swap_norms(source, "weight", strict=True)
    with tempfile.TemporaryDirectory() as folder:
        export = kerasnorm.export_onnx(swap, Path(folder) / "model.onnx")
    same = same_answers(material, source, swap.model) if "fashion" in name else ""
    for model in (source, swap.model):
        linearize(model)
    differences = swap.compare(inputs_of(material, name))
    kinds = ", ".join(f"{count} {kind}" for kind, count in swap.report.counts().items())
    worst = f"{max(differences.values()):.1e}"
    return name.split(".")[0], kinds, worst, f"{export.max_difference:.1e}", same


def print_fitted(material: Path, names: list[str], images: int, draws: int, unlabeled: int) -> None:
    """The table of layer and cosine norm; below it what each column loses, and what is pure."""
    columns = ["source", "layer, gamma and beta copied", "layer, no data"]
    columns += [f"{swap}, {images} images" for swap in SWAPS]
    columns += [f"{swap}, distilled" for swap in SWAPS] if unlabeled else []
    print_row(["model", *columns])
    print_row(["---"] * (1 + len(columns)))
    lost: dict[str, list[float]] = {column: [] for column in columns}
    kinds: Counter[str] = Counter()
    for name in names:
        draws_of = measure_fitted(material, name, images, draws, unlabeled, kinds)
        for row in draws_of:
            for column, found in row.items():
                lost[column].append(100 * (row["source"][0] - found[0]))
        cells = [[row[column] for row in draws_of if column in row] for column in columns]
        print_row([name.split(".")[0], *map(cell, cells)])
    print()
    for column in columns[1:]:
        mean, worst = np.mean(lost[column]), np.max(lost[column])
        print(f"points lost, {column}: mean {mean:.2f}, worst {worst:.2f}")
    print(f"behind linear layers of more than one channel: {said(kinds)}")


def measure_fitted(
    material: Path, name: str, images: int, draws: int, unlabeled: int, kinds: Counter[str]
) -> list[dict[str, Score]]:
    """The scores by column for each draw; what depends on none is in the first only.

    `kinds` counts what the calls become that have a linear layer in front and more than one
    channel.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = kerasnorm.load_model(material / "models" / name)
    rows = []
    for draw in range(draws):
        data, x, y = split(material, name, images, draw)
        row = {"source": score(source, source, x, y)}
        if draw == 0:
            bare = kerasnorm.swap_norms(source, "layer")
            count_kinds(source, bare.report, kinds)
            row["layer, gamma and beta copied"] = score(source, copied_gamma_and_beta(source), x, y)
            row["layer, no data"] = score(source, bare.model, x, y)
        for name_of_swap, (target, damping) in SWAPS.items():
            swap = kerasnorm.swap_norms(source, target, data, damping=damping, seed=draw)
            count_kinds(source, swap.report, kinds)
            row[f"{name_of_swap}, {images} images"] = score(source, swap.model, x, y)
            if unlabeled:
                more = training_images(material, name, data, unlabeled, draw)
                kerasnorm.distill(swap.model, source, more, seed=draw)
                row[f"{name_of_swap}, distilled"] = score(source, swap.model, x, y)
        rows.append(row)
        print(f"{name}, draw {draw}: {row}", file=sys.stderr, flush=True)
    return rows


def count_kinds(source: keras.Model, report: Any, kinds: Counter[str]) -> None:
    """Add what the calls become that have a linear layer in front and more than one channel."""
    behind = {
        site.name: site
        for site in kerasnorm.swap_norms(source, "weight").report.sites
        if site.becomes.startswith("WeightNorm(") and site.becomes != "WeightNorm(Affine)"
    }
    for site in report.sites:
        if site.name in behind and source.get_layer(site.name).moving_mean.shape[0] > 1:
            kinds[site.becomes if site.verdict != "refused" else "refused"] += 1


def said(kinds: Counter[str]) -> str:
    """Counts of kinds, those that would not be pure included."""
    return ", ".join(f"{kinds[kind]} {kind}" for kind in sorted({*kinds, *IMPURE}))


def training_images(material: Path, name: str, calibration, count: int, draw: int):
    """Unlabeled images to distill on; for faces, of which there are few, those already used."""
    if not name.startswith("fashion"):
        return calibration
    data = np.load(material / "data" / "fashion_mnist.npz")["x_train"]
    chosen = np.random.default_rng(200 + draw).choice(len(data), count, replace=False)
    return data[chosen][..., None] / np.float32(255)


def split(material: Path, name: str, images: int, draw: int):
    """(calibration images, test images, test labels)."""
    generator = np.random.default_rng(100 + draw)
    if name.startswith("fashion"):
        data = np.load(material / "data" / "fashion_mnist.npz")
        pool = data["x_train"][generator.choice(len(data["x_train"]), images, replace=False)]
        return (pool[..., None] / np.float32(255), *fashion_images(material))
    data = np.load(material / "data" / "faces.npz")
    x = (data["x"][..., None] / np.float32(255) - np.float32(0.5)) * 2
    order = generator.permutation(len(x))
    return x[order[:images]], x[order[images:]], data["y"][order[images:]]


def copied_gamma_and_beta(source: keras.Model) -> keras.Model:
    """Each BatchNorm replaced by a layer norm over the channels with its gamma and beta."""

    def clone(layer):
        if not isinstance(layer, keras.layers.BatchNormalization):
            return type(layer).from_config(layer.get_config())
        return kerasnorm.LayerNorm(
            epsilon=layer.epsilon, center=layer.center, scale=layer.scale, name=layer.name
        )

    copy = keras.models.clone_model(source, clone_function=clone)
    for old, new in zip(source.layers, copy.layers, strict=True):
        new.set_weights(old.get_weights()[: len(new.weights)])
    return copy


def answers(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """The class that a model finds most likely, for each input."""
    return model.predict(x, batch_size=500, verbose=0).argmax(-1)


def score(source: keras.Model, model: keras.Model, x, y) -> Score:
    """(accuracy, share of the source's own answers)."""
    said = answers(model, x)
    return float(np.mean(said == y)), float(np.mean(said == answers(source, x)))


def cell(found: list[Score]) -> str:
    """Mean and worst accuracy, and mean agreement."""
    accuracy, agreement = zip(*found, strict=True)
    worst = f" / {min(accuracy):.1%}" if len(found) > 1 else ""
    return f"{np.mean(accuracy):.1%}{worst} ({np.mean(agreement):.1%})"


def inputs_of(material: Path, name: str) -> np.ndarray:
    """Inputs of the kind the model is for."""
    reference = material / "reference" / f"{name.split('.')[0]}.npz"
    if reference.exists():
        return np.load(reference)["x"]
    return fashion_images(material)[0][:64]


def fashion_images(material: Path) -> tuple[np.ndarray, np.ndarray]:
    """The test images of Fashion-MNIST in [0, 1], and their labels."""
    data = np.load(material / "data" / "fashion_mnist.npz")
    return data["x_test"][..., None] / np.float32(255), data["y_test"]


def same_answers(material: Path, source: keras.Model, swapped: keras.Model) -> str:
    """Accuracy of the source, and how many test images get the same answer from both."""
    x, y = fashion_images(material)
    said = [answers(model, x) for model in (source, swapped)]
    same = int(np.sum(said[0] == said[1]))
    return f"{np.mean(said[0] == y):.2%}, {same:,} of {len(y):,}"


def linearize(model: keras.Model) -> None:
    """Take away a final softmax or sigmoid, which hides what differs before it."""
    hiding = (keras.activations.softmax, keras.activations.sigmoid)
    for layer in model.layers[-2:]:
        if getattr(layer, "activation", None) in hiding:
            layer.activation = keras.activations.linear


def print_row(cells) -> None:
    """One line of a Markdown table."""
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
