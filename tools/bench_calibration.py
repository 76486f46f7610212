"""How long swaps with data take, beside those of another commit, and how that grows.

    python tools/bench_calibration.py --beside FOLDER [--rounds 3] [--samples 512] [NET ...]
    python tools/bench_calibration.py --beside FOLDER --samples 256 ResNet50 MobileNetV2
    python tools/bench_calibration.py --growth PLOT.png

CPU seconds of a process that loads a net and swaps it once, from the imports on, in turn with the
same of the other checkout; the median of the rounds, and the ratio of the medians with the least
and the largest of neighbours in time. Beside it the ratio of the largest resident memory. The nets
of the test material are trained; the others have random weights and the statistics of their data,
which is random but for Fashion-MNIST. `--growth` draws the seconds over samples and over sites.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Without oneDNN, TensorFlow has no convolution with channels first on a CPU.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

OF_MATERIAL = {
    "fashion_resnet": "fashion_resnet.keras",
    "fashion_mobile": "fashion_mobile.keras",
    "resnet8_cifar10": "resnet8_cifar10.h5",
    "mini_xception": "mini_xception_fer2013.hdf5",
}
SMALL = (*OF_MATERIAL, "dense", "conv1d", "channels_first")
TARGETS = ("layer", "cosine")
SAMPLES, SITES = (128, 256, 512, 1024), (5, 10, 20, 40)

# Runs in a process of its own, with the package of either checkout.
RUN = """
import resource, sys, time, warnings
import numpy, keras, tensorflow, kerasnorm
warnings.simplefilter("ignore")
model, data, target, seconds = *sys.argv[1:4], time.process_time()
kerasnorm.swap_norms(kerasnorm.load_model(model), target, numpy.load(data))
seconds = time.process_time() - seconds
print("took", seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main() -> None:
    """Print the table, or draw the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = os.environ.get("KERASNORM_MATERIAL", "../shared/material")
    parser.add_argument("nets", nargs="*", default=SMALL, metavar="NET")
    parser.add_argument("--material", type=Path, default=Path(default), metavar="FOLDER")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="a checkout to compare with")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--samples", type=int, default=512, metavar="N")
    parser.add_argument("--growth", type=Path, metavar="PLOT")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.growth:
            draw_growth(args.growth, args.rounds, Path(folder))
        else:
            print_table(args, Path(folder))


def print_table(args: argparse.Namespace, folder: Path) -> None:
    """A row for each net and target, and the geometric mean of the ratios."""
    roots = [Path(), *([args.beside] if args.beside else [])]
    heads = ("net", "norm", "s", "s beside", "ratio", "memory, MB", "ratio")
    print_row(heads)
    print_row(["---"] * len(heads))
    ratios = []
    for name in args.nets:
        model, data = prepared(name, args.samples, args.material, folder)
        for target in TARGETS:
            runs = [[run(root, model, data, target) for root in roots] for _ in range(args.rounds)]
            seconds = [
                statistics.median(s for s, _ in column) for column in zip(*runs, strict=True)
            ]
            memory = [max(m for _, m in column) for column in zip(*runs, strict=True)]
            cells = [name, target, f"{seconds[0]:.1f}", "", "", f"{memory[0]:.0f}", ""]
            if args.beside:
                each = [now / before for (now, _), (before, _) in runs]
                ratios.append(seconds[0] / seconds[1])
                cells[3:5] = f"{seconds[1]:.1f}", spread(ratios[-1], each)
                cells[6] = f"{memory[0] / memory[1]:.2f}"
            print_row(cells)
    if ratios:
        print(f"geometric mean of the ratios: {statistics.geometric_mean(ratios):.2f}")


def spread(ratio: float, each: list[float]) -> str:
    return f"{ratio:.2f} ({min(each):.2f}–{max(each):.2f})"


def run(root: Path, model: Path, data: Path, target: str) -> tuple[float, float]:
    """CPU seconds and megabytes of one swap."""
    found = subprocess.run(
        [sys.executable, "-c", RUN, str(model.resolve()), str(data.resolve()), target],
        env={**os.environ, "PYTHONPATH": str(root.resolve()), "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        cwd=root,
    )
    _, seconds, kilobytes = found.stdout.split()[-3:]
    return float(seconds), float(kilobytes) / 1024


def prepared(name: str, count: int, material: Path, folder: Path) -> tuple[Path, Path]:
    """The files of a net and of its data."""
    import keras
    import numpy as np

    if name in OF_MATERIAL:
        path = material / "models" / OF_MATERIAL[name]
        data = data_of(name, count, material)
    else:
        path = folder / f"{name}.keras"
        build, shape = OTHERS[name]
        keras.utils.set_random_seed(0)
        data = np.random.default_rng(0).normal(size=(count, *shape)).astype("float32")
        save_with_statistics(build(), data[:64], path)
    where = folder / f"{name}_{count}.npy"
    np.save(where, data)
    return path, where


def data_of(name: str, count: int, material: Path) -> Any:
    """Inputs of a net of the material."""
    import numpy as np

    rng = np.random.default_rng(0)
    if name.startswith("fashion"):
        with np.load(material / "data" / "fashion_mnist.npz") as arrays:
            images = arrays["x_train"][:count]
        return (images / 255).astype("float32")[..., None]
    if name == "resnet8_cifar10":
        return rng.uniform(0, 255, size=(count, 32, 32, 3)).astype("float32")
    return rng.uniform(-1, 1, size=(count, 64, 64, 1)).astype("float32")


def save_with_statistics(model: Any, data: Any, path: Path) -> None:
    """Save a net whose BatchNorm have the statistics of data."""
    import keras

    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    if norms:
        model(data, training=True)
    model.save(path)


def dense() -> Any:
    from bench_nets import dense_net

    return dense_net(64, 10)


def conv1d() -> Any:
    from bench_nets import waves_net

    return waves_net()


def channels_first() -> Any:
    """A net of some 2,000 weights."""
    from keras import Input, Model, layers

    inputs = y = Input((1, 28, 28))
    for filters, strides in ((4, 2), (8, 1), (8, 2), (8, 1)):
        first = {"data_format": "channels_first", "padding": "same", "use_bias": False}
        y = layers.Conv2D(filters, 3, strides, **first)(y)
        y = layers.ReLU()(layers.BatchNormalization(axis=1)(y))
    y = layers.GlobalAveragePooling2D(data_format="channels_first")(y)
    return Model(inputs, layers.Dense(10, activation="softmax")(y))


def application(name: str) -> Any:
    """An architecture of Keras for images of 224."""
    import keras

    keras.utils.set_random_seed(0)
    return getattr(keras.applications, name)(weights=None)


def chain(sites: int) -> Any:
    """Convolutions of 16 channels with a BatchNorm each."""
    from keras import Input, Model, layers

    inputs = y = Input((16, 16, 3))
    for _ in range(sites):
        y = layers.Conv2D(16, 3, padding="same")(y)
        y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.GlobalAveragePooling2D()(y)
    return Model(inputs, layers.Dense(10, activation="softmax")(y))


OTHERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "dense": (dense, (64,)),
    "conv1d": (conv1d, (48, 32)),
    "channels_first": (channels_first, (1, 28, 28)),
    "ResNet50": (lambda: application("ResNet50"), (224, 224, 3)),
    "MobileNetV2": (lambda: application("MobileNetV2"), (224, 224, 3)),
}


def draw_growth(path: Path, rounds: int, folder: Path) -> None:
    """CPU seconds over the number of samples, and of sites."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, counts, what in zip(panels, (SAMPLES, SITES), ("samples", "sites"), strict=True):
        for target in TARGETS:
            took = []
            for count in counts:
                samples, sites = (count, 5) if what == "samples" else (256, count)
                model, data = folder / f"{sites}.keras", folder / f"{samples}.npy"
                x = np.random.default_rng(0).normal(size=(samples, 16, 16, 3)).astype("float32")
                np.save(data, x)
                save_with_statistics(chain(sites), x[:64], model)
                each = [run(Path(), model, data, target)[0] for _ in range(rounds)]
                took.append(statistics.median(each))
                print(f"{target}, {samples} samples, {sites} sites: {took[-1]:.1f} s", flush=True)
            panel.plot(counts, took, marker="o", label=target)
        panel.set(xlabel=what, ylabel="CPU seconds", xlim=(0, None), ylim=(0, None))
        panel.legend()
    figure.savefig(path, dpi=120)


def print_row(cells: Any) -> None:
    """One line of a Markdown table."""
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
