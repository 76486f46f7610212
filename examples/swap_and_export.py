"""Take BatchNorm out of a keras.applications model and ship it as ONNX.

    python examples/swap_and_export.py [--architecture MobileNetV2] [--size 96] [--folder .]

Weights are ImageNet's where they can be downloaded, random otherwise; the swap to weight norm is
exact for either.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import keras
import numpy as np

import kerasnorm


def main() -> None:
    """Swap, compare, fold, export, and ask ONNX Runtime."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architecture", default="MobileNetV2")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--folder", type=Path, default=Path("."))
    options = parser.parse_args()

    source, weights = build(options.architecture, options.size)
    print(f"{options.architecture} with {weights} weights")

    swap = kerasnorm.swap_norms(source, to="weight")
    print(swap.report.summary())
    worst = max(swap.differences.values())
    print(f"largest difference at any BatchNorm call: {worst:.1e} standard deviations")

    plain = kerasnorm.fold_norms(swap.model)
    plain.save(options.folder / "plain.keras")
    print(f"plain Keras layers only, {plain.count_params():,} parameters: plain.keras")

    export = kerasnorm.export_onnx(swap, options.folder / "model.onnx")
    print(f"ONNX, {export.max_difference:.1e} from Keras: {export.op_counts}")

    image = np.random.default_rng(0).uniform(-1, 1, (1, options.size, options.size, 3))
    answer = ask_onnx_runtime(export.path, image.astype("float32"))
    same = int(answer.argmax()) == int(source.predict(image, verbose=0).argmax())
    print(f"same answer as the source: {'yes' if same else 'no'}")


def build(architecture: str, size: int) -> tuple[keras.Model, str]:
    """The model with ImageNet weights, or with random ones where there is no download."""
    make = getattr(keras.applications, architecture)
    try:
        return make(weights="imagenet", input_shape=(size, size, 3)), "ImageNet"
    except Exception as error:  # no network, or no weights for this size
        print(f"no ImageNet weights ({str(error).splitlines()[0][:60]})")
        return make(weights=None, input_shape=(size, size, 3)), "random"


def ask_onnx_runtime(path: Path, image: np.ndarray) -> np.ndarray:
    """The first output of an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image})[0]


if __name__ == "__main__":
    main()
