"""What the runtimes that people deploy to make of the exported files, as tables.

    python tools/onnx_runtimes.py [--material FOLDER] [--models NAME …] [--applications [NAME …]]

Each model is exported as it is and swapped to each target (layer and cosine norm fitted to random
inputs in the range of its own), run in every runtime that is there, on one sample and on several,
and compared with Keras: the largest difference, relative to the largest entry of the output. ONNX
Runtime and ONNX's own ReferenceEvaluator come with kerasnorm; OpenVINO with `pip install openvino`;
ONNX Runtime Web, in WebAssembly, needs Node and `npm install onnxruntime-web` in the current
folder.

With `--applications`, instead: architectures of keras.applications (all that have BatchNorm, unless
some are named) at the smallest size that they can be built for, with random weights and BatchNorm
weights to be told apart (tests/architectures.py) and without their final softmax, as they are and
swapped to weight norm, in ONNX Runtime. Random weights amplify rounding: where the source's own
file is as far from Keras, the difference is no fault of the swap.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import architectures
from bench_swap import alone
from fidelity_table import inputs_of, print_row

import kerasnorm

MODELS = (
    "fashion_resnet.keras",
    "fashion_preact.keras",
    "fashion_mobile.keras",
    "fashion_dense.keras",
    "resnet8_cifar10.h5",
)
TARGETS = ("none", "weight", "layer", "group", "cosine")
SAMPLES = 8
_WEB = Path(__file__).with_name("onnx_web.mjs")


class MissingRuntimeError(Exception):
    """A runtime is not installed; the message says how to get it."""


def onnx_runtime(path: Path, x: np.ndarray) -> np.ndarray:
    """What ONNX Runtime answers on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def reference_evaluator(path: Path, x: np.ndarray) -> np.ndarray:
    """What ONNX's reference implementation answers."""
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(str(path))
    return np.asarray(session.run(None, {session.input_names[0]: x})[0])


def openvino(path: Path, x: np.ndarray) -> np.ndarray:
    """What OpenVINO answers on the CPU, in float32."""
    try:
        import openvino as ov
    except ImportError as error:
        raise MissingRuntimeError("needs `pip install openvino`") from error
    compiled = ov.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([x])[0])


def onnx_runtime_web(path: Path, x: np.ndarray) -> np.ndarray:
    """What ONNX Runtime Web answers, in Node."""
    node = shutil.which("node")
    here = Path.cwd()
    if node is None:
        raise MissingRuntimeError("needs Node")
    if not any(
        (folder / "node_modules/onnxruntime-web").exists() for folder in (here, *here.parents)
    ):
        raise MissingRuntimeError("needs `npm install onnxruntime-web` in the current folder")
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "input.bin"
        given.write_bytes(np.ascontiguousarray(x, "<f4").tobytes())
        command = [node, *map(str, (_WEB, path, given, *x.shape))]
        done = subprocess.run(command, capture_output=True, check=False, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace")[-500:])
    return np.frombuffer(done.stdout, "<f4")


RUNTIMES: dict[str, Callable[[Path, np.ndarray], np.ndarray]] = {
    "ONNX Runtime": onnx_runtime,
    "ReferenceEvaluator": reference_evaluator,
    "OpenVINO": openvino,
    "ONNX Runtime Web": onnx_runtime_web,
}


def difference(run: Callable, path: Path, model: keras.Model, x: np.ndarray) -> float:
    """How far the answers to one sample and to all are from those of Keras, at most."""
    worst = 0.0
    for batch in (x[:1], x):
        expected = np.asarray(model.predict_on_batch(batch), "float64")
        received = np.asarray(run(path, batch), "float64").reshape(expected.shape)
        worst = max(worst, float(np.abs(expected - received).max() / np.abs(expected).max()))
    return worst


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = os.environ.get("KERASNORM_MATERIAL", "../shared/material")
    parser.add_argument("--material", type=Path, default=Path(default), metavar="FOLDER")
    parser.add_argument("--models", nargs="*", default=MODELS, metavar="NAME")
    parser.add_argument("--applications", nargs="*", metavar="NAME")
    arguments = parser.parse_args()
    if arguments.applications is not None:
        print_applications(arguments.applications)
        return
    print_row(["model", "swapped to", *RUNTIMES])
    print_row(["---"] * (2 + len(RUNTIMES)))
    for name in arguments.models:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = kerasnorm.load_model(arguments.material / "models" / name)
        x = inputs_of(arguments.material, name).astype("float32")
        for target in TARGETS:
            print_row([name.split(".")[0], target, *row(source, target, x)])


def print_applications(names: list[str]) -> None:
    """Print the table of architectures."""
    known = architectures.architectures()
    print_row(["model", "input", "as it is", "swapped to weight norm"])
    print_row(["---"] * 4)
    for name in names or filter(architectures.may_have_batch_norm, known):
        print_row([name, *alone(application, name)])


def application(name: str) -> list[str]:
    """The cells of one architecture."""
    source = architectures.smallest(name)
    x = architectures.brought_alive(source)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        differences = [
            kerasnorm.export_onnx(model, path, inputs=x, tolerance=1.0).max_difference
            for model in (source, kerasnorm.swap_norms(source, "weight").model)
        ]
    return [str(source.input.shape[1]), *(f"{off:.1e}" for off in differences)]


def row(source: keras.Model, target: str, x: np.ndarray) -> list[str]:
    """The cells of one model and target."""
    random = np.random.default_rng(0).uniform(x.min(), x.max(), (64, *x.shape[1:]))
    model = source if target == "none" else kerasnorm.swap_norms(source, target, random).model
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        kerasnorm.export_onnx(model, path, inputs=x[:SAMPLES])
        cells = []
        for run in RUNTIMES.values():
            try:
                cells.append(f"{difference(run, path, model, x[:SAMPLES]):.1e}")
            except MissingRuntimeError as reason:
                cells.append(str(reason))
    return cells


if __name__ == "__main__":
    main()
