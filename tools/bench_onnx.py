"""Speed of swapped models in ONNX Runtime, beside that of their source, as a table.

    python tools/bench_onnx.py [--material FOLDER] [--models NAME ...] [--rounds N] [--threads N]

Each model is exported as it is, with BatchNorm, which ONNX Runtime folds into the convolutions in
front, and swapped to each target. All run on the CPU, in one process, in turn: in each round every
one of them answers for about 50 ms. A ratio is that of two medians over the rounds, to the source;
in brackets stand the quartiles of the ratios within a round. The column `again` is a second session
of the source's own file: what it is off 1.00 is noise. Each runs on one thread unless told
otherwise: on a machine that others use too, threads that wait for each other drown the differences.
Sizes of the files are relative to that of the source. A name that is no file is one of
keras.applications, with random weights.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from fidelity_table import print_row
from timing import times

import kerasnorm

MODELS = ("fashion_resnet.keras", "fashion_mobile.keras", "resnet8_cifar10.h5", "ResNet50")
TARGETS = ("weight", "layer", "group", "cosine")
BATCHES = (1, 8)
# Enough to fit something; what is fitted does not change the speed.
_SAMPLES = 32


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = os.environ.get("KERASNORM_MATERIAL", "../shared/material")
    parser.add_argument("--material", type=Path, default=Path(default), metavar="FOLDER")
    parser.add_argument("--models", nargs="*", default=MODELS, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=40, metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="0: as many as cores")
    args = parser.parse_args()
    names = ("again", *TARGETS)
    print_row(["model", "batch", "source, ms", *names, *(f"{t}, file" for t in TARGETS)])
    print_row(["---"] * (3 + len(names) + len(TARGETS)))
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            files = exported(source_of(args.material, name), Path(folder))
            own = files["source"].stat().st_size
            sizes = [f"{files[t].stat().st_size / own:.3f}" for t in TARGETS]
            for batch in BATCHES:
                paths = {**files, "again": files["source"]}
                runs = {n: session(path, batch, args.threads) for n, path in paths.items()}
                took = times(runs, args.rounds)
                cells = [ratio(took["source"], took[n]) for n in names]
                milliseconds = f"{1e3 * statistics.median(took['source']):.2f}"
                print_row([name.split(".")[0], str(batch), milliseconds, *cells, *sizes])


def source_of(material: Path, name: str) -> keras.Model:
    """A trained model, or an architecture of keras.applications at the size it is made for."""
    if "." not in name:
        return getattr(keras.applications, name)(weights=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kerasnorm.load_model(material / "models" / name)


def exported(source: keras.Model, folder: Path) -> dict[str, Path]:
    """The files of a model as it is and of the model swapped to each target."""
    random = np.random.default_rng(0).uniform(0, 1, (_SAMPLES, *source.input_shape[1:]))
    files = {}
    for name in ("source", *TARGETS):
        model = source
        if name != "source":
            data = None if name == "weight" else random
            model = kerasnorm.swap_norms(source, name, data).model
        files[name] = folder / f"{name}.onnx"
        kerasnorm.export_onnx(model, files[name])
    return files


def session(path: Path, batch: int, threads: int) -> Callable[[], Any]:
    """A function that answers one batch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    made = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    [given] = made.get_inputs()
    x = np.random.default_rng(1).uniform(0, 1, (batch, *given.shape[1:])).astype("float32")
    return lambda: made.run(None, {given.name: x})


def ratio(source: list[float], other: list[float]) -> str:
    """The ratio of the medians, and the quartiles of those within a round."""
    ratios = [b / a for a, b in zip(source, other, strict=True)]
    low, _, high = statistics.quantiles(ratios, method="inclusive")
    middle = statistics.median(other) / statistics.median(source)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


if __name__ == "__main__":
    main()
