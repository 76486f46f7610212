"""What each normalization does for signals, gradients and scales, and what it gives up.

    python examples/why_normalization_works.py [--quick] [--output why.png]

Needs no data. Measured with the default settings:

    (a) 40 ReLU layers of 128 units, weights of 0.5, 1, 2 × He
                         signal 0.5×   signal 1×   signal 2×  grad. 0.5×    grad. 1×    grad. 2×
    none                     2.5e-12         2.8     3.1e+12     8.6e-12         4.7     2.6e+12
    batch                       0.71        0.71        0.71     1.4e+03     1.4e+03     1.4e+03
    layer                        0.7         0.7         0.7        0.95        0.96        0.96
    weight                   2.5e-12         2.8     3.1e+12     8.6e-12         4.7     2.6e+12
    cosine                      0.72        0.72        0.72           1           1           1
    weight, data_init           0.71        0.71        0.71     1.7e+03     1.7e+03     1.7e+03
    signal: size after the last layer; grad.: gradient at the first, the last being 1

Without a norm both go like the weight scale to the power of the depth. Weight norm changes nothing
there: it starts as the layer it wraps, until `data_init` sets its gains. Batch, layer and cosine
norm take the scale out. What BatchNorm costs is seen too: its gradient grows by a fifth per layer
(1.2 to the 39 is 1,200) whatever the weights, and so does that of a start from data, which is
BatchNorm at the first step. Figures are geometric means of five draws of the weights. In eight
draws the gradient went from 600 to 2,300 with BatchNorm, from 0.02 to 6 with layer and cosine norm:
of those, no more than "about 1, not 1e12" should be read.

    (b) factors where the weights, or the inputs, of one layer are multiplied by 10
                           10·W: out  10·W: ∂/∂x  10·W: ∂/∂W   10·x: out  10·x: ∂/∂x  10·x: ∂/∂W
    none                          10          10           1          10           1          10
    batch                          1           1         0.1           1         0.1           1
    layer                          1           1         0.1           1         0.1           1
    weight                         1           1         0.1          10           1          10
    cosine                         1           1         0.1           1         0.1           1
    cosine, bias inside            1           1         0.1   no factor   no factor   no factor
    'none' is a matrix W; the inside bias is scaled with W

Larger weights get smaller gradients, so that a step too large is followed by smaller ones. Weight
norm leaves the scale of the inputs in; with the bias inside, the 1 in [x, 1] is what it is measured
against.

    (c) test accuracy on age (years), income (dollars), hours and children
                          raw, norm inside   raw, norm first      standardized
    none                             50.0%                 –             98.2%
    batch                            63.8%             97.6%             97.7%
    layer                            50.0%             50.5%             95.3%
    weight                           52.1%                 –             97.5%
    cosine                           50.4%                 –             95.5%
    inside: behind each Dense; first: on the features, then two plain layers

Layer norm takes a mean over years and dollars: what is left of a sample is that dollars are many.
BatchNorm does not mix features, but helps only where it sees them, in front: behind a Dense, which
has mixed them, little is left of age and hours. On standardized features every method works; layer
and cosine norm, which take each sample's scale away, end 2 to 3 points below the others.

    (d) test accuracy where only the length of the input tells the classes apart
    none                       97.1%
    batch                      97.8%
    layer                      50.7%
    weight                     98.2%
    cosine                     50.3%
    cosine, damping 4          92.9%
    cosine, bias inside        99.9%
    cosine, no bias            51.6%

What does not depend on the scale of its input cannot tell it: cosine norm guesses, and so does
layer norm without a bias in front. With the bias inside, as in the paper, or with damping of the
size of the inputs, length comes through; `rescale=True` with its bias outside gives it up.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from why_figure import HEADS, LAMBDA, PLACES, SCALES, Measured, as_factor, draw

from kerasnorm import BatchNorm, CosineNorm, LayerNorm, WeightNorm, data_init

Stack = list[keras.Layer]
# Linear maps with their normalization, from the arguments of a Dense.
Maker = Callable[..., Stack]


def plain(units: int, **dense) -> Stack:
    return [layers.Dense(units, **dense)]


def batch(units: int, **dense) -> Stack:
    return [layers.Dense(units, **{**dense, "use_bias": False}), BatchNorm(momentum=0.9)]


def layer(units: int, **dense) -> Stack:
    return [layers.Dense(units, **{**dense, "use_bias": False}), LayerNorm()]


def weight(units: int, **dense) -> Stack:
    return [WeightNorm(layers.Dense(units, **dense))]


def cosine(units: int, **dense) -> Stack:
    return [CosineNorm(layers.Dense(units, **dense), rescale=True)]


def damped_cosine(units: int, **dense) -> Stack:
    return [CosineNorm(layers.Dense(units, **dense), rescale=True, damping=4.0)]


def inside_cosine(units: int, **dense) -> Stack:
    return [CosineNorm(layers.Dense(units, **dense))]


def inside_cosine_without_bias(units: int, **dense) -> Stack:
    return [CosineNorm(layers.Dense(units, **{**dense, "use_bias": False}))]


NORMS: dict[str, Maker] = {
    "none": plain,
    "batch": batch,
    "layer": layer,
    "weight": weight,
    "cosine": cosine,
}


@dataclass
class Settings:
    """How much is measured; `--quick` makes it a matter of seconds."""

    depth: int = 40
    units: int = 128
    draws: int = 5
    people: int = 4000
    epochs: int = 20


def run(stack: Stack, x):
    """A stack of layers as training sees it: BatchNorm by the statistics of the batch."""
    for step in stack:
        trains = isinstance(step, (BatchNorm, keras.Sequential))
        x = step(x, training=True) if trains else step(x)
    return x


def row(name: str, cells: list[str], width: int) -> None:
    print(f"{name:20s}" + "".join(f"{cell:>{width}s}" for cell in cells), flush=True)


# (a) signals and gradients over depth


def through_depth(make: Maker, scale: float, settings: Settings, from_data: bool):
    """Sizes (root mean square) of a layer's outputs, and of gradients there, for every layer.

    Those of gradients are relative to the last layer's. Geometric means over some draws.
    """
    signals, gradients = [], []
    for seed in range(settings.draws):
        keras.utils.set_random_seed(seed)
        he = keras.initializers.VarianceScaling(2 * scale**2, "fan_in", "untruncated_normal")
        stacks = [
            make(settings.units, kernel_initializer=he, name=f"linear_{n}")
            for n in range(settings.depth)
        ]
        x = tf.random.normal((128, settings.units))
        if from_data:
            model = keras.Sequential([keras.Input((settings.units,))])
            for step in (s for stack in stacks for s in (*stack, layers.ReLU())):
                model.add(step)
            data_init(model, x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            seen = []
            for stack in stacks:
                x = tf.nn.relu(run(stack, x))
                seen.append(x)
            loss = tf.reduce_sum(x * tf.random.normal(x.shape))
        signals.append([size(a) for a in seen])
        gradients.append([size(a) for a in tape.gradient(loss, seen)])
    logs = np.log(gradients)
    return np.exp(np.mean(np.log(signals), 0)), np.exp(np.mean(logs - logs[:, -1:], 0))


def size(tensor) -> float:
    # of what float32 holds, not of its square
    return float(np.sqrt(np.mean(np.square(tensor.numpy().astype("float64")))))


def show_depth(settings: Settings) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    print(f"(a) {settings.depth} ReLU layers of {settings.units} units, weights of 0.5, 1, 2 × He")
    row("", [f"{what} {s:g}×" for what in ("signal", "grad.") for s in SCALES], 12)
    found = {}
    for name, make in {**NORMS, "weight, data_init": weight}.items():
        from_data = "data_init" in name
        found[name] = [through_depth(make, scale, settings, from_data) for scale in SCALES]
        signals = [f"{signal[-1]:.2g}" for signal, _ in found[name]]
        row(name, signals + [f"{gradient[0]:.2g}" for _, gradient in found[name]], 12)
    print("signal: size after the last layer; grad.: gradient at the first, the last being 1\n")
    return found


# (b) weights and inputs times λ


def factors(stack: Stack, units: int) -> list[float | None]:
    """By how much output and gradients are multiplied as weights or inputs are, times λ."""
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(64, units)), "float32")
    run(stack, x)
    linear = getattr(stack[0], "layer", stack[0])
    scaled = [linear.kernel]
    if type(stack[0]) is CosineNorm and not stack[0].rescale and linear.use_bias:
        linear.bias.assign(rng.normal(size=linear.bias.shape))
        scaled.append(linear.bias)  # the bias is one more weight
    direction = tf.constant(rng.normal(size=(64, units)), "float32")

    def measure(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = run(stack, x)
            loss = tf.reduce_sum(y * direction)
        return y, *tape.gradient(loss, [x, linear.kernel.value])

    before = measure(x)
    larger_inputs = measure(LAMBDA * x)
    for variable in scaled:
        variable.assign(LAMBDA * variable)
    larger_weights = measure(x)
    return [
        multiple(a, b)
        for after in (larger_weights, larger_inputs)
        for a, b in zip(before, after, strict=True)
    ]


def multiple(before, after) -> float | None:
    """The factor between two tensors, None if there is none."""
    a, b = (np.asarray(t, "float64").ravel() for t in (before, after))
    factor = float(a @ b / (a @ a))
    rest = np.linalg.norm(b - factor * a) / np.linalg.norm(b)
    return factor if rest < 0.01 else None  # of 1 percent: ε in the variance


def show_scales(settings: Settings) -> dict[str, list[float | None]]:
    print(
        f"(b) factors where the weights, or the inputs, of one layer are multiplied by {LAMBDA:g}"
    )
    row("", [f"{LAMBDA:g}·W: {h}" for h in HEADS] + [f"{LAMBDA:g}·x: {h}" for h in HEADS], 12)
    kinds = {**NORMS, "cosine, bias inside": inside_cosine}
    found = {}
    for name, make in kinds.items():
        found[name] = factors(make(32, use_bias=make is inside_cosine), 32)
        row(name, [as_factor(f) for f in found[name]], 12)
    print("'none' is a matrix W; the inside bias is scaled with W\n")
    return found


# (c) features that are unlike each other


def people(count: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Age in years, income in dollars, working hours a week, children; and an answer.

    The answer depends on age, income and hours alike, each in its own deviations.
    """
    standard = rng.normal(size=(count, 4))
    features = standard * [15, 20_000, 8, 1.2] + [45, 50_000, 40, 2]
    score = standard[:, 0] * standard[:, 1] + standard[:, 2]
    return features.astype("float32"), (score > 0).astype("float32")


def trained(stack: Stack, train, test, settings: Settings) -> float:
    """The accuracy on samples that were not trained on."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(train[0].shape[1:]), *stack, layers.Dense(1)])
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    metrics = [keras.metrics.BinaryAccuracy(threshold=0)]
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=metrics)
    model.fit(*train, batch_size=64, epochs=settings.epochs, verbose=0)
    return model.evaluate(*test, batch_size=1000, verbose=0)[1]


def hidden(make: Maker) -> Stack:
    """Two hidden layers."""
    return [*make(32), layers.ReLU(), *make(32), layers.ReLU()]


def show_unlike(settings: Settings) -> dict[str, list[float | None]]:
    rng = np.random.default_rng(0)
    train, test = people(settings.people, rng), people(2000, rng)
    mean, std = train[0].mean(0), train[0].std(0)
    standard = [((x - mean) / std, y) for x, y in (train, test)]
    print("(c) test accuracy on age (years), income (dollars), hours and children")
    row("", list(PLACES), 18)
    found = {}
    for name, make in NORMS.items():
        first = {"batch": BatchNorm, "layer": LayerNorm}.get(name)
        found[name] = [
            trained(hidden(make), train, test, settings),
            first and trained([first(), *hidden(plain)], train, test, settings),
            trained(hidden(make), *standard, settings),
        ]
        row(name, ["–" if s is None else f"{s:.1%}" for s in found[name]], 18)
    print("inside: behind each Dense; first: on the features, then two plain layers\n")
    return found


# (d) where length matters


def rays(count: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of every direction, to be told apart by whether they are long or short."""
    direction = rng.normal(size=(count, 16))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    far = rng.integers(2, size=count)
    length = np.where(far, rng.uniform(4, 6, count), rng.uniform(2, 3.5, count))
    return (length[:, None] * direction).astype("float32"), far.astype("float32")


def show_length(settings: Settings) -> dict[str, float]:
    rng = np.random.default_rng(0)
    train, test = rays(settings.people, rng), rays(2000, rng)
    print("(d) test accuracy where only the length of the input tells the classes apart")
    kinds: Mapping[str, Maker] = {
        **NORMS,
        "cosine, damping 4": damped_cosine,
        "cosine, bias inside": inside_cosine,
        "cosine, no bias": inside_cosine_without_bias,
    }
    found = {}
    for name, make in kinds.items():
        stack = [*make(32), layers.ReLU(), layers.Dense(32, activation="relu")]
        found[name] = trained(stack, train, test, settings)
        row(name, [f"{found[name]:.1%}"], 12)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("why.png"), help="figure to write")
    arguments = parser.parse_args()
    if importlib.util.find_spec("matplotlib") is None:
        sys.exit("The figure needs matplotlib: pip install matplotlib")
    settings = Settings()
    if arguments.quick:
        settings = Settings(depth=6, units=32, draws=1, people=256, epochs=1)
    found = Measured(
        show_depth(settings), show_scales(settings), show_unlike(settings), show_length(settings)
    )
    draw(found, arguments.output)
    print(f"written: {arguments.output}")


if __name__ == "__main__":
    main()
