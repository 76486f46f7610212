"""`kerasnorm demo`: train, swap, fold, export and check, on handwritten digits.

The digits are the 1,797 images of 8x8 pixels that come with scikit-learn, so that nothing has to
be downloaded.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from kerasnorm.errors import KerasNormError
from kerasnorm.onnx.export import OnnxExport, export_onnx
from kerasnorm.swap.fold import fold_norms
from kerasnorm.swap.result import Swap
from kerasnorm.swap.swap import swap_norms
from kerasnorm.targets.names import NAMES

SEED = 0
EPOCHS = 15
BATCH = 64
TEST_IMAGES = 450
CALIBRATION = 512


@dataclass(frozen=True)
class Digits:
    """Images of shape (n, 8, 8, 1) in [0, 1] and their labels, in two parts."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


@dataclass(frozen=True)
class Row:
    """One line of the demo's table."""

    name: str
    accuracy: float
    difference: float | None
    agreement: float | None


@dataclass
class Clock:
    """Seconds that each step took in all, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    def time(self, step: str, function: Callable[..., Any], *args, **kwargs) -> Any:
        """function(*args, **kwargs), timed under the name `step`."""
        start = time.perf_counter()
        result = function(*args, **kwargs)
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start
        return result


def run(console) -> list[Row]:
    """Tell the whole story on a `rich.console.Console`; returns the rows of its table.

    Raises:
        KerasNormError: If scikit-learn is not installed.
    """
    digits = load_digits()
    clock = Clock()
    console.print(
        f"Digits: {len(digits.x_train)} images to train on, {len(digits.x_test)} to test, "
        f"{CALIBRATION} of the first without their labels to calibrate on."
    )
    keras.utils.set_random_seed(SEED)
    source = residual_network()
    with console.status(f"Training a small residual network with BatchNorm, {EPOCHS} epochs …"):
        clock.time("train (XLA)", train, source, digits)
    expected = answer(source, digits.x_test)
    rows = [row("BatchNorm, the source", expected, expected, digits.y_test)]
    for target, kind in NAMES.items():
        data = digits.x_train[:CALIBRATION] if kind.takes_data else None
        with console.status(f"Swapping to {target} norm …"):
            swap = clock.time(f"to {target}", swap_norms, source, target, data)
        console.print(swap.report.summary(), markup=False)
        if not kind.takes_data:
            console.print(swap.report.table())
        answers = {f"{target} norm": answer(swap.model, digits.x_test)}
        if not kind.takes_data:
            folded = clock.time("fold", fold_norms, swap.model)
            answers["weight norm, folded"] = answer(folded, digits.x_test)
        with console.status("Exporting to ONNX and checking …"):
            file, said = clock.time("export and check", exported, swap, digits.x_test)
        answers[f"{target} norm, ONNX Runtime"] = said
        rows += [row(name, y, expected, digits.y_test) for name, y in answers.items()]
        ops = ", ".join(f"{count} {op}" for op, count in sorted(file.op_counts.items()))
        console.print(f"ONNX file, opset {file.opset}: {ops}", markup=False)
    console.print(results_table(rows))
    steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in clock.seconds.items())
    console.print(f"Time: {steps}.")
    return rows


def exported(swap: Swap, images: np.ndarray) -> tuple[OnnxExport, Any]:
    """The ONNX file of a swapped model, and what ONNX Runtime answers with it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "digits.onnx"
        export = export_onnx(swap, file)
        return export, onnx_answer(file, images)


def load_digits() -> Digits:
    """scikit-learn's handwritten digits, shuffled with a fixed seed and split.

    Raises:
        KerasNormError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise KerasNormError(
            "The demo reads its digits from scikit-learn, which is not installed.",
            hint="Run: pip install 'kerasnorm[demo]'",
        ) from error
    data = load()
    order = np.random.default_rng(SEED).permutation(len(data.target))
    x = (data.images[order, :, :, None] / 16).astype("float32")
    y = data.target[order].astype("int32")
    return Digits(x[TEST_IMAGES:], y[TEST_IMAGES:], x[:TEST_IMAGES], y[:TEST_IMAGES])


def residual_network() -> keras.Model:
    """Two plain residual blocks, one pre-activated, ten logits: BatchNorm in its usual places."""

    def conv(x, filters, strides=1):
        return layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(x)

    def norm(x):
        return layers.BatchNormalization(momentum=0.9)(x)

    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.ReLU()(norm(conv(inputs, 16)))
    y = norm(conv(layers.ReLU()(norm(conv(x, 16))), 16))
    x = layers.ReLU()(layers.Add()([x, y]))
    y = norm(conv(layers.ReLU()(norm(conv(x, 32, strides=2))), 32))
    x = layers.Add()([layers.Conv2D(32, 1, strides=2)(x), y])
    x = layers.ReLU()(norm(x))
    outputs = layers.Dense(10, name="digit")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs, name="digits")


def train(model: keras.Model, digits: Digits) -> None:
    """Adam on the training images, every step compiled by XLA."""
    # Whole batches only: XLA compiles once for each shape.
    batches = len(digits.x_train) // BATCH
    whole = batches * BATCH
    rate = keras.optimizers.schedules.CosineDecay(5e-3, EPOCHS * batches)
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    x, y = digits.x_train[:whole], digits.y_train[:whole]
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0)


def answer(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """What a model says to the images."""
    return keras.ops.convert_to_numpy(model(images, training=False))


def onnx_answer(file: Path, images: np.ndarray) -> np.ndarray:
    """What ONNX Runtime says to the images."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


def row(name: str, given: np.ndarray, expected: np.ndarray, labels: np.ndarray) -> Row:
    """Accuracy of an answer, and how far it is from the source's."""
    said = given.argmax(-1)
    if given is expected:
        return Row(name, float(np.mean(said == labels)), None, None)
    return Row(
        name,
        accuracy=float(np.mean(said == labels)),
        difference=float(np.abs(given - expected).max() / np.abs(expected).max()),
        agreement=float(np.mean(said == expected.argmax(-1))),
    )


def results_table(rows: list[Row]):
    """The rows as a `rich.table.Table`."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for column in ("test accuracy", "same answer as the source", "largest difference"):
        table.add_column(column, justify="right")
    for line in rows:
        table.add_row(
            line.name,
            f"{line.accuracy:.2%}",
            "" if line.agreement is None else f"{line.agreement:.2%}",
            "" if line.difference is None else f"{line.difference:.1e} of the output's scale",
        )
    return table
