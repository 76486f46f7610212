"""How exact the swap to weight norm is on trained models, as a table for the README.

    python tools/fidelity_table.py [--material FOLDER]

For each model: how many BatchNorm calls it has and what they became; the largest difference at
any of those calls and at the outputs, in standard deviations of the source's tensor there, final
softmax and sigmoid taken away; the largest difference between Keras and ONNX Runtime, relative to
the output's scale; and, where there is a labelled test set, accuracy before and after. Inputs are
the model's reference inputs, or the first 64 test images of Fashion-MNIST.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np

import kerasnorm

MODELS = (
    "resnet8_cifar10.h5",
    "toycar_autoencoder.h5",
    "mini_xception_fer2013.hdf5",
    "miniresnet.h5",
    "miniresnetv2.h5",
    "mnist_cnn.keras",
    "fashion_resnet.keras",
    "fashion_preact.keras",
    "fashion_mobile.keras",
    "fashion_dense.keras",
)
HEADER = ("model", "BatchNorm calls become", "at every call", "ONNX", "accuracy, same answers")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = os.environ.get("KERASNORM_MATERIAL", "../shared/material")
    parser.add_argument("--material", type=Path, default=Path(default), metavar="FOLDER")
    material = parser.parse_args().material
    print_row(HEADER)
    print_row(["---"] * len(HEADER))
    for name in MODELS:
        print_row(measure(material, name))


def measure(material: Path, name: str) -> tuple[str, ...]:
    """The row of one model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old optimizer states; nothing is trained here
        source = kerasnorm.load_model(material / "models" / name)
    swap = kerasnorm.swap_norms(source, "weight", strict=True)
    with tempfile.TemporaryDirectory() as folder:
        export = kerasnorm.export_onnx(swap.model, Path(folder) / "model.onnx")
    answers = same_answers(material, source, swap.model) if "fashion" in name else ""
    for model in (source, swap.model):
        linearize(model)
    differences = swap.compare(inputs_of(material, name))
    kinds = ", ".join(f"{count} {kind}" for kind, count in swap.report.counts().items())
    worst = f"{max(differences.values()):.1e}"
    return name.split(".")[0], kinds, worst, f"{export.max_difference:.1e}", answers


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
    said = [model.predict(x, batch_size=500, verbose=0).argmax(-1) for model in (source, swapped)]
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
