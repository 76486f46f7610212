"""Train the nets of `bench_nets.py`, with fixed seeds, into an ignored folder.

    python tools/train_bench.py [--material FOLDER] [--folder .bench] [NAME ...]

A net that is there already is left alone. One line for each says what it reaches on its test set.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

# Without oneDNN, TensorFlow has no convolution with channels first on a CPU.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
from bench_nets import NETS, Net, Split


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = os.environ.get("KERASNORM_MATERIAL", "../shared/material")
    parser.add_argument("--material", type=Path, default=Path(default), metavar="FOLDER")
    parser.add_argument("--folder", type=Path, default=Path(".bench"))
    parser.add_argument("names", nargs="*", default=NETS, metavar="NAME")
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    for name in args.names:
        path = args.folder / f"{name}.keras"
        if not path.exists():
            data = NETS[name].data(args.material)
            model = train(NETS[name], data)
            model.save(path)
            sites = sum(isinstance(x, keras.layers.BatchNormalization) for x in model.layers)
            print(f"{name}: {sites} BatchNorm, {quality(model, data)}", flush=True)


def train(net: Net, data: Split) -> keras.Model:
    """The net, trained with Adam along a cosine."""
    keras.utils.set_random_seed(0)
    model = net.build()
    steps = net.epochs * -(-len(data.x) // 64)
    rate = keras.optimizers.schedules.CosineDecay(net.rate, steps)
    classes = np.issubdtype(data.y.dtype, np.integer)
    sigmoid = getattr(model.layers[-1], "activation", None) is keras.activations.sigmoid
    regression = "binary_crossentropy" if sigmoid else "mse"
    loss = "sparse_categorical_crossentropy" if classes else regression
    model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)
    model.fit(data.x, data.y, batch_size=64, epochs=net.epochs, verbose=0)
    return model


def quality(model: keras.Model, data: Split) -> str:
    """Accuracy on the test set, or R²."""
    answers = model.predict(data.test_x, batch_size=500, verbose=0)
    if np.issubdtype(data.test_y.dtype, np.integer):
        return f"accuracy {np.mean(answers.argmax(-1) == data.test_y):.2%}"
    if set(np.unique(data.test_y)) == {0.0, 1.0}:
        return f"accuracy {np.mean((answers > 0.5) == data.test_y):.2%}"
    return f"R² {1 - np.mean((answers - data.test_y) ** 2) / np.var(data.test_y):.4f}"


if __name__ == "__main__":
    main()
